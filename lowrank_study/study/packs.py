"""Which runs of a sweep are trained together, in one process.

    >>> packs([rank_1, rank_2, full], limit=lambda largest: 4)
    [[full], [rank_1, rank_2]]

LoRA runs of one base, data, target and order of the data may be packed (`training/packing.py`).
Neighbours in rank are, since a pack computes with its largest rank.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence

from lowrank_study.spec import Lora, RunSpec, to_mapping


def packs(specs: Sequence[RunSpec], *, limit: Callable[[RunSpec], int]) -> list[list[RunSpec]]:
    """Group runs into packs of about equal size, the costliest first.

    Parameters
    ----------
    specs
        The runs.
    limit
        How many runs like this one fit into a pack; asked of the largest rank that may be in it.
    """
    groups: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in specs:
        groups[_key(spec)].append(spec)
    made = []
    for group in groups.values():
        group.sort(key=lambda spec: spec.method.rank if isinstance(spec.method, Lora) else 0)
        count = -(-len(group) // limit(group[-1]))
        made += [
            group[len(group) * k // count : len(group) * (k + 1) // count] for k in range(count)
        ]
    return sorted(made, key=lambda pack: -sum(cost(spec) for spec in pack))


def cost(spec: RunSpec) -> float:
    """What a run costs in relation to others: full fine-tuning also has weight gradients."""
    return 1.0 if isinstance(spec.method, Lora) else 1.5


def _key(spec: RunSpec) -> str:
    """What runs must share to be packed; a run that can't be packed shares it with none."""
    if not isinstance(spec.method, Lora) or spec.train.reference:
        return spec.run_id
    shared = [spec.task, spec.model, spec.train, spec.data_seed]
    shared += [spec.method.target, spec.method.dropout]
    return json.dumps([to_mapping(part) for part in shared], sort_keys=True)
