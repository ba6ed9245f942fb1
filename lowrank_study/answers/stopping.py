"""What `stopping=` asks for: all seeds at once, or seeds that are added while the answer is open.

    sweep_of(configs, rule=rule_of(configs))

Ordinary sweeps use this module too, so it imports the tests only if seeds are added.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowrank_study.config.run import RunConfig

if TYPE_CHECKING:
    from lowrank_study.answers.sequential import Sequential


def rule_of(configs: Sequence[RunConfig]) -> "Sequential | None":
    """Return the rule by which seeds are added to a sweep; None if all are trained at once.

    Raises:
        InputError: Seeds can't be added to such a sweep.
    """
    stopping = configs[0].stopping
    if stopping is None:
        return None
    from lowrank_study.answers.sequential import Sequential, planned_looks

    plan = planned_looks([config.spec for config in configs], stopping)
    return Sequential(plan=plan, margin=configs[0].margin)


def fewest(configs: Sequence[RunConfig]) -> Sequence[RunConfig]:
    """Return the runs of a sweep whose first look decides everything."""
    stopping = configs[0].stopping
    if stopping is None:
        return configs
    first = sorted({config.spec.seed for config in configs})[: stopping.first]
    return [config for config in configs if config.spec.seed in first]
