"""Group the runs of a sweep into packs, which one process trains together.

    >>> packs([rank_1, rank_2, full], limit=lambda largest: 4, workers=1, cost=Effort().of)
    [[rank_1, rank_2], [full]]

LoRA runs may be packed if they share the model, data, order of the data and target
(`training/packing.py`). Packs hold neighbouring ranks, because a pack on a GPU computes
with its largest, and a processor is fastest with runs of one rank.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from lowrank_study.spec import RunSpec, to_mapping

_SAVED = 0.1
"""Share of its cost that a run saves in a large pack, measured on two cores; a GPU saves more."""
_ALONE = 1.3
"""Factor of the cost of runs that can't be packed, measured for full fine-tuning on two cores: its
optimizer and its spectra read all weights."""
_START = 0.05
"""Cost of starting a pack, as a share of that of the costliest run."""


def packs(
    specs: Sequence[RunSpec],
    *,
    limit: Callable[[RunSpec], int],
    workers: int,
    cost: Callable[[RunSpec], float],
) -> list[list[RunSpec]]:
    """Group runs into packs of about equal size, the costliest first.

    Large packs cost less per run, but a few large packs can leave a worker idle. The size is chosen
    with which all workers finish earliest, and a pack is divided where they then finish earlier.

    Args:
        limit: Returns how many runs like this one fit into a pack. It is called with the largest
            rank of several runs that can be packed.
        cost: Returns the cost of a run alone, relative to others (`effort.py`).
    """
    costs = {spec.run_id: cost(spec) for spec in specs}

    start = _START * max(costs.values(), default=0.0)

    def pack_cost(pack: Sequence[RunSpec]) -> float:
        alone = 1.0 if pack[0].method.pack_key is not None else _ALONE
        saved = _SAVED * (1.0 - 1.0 / len(pack))
        return start + sum(costs[spec.run_id] for spec in pack) * alone * (1.0 - saved)

    def time_of(made: Sequence[Sequence[RunSpec]]) -> float:
        return finished(sorted(map(pack_cost, made), reverse=True), workers)

    groups: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in specs:
        groups[_key(spec)].append(spec)
    for group in groups.values():
        group.sort(key=lambda spec: spec.method.adapter_rank or 0)
    most = {key: limit(group[-1]) if len(group) > 1 else 1 for key, group in groups.items()}
    tried = []
    for size in range(max(most.values(), default=1), 0, -1):
        made: list[list[RunSpec]] = []
        for key, group in groups.items():
            count = -(-len(group) // min(size, most[key]))
            bounds = [len(group) * k // count for k in range(count + 1)]
            made += [group[start:end] for start, end in pairwise(bounds)]
        tried.append(made)
    chosen = min(tried, key=time_of)
    while time_of(chosen) > sum(map(pack_cost, chosen)) / workers + start:
        divided = min(_divided(chosen), key=time_of, default=chosen)
        if time_of(divided) >= time_of(chosen):
            break
        chosen = divided
    return sorted(chosen, key=pack_cost, reverse=True)


def _divided(made: list[list[RunSpec]]) -> Iterator[list[list[RunSpec]]]:
    """Yield all ways to divide one of some packs in two."""
    for number, pack in enumerate(made):
        for end in range(1, len(pack)):
            yield [*made[:number], pack[:end], pack[end:], *made[number + 1 :]]


def finished(costs: Sequence[float], workers: int) -> float:
    """Return when the last worker finishes, if each takes the next pack as soon as it is free."""
    busy_until = [0.0] * workers
    for cost in costs:
        busy_until[busy_until.index(min(busy_until))] += cost
    return max(busy_until)


def _key(spec: RunSpec) -> str:
    """Return what runs must share to be packed; it is unique for a run that can't be packed."""
    if spec.method.pack_key is None or spec.train.reference:
        return spec.run_id
    shared = [spec.task, spec.model, spec.train, spec.data_seed]
    shared += [type(spec.method).__name__, *spec.method.pack_key]
    return json.dumps([to_mapping(part) for part in shared], sort_keys=True)
