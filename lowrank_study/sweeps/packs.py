"""Group the runs of a sweep into packs, which one process trains together.

    >>> packs([rank_1, rank_2, full], limit=lambda largest: 4, workers=1, cost=Effort().of)
    [[rank_1, rank_2], [full]]

LoRA runs may be packed if they share the model, data, order of the data and target
(`training/packing.py`). Packs hold neighbouring ranks, because a pack computes with its largest.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from lowrank_study.spec import RunSpec, to_mapping

_SAVED = 0.1
"""Share of its cost that a run saves in a large pack, measured on two cores; a GPU saves more."""


def packs(
    specs: Sequence[RunSpec],
    *,
    limit: Callable[[RunSpec], int],
    workers: int,
    cost: Callable[[RunSpec], float],
) -> list[list[RunSpec]]:
    """Group runs into packs of about equal size, the costliest first.

    Large packs cost less per run, but a few large packs can leave a worker idle. The size is chosen
    with which all workers finish earliest.

    Args:
        limit: Returns how many runs like this one fit into a pack. It is called with the largest
            rank of several runs that can be packed.
        cost: Returns the cost of a run alone, relative to others (`effort.py`).
    """
    costs = {spec.run_id: cost(spec) for spec in specs}

    def pack_cost(pack: Sequence[RunSpec]) -> float:
        # A pack computes with its largest rank.
        largest = max(costs[spec.run_id] for spec in pack)
        return len(pack) * largest * (1.0 - _SAVED * (1.0 - 1.0 / len(pack)))

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
        tried.append(sorted(made, key=pack_cost, reverse=True))
    return min(tried, key=lambda made: finished(list(map(pack_cost, made)), workers))


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
    shared += [spec.method.name, *spec.method.pack_key]
    return json.dumps([to_mapping(part) for part in shared], sort_keys=True)
