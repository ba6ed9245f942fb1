"""Add seeds to a sweep while its answer is open: `stopping=sequential`.

    configs = planned_configs("experiment=rank_sweep", "stopping=sequential", "seed=range(12)")
    sweep_of(configs, rule=rule_of(configs))

The seeds of the sweep are the most that are trained. Every configuration starts with the first.
At each look, a rank gets the seeds of the next look if its test against full fine-tuning is open
(`RankTest.stop`). Full fine-tuning gets the seeds of every rank that is compared with it.

A look is a function of the plan and of the ended runs. So an interrupted sweep repeats its looks
with equal results, and a report tests at the same looks as the sweep did.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_study.answers.looks import Looks
from lowrank_study.answers.paired_scores import (
    Configuration,
    configuration_of,
    is_compared,
    is_reference,
    paired_with_full,
)
from lowrank_study.answers.sufficient_rank import tests_of
from lowrank_study.config.run import Stopping
from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.settings import difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """The rule by which seeds are added; see `sweeps.sweep.Rule`."""

    plan: Looks
    """When ranks are tested."""
    margin: float | str
    """Largest loss at which a rank suffices; see `Metric.read_margin`."""

    @property
    def looks(self) -> Mapping[str, Any]:
        """When ranks are tested, as the store keeps it."""
        return {"seeds": list(self.plan.seeds), "spending": self.plan.spending}

    def wanted(self, specs: Sequence[RunSpec], runs: Sequence[TrainedRun]) -> list[RunSpec]:
        """Return the runs with the first seeds, and those of the next look where a test is open.

        If a run failed, no seeds are added: a rerun trains it again.
        """
        seeds = Counter(configuration_of(run.spec) for run in runs)
        if not any(run.status == "failed" for run in runs):
            self._add(seeds, runs)
        order = sorted({spec.seed for spec in specs})
        unique = {spec.run_id: spec for spec in specs}.values()
        most = [seeds[configuration_of(spec)] or self.plan.seeds[0] for spec in unique]
        return [
            spec for spec, count in zip(unique, most, strict=True) if spec.seed in order[:count]
        ]

    def _add(self, seeds: Counter[Configuration], runs: Sequence[TrainedRun]) -> None:
        """Add the seeds of the next look to the configurations whose tests are open."""
        references = [configuration_of(run.spec) for run in runs if is_reference(run.spec)]
        reference = {each[:2]: each for each in references}
        for pairs, test in tests_of(paired_with_full(runs), margin=self.margin, looks=self.plan):
            if not test.stop:
                full = reference[pairs.target[:2]]
                mine = (*pairs.target, pairs.adapter_rank)
                seeds[mine] = self.plan.following(seeds[mine])
                seeds[full] = max(seeds[full], seeds[mine])


def planned_looks(specs: Sequence[RunSpec], stopping: Stopping) -> Looks:
    """Return the looks of a sweep; its seeds are the most that are trained.

    Raises:
        InputError: Full fine-tuning is missing, there are too few seeds, or the runs can't be
            compared.
    """
    if differing := difference(specs):
        raise InputError(f"stopping=sequential: {differing}, so they can't be compared")
    _check_compared(specs)
    seeds: dict[Configuration, dict[int, str]] = {}
    for spec in specs:
        mine = seeds.setdefault(configuration_of(spec), {})
        if mine.setdefault(spec.seed, spec.run_id) != spec.run_id:
            raise InputError(
                f"stopping=sequential: {mine[spec.seed]} and {spec.run_id} are two runs of one "
                "configuration and seed: give one value of each other setting, and tuning=race to "
                "choose the learning rate"
            )
    first, *others = (sorted(each) for each in seeds.values())
    if any(each != first for each in others):
        raise InputError("stopping=sequential: give all configurations the same seeds")
    if len(first) <= stopping.first:
        raise InputError(
            f"stopping.first={stopping.first}: the sweep has {len(first)} seed(s), so none can be "
            "added; give the most seeds that may be trained, as in seed=range(12)"
        )
    counts = [*range(stopping.first, len(first), stopping.step), len(first)]
    return Looks(seeds=tuple(counts), spending=stopping.spending)


def _check_compared(specs: Sequence[RunSpec]) -> None:
    """Refuse a sweep in which nothing can be tested against full fine-tuning."""
    for setting in dict.fromkeys(configuration_of(spec)[:2] for spec in specs):
        mine = [spec for spec in specs if configuration_of(spec)[:2] == setting]
        if not (any(map(is_reference, mine)) and any(map(is_compared, mine))):
            raise InputError(
                f"stopping=sequential: {setting[0]} on {setting[1]} needs full fine-tuning and an "
                "adapter to compare it with, as in -m method=full,lora"
            )
    if unread := next((spec for spec in specs if not spec.train.read_test), None):
        raise InputError(
            f"stopping=sequential: {unread.run_id} has no test scores: set trainer.read_test=true"
        )


def looks_of(store: RunStore, sweep: str) -> Looks | None:
    """Return the looks of a sweep in the store; None if all its seeds were planned at once."""
    found = store.looks(sweep)
    if found is None:
        return None
    return Looks(seeds=tuple(found["seeds"]), spending=found["spending"])
