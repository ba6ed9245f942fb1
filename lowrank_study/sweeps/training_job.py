"""The job of training: train leased runs together, commit each, and measure its spectra."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.runs.leases import Lease
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps.jobs import Advance, Work, end
from lowrank_study.sweeps.updates import measure_run
from lowrank_study.tasks import BASE
from lowrank_study.training import fit
from lowrank_study.training.member import Diverged, FitResult, Stopped
from lowrank_study.training.tracking import make_tracker


def run(leases: Sequence[Lease], work: Work, *, device: str, advance: Advance) -> None:
    """Train runs together and commit each: done, diverged, stopped, or failed with the reason."""
    name = work.settings.get("tracker", "none")
    limits = RunStore(work.folder).limits(work.sweep)
    with ExitStack() as trackers:
        jobs = [
            fit.Job(
                spec=lease.spec,
                checkpoint_folder=lease.folder / "checkpoint",
                tracker=trackers.enter_context(
                    make_tracker(name, lease.spec, lease.folder, work.sweep)
                ),
                limits=limits.get(lease.run_id, {}),
                on_progress=partial(advance, lease),
            )
            for lease in leases
        ]
        outcomes: Sequence[FitResult | Exception]
        try:
            outcomes = fit.fit_together(jobs, device=device)
        except Exception as error:
            outcomes = [error] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                test = outcome.record["test"].items()
                metrics = {f"test_{name}": value for name, value in test}
                job.tracker.log(step=outcome.record["steps"], metrics=metrics)
    for lease, outcome in zip(leases, outcomes, strict=True):
        if isinstance(outcome, Diverged):
            end(lease, {"message": str(outcome)}, status="diverged")
        elif isinstance(outcome, Stopped):
            end(lease, outcome.record, status="stopped")
        else:
            end(lease, _saved(lease.folder, outcome))
    for ended in RunStore(work.folder).ended([lease.run_id for lease in leases]):
        measure_run(ended, work.results)


def _saved(folder: Path, outcome: FitResult | Exception) -> Mapping[str, Any] | Exception:
    """Save the predictions of a run, and return its record, or why it failed."""
    if isinstance(outcome, Exception):
        return outcome
    if outcome.test is not None:
        columns = dict(outcome.test.columns)
        if outcome.base is not None:
            found = outcome.base.columns
            names = [name for name in found if BASE + name in outcome.base.task.base_columns()]
            columns |= {BASE + name: found[name] for name in names}
        try:
            pd.DataFrame(columns).to_parquet(folder / "predictions.parquet", index=False)
        except Exception as error:
            return error
    return outcome.record
