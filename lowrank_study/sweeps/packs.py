"""Which runs of a sweep are trained together, in one process.

    >>> packs([rank_1, rank_2, full], limit=lambda largest: 4, workers=1, cost=Effort().of)
    [[rank_1, rank_2], [full]]

LoRA runs of one base, data, target and order of the data may be packed (`training/packing.py`).
Neighbours in rank are, since a pack computes with its largest rank.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from lowrank_study.spec import RunSpec, to_mapping

_SAVED = 0.1
"""Share of its cost that a run saves in a large pack; measured on two cores, a GPU saves more."""


def packs(
    specs: Sequence[RunSpec],
    *,
    limit: Callable[[RunSpec], int],
    workers: int,
    cost: Callable[[RunSpec], float],
) -> list[list[RunSpec]]:
    """Group runs into packs of about equal size, the costliest first.

    Large packs cost less a run, but few of them can leave a worker without work: of all sizes
    the one is taken with which the last worker is through first.

    Parameters
    ----------
    specs
        The runs.
    limit
        How many runs like this one fit into a pack; asked of the largest rank that may be in it.
    workers
        How many packs are trained at the same time.
    cost
        What a run costs alone, in relation to others (`effort.py`).
    """
    costs = {spec.run_id: cost(spec) for spec in specs}

    def pack_cost(pack: Sequence[RunSpec]) -> float:
        dearest = max(costs[spec.run_id] for spec in pack)  # a pack computes with its largest rank
        return len(pack) * dearest * (1.0 - _SAVED * (1.0 - 1.0 / len(pack)))

    groups: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in specs:
        groups[_key(spec)].append(spec)
    for group in groups.values():
        group.sort(key=lambda spec: spec.method.adapter_rank or 0)
    most = {key: limit(group[-1]) for key, group in groups.items()}
    tried = []
    for size in range(max(most.values()), 0, -1):
        made: list[list[RunSpec]] = []
        for key, group in groups.items():
            count = -(-len(group) // min(size, most[key]))
            cuts = [len(group) * k // count for k in range(count + 1)]
            made += [group[start:end] for start, end in pairwise(cuts)]
        tried.append(sorted(made, key=pack_cost, reverse=True))
    return min(tried, key=lambda made: _finished(list(map(pack_cost, made)), workers))


def _finished(costs: Sequence[float], workers: int) -> float:
    """When the last worker is through, if each takes the next pack once it is free."""
    busy_until = [0.0] * workers
    for cost in costs:
        busy_until[busy_until.index(min(busy_until))] += cost
    return max(busy_until)


def _key(spec: RunSpec) -> str:
    """What runs must share to be packed; a run that can't be packed shares it with none."""
    if spec.method.pack_key is None or spec.train.reference:
        return spec.run_id
    shared = [spec.task, spec.model, spec.train, spec.data_seed]
    shared += [spec.method.name, *spec.method.pack_key]
    return json.dumps([to_mapping(part) for part in shared], sort_keys=True)
