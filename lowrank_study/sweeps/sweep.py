"""Sweeps: choose learning rates if asked to, plan all runs, train them by workers, measure spectra.

>>> sweep([compose("method.rank=4"), compose("method.rank=8")], name="two", results=Path("results"))
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lowrank_study.config.run import RunConfig
from lowrank_study.config.tuning import Tuning
from lowrank_study.results import runs_folder
from lowrank_study.runs.limits import Limits
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.crew import run_workers
from lowrank_study.sweeps.jobs import TRAINING, Work
from lowrank_study.sweeps.plan import PlannedSweep, plan_sweep
from lowrank_study.sweeps.progress import Display
from lowrank_study.sweeps.tuning import tuned

RATES = "Which learning rate is best on validation?"
"""The question of a sweep that chooses rates."""
Train = Callable[[Sequence[RunSpec]], list[TrainedRun]]


class Rule(Protocol):
    """Which runs of a sweep are trained, given the scores so far (`answers/sequential.py`)."""

    @property
    def looks(self) -> Mapping[str, Any]:
        """When the rule looks at scores, of JSON's types; it is fixed before the first score."""

    def wanted(self, specs: Sequence[RunSpec], runs: Sequence[TrainedRun]) -> list[RunSpec]:
        """Return the runs that the sweep needs: those that have ended, and further ones."""


def sweep_of(configs: Sequence[RunConfig], *, rule: Rule | None = None) -> list[TrainedRun]:
    """Run the sweep of several configurations; sweep-level settings come from the first one.

    For the rule and for exceptions, see `sweep`.
    """
    first = configs[0]
    assert (rule is None) == (first.stopping is None), "answers.stopping.rule_of gives the rule"
    return sweep(
        [config.spec for config in configs],
        name=first.sweep,
        results=first.results,
        question=first.question,
        device=first.device,
        launcher=first.launcher,
        tracker=first.tracker,
        workers=first.workers,
        pack=first.pack,
        allow_partial=first.allow_partial,
        tuning=first.tuning,
        rule=rule,
    )


def sweep(
    specs: Sequence[RunSpec],
    *,
    name: str,
    results: Path,
    question: str = "",
    device: str = "auto",
    launcher: str = "local",
    tracker: str = "none",
    workers: int | None = None,
    pack: int | None = None,
    allow_partial: bool = False,
    tuning: Tuning | None = None,
    rule: Rule | None = None,
) -> list[TrainedRun]:
    """Train every run that has not ended, measure all spectra, and return the runs in order.

    Args:
        name: Name of the sweep and of its report.
        results: Folder of the run store and of everything made from it.
        question: What the sweep asks, in one sentence.
        device: `auto` (a GPU if there is one), or torch's name of a device.
        launcher: Name of the launcher that starts the workers (`sweeps/launch/`).
        tracker: `none`, `jsonl` or `wandb`.
        workers: Processes that train at the same time; None is one per core or GPU.
        pack: Most runs that one process trains together; None is the device's own limit.
        tuning: How to choose learning rates first, by runs of the sweep `<name>_rates`; None
            takes the rates of the specifications.
        rule: Which of the runs are trained, look by look, such as `answers.sequential.Sequential`;
            None trains all.

    Raises:
        InputError: One of the runs can't be trained; then none is planned.
        Unfinished: No worker is left, but some runs have not ended. The same call resumes.
    """
    plan = partial(
        plan_sweep,
        results=results,
        device=device,
        launcher=launcher,
        workers=workers,
        pack=pack,
        allow_partial=allow_partial,
    )
    printed: set[str] = set()
    with Display() as display:

        def train(
            specs: Sequence[RunSpec], limits: Mapping[str, Limits], name: str, question: str
        ) -> list[TrainedRun]:
            planned = plan(specs, name=name, question=question, limits=limits)
            _print_new(planned.lines, printed)
            return carry_out(planned, tracker, display, rule)

        if tuning is not None:
            rates = partial(train, name=rates_sweep(name), question=RATES)
            specs = tuned(specs, tuning, train=rates)
        reported = partial(train, limits={}, name=name, question=question)
        return _grown(specs, rule, RunStore(runs_folder(results)), train=reported)


def _print_new(lines: Sequence[str], printed: set[str]) -> None:
    """Print the lines that were not printed before; each round of tuning reads the same data."""
    for line in lines:
        if line not in printed:
            printed.add(line)
            print(line, flush=True)


def _grown(
    specs: Sequence[RunSpec], rule: Rule | None, store: RunStore, *, train: Train
) -> list[TrainedRun]:
    """Train the runs that a rule wants until it wants no more, and return them; None wants all.

    Looks that were made before an interruption are repeated on the ended runs, with equal results.
    """
    if rule is None:
        return train(specs)
    wanted = rule.wanted(specs, [])
    while True:
        is_new = bool(store.left(wanted))
        runs = train(wanted) if is_new else store.ended([spec.run_id for spec in wanted])
        more = rule.wanted(specs, runs)
        if more == wanted:
            most = len({spec.run_id for spec in specs})
            print(f"seeds were added where the answer was open: {len(runs)} of {most} runs")
            return runs if is_new else train(wanted)
        if is_new:
            print(f"the answer is open: {len(more) - len(wanted)} runs more", flush=True)
        wanted = more


def rates_sweep(name: str) -> str:
    """Return the name of the sweep that chooses the rates of another."""
    return f"{name}_rates"


def carry_out(
    planned: PlannedSweep, tracker: str, display: Display, rule: Rule | None
) -> list[TrainedRun]:
    """Write a plan into the store, let workers carry it out, and return the runs in order."""
    store = RunStore(runs_folder(planned.results))
    reported = planned.packs[0][0].train.read_test  # else the runs choose a rate, a few at a time
    if reported:
        looks = None if rule is None else rule.looks
        store.fix_looks(planned.name, looks, planned.costs.keys())
    run_ids = store.plan(
        planned.name, planned.packs, question=planned.question, limits=planned.limits
    )
    if reported and (earlier := store.earlier(planned.name)):
        print(
            f"sweep={planned.name} now consists of {len(run_ids)} run(s); {len(earlier)} planned "
            "earlier under this name are no longer part of it and of its report",
            file=sys.stderr,
        )
    if len(store.ended(run_ids)) < len(run_ids):
        settings = {"tracker": tracker}
        work = Work(results=planned.results, sweep=planned.name, job=TRAINING, settings=settings)
        run_workers(
            work, planned.costs, launcher=planned.launcher, places=planned.places, display=display
        )
    runs = store.ended(list(planned.costs))
    from lowrank_study.sweeps.updates import measure_run  # workers need not wait for it to load

    for run in runs:
        measure_run(run, planned.results)
        if run.status in ("diverged", "failed") and not reported:  # the caller reports others
            print(f"{run.status}: {run.spec.run_id}: {run.record['message']}", file=sys.stderr)
    return runs
