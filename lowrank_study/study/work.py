"""What a worker does: claim a pack of runs, train it, end each in the store, measure spectra.

    python -m lowrank_study.study.work --results results --sweep rank_sweep

starts one worker on a planned sweep, by hand, by `make study`, or as a Slurm or Ray job: any
number of them share the work through the store.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_study.errors import InputError
from lowrank_study.runs import Claim, RunStore, TrainedRun

if TYPE_CHECKING:
    from lowrank_study.training.evaluate import Predictions
    from lowrank_study.training.member import FitResult


def work(
    results: Path, sweep: str, *, device: str, tracker: str, parent: int | None = None
) -> None:
    """Train and measure runs of a planned sweep until none is free, or `parent` is gone."""
    store = RunStore(results / "runs")
    packs = store.packs(sweep)
    while (parent is None or os.getppid() == parent) and (claims := store.claim_pack(packs)):
        with ExitStack() as held:
            for claim in claims:
                held.enter_context(claim)
            run_claimed(claims, device=device, tracker=tracker, sweep=sweep)
        for claim in claims:
            measure_run(store.load(claim.run_id), results)


def run_claimed(claims: Sequence[Claim], *, device: str, tracker: str, sweep: str) -> None:
    """Train claimed runs together and commit each: done, diverged, or failed with the reason."""
    from lowrank_study.training.fit import Job, fit_together
    from lowrank_study.training.tracking import make_tracker

    with ExitStack() as trackers:
        jobs = [
            Job(
                spec=claim.spec,
                checkpoint_folder=claim.folder / "checkpoint",
                tracker=trackers.enter_context(
                    make_tracker(tracker, claim.spec, claim.folder, sweep)
                ),
                on_progress=partial(setattr, claim, "progress"),
            )
            for claim in claims
        ]
        outcomes: Sequence[FitResult | Exception]
        try:
            outcomes = fit_together(jobs, device=device)
        except Exception as error:
            outcomes = [error] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                test = outcome.record["test"].items()
                metrics = {f"test_{name}": value for name, value in test}
                job.tracker.log(step=outcome.record["steps"], metrics=metrics)
    for claim, outcome in zip(claims, outcomes, strict=True):
        _commit(claim, outcome)


def _commit(claim: Claim, outcome: "FitResult | Exception") -> None:
    from lowrank_study.training.member import Diverged

    match outcome:
        case Diverged():
            claim.commit(status="diverged", record={"message": str(outcome)})
        case InputError():
            claim.commit(status="failed", record={"message": str(outcome)})
        case Exception():
            traceback.print_exception(outcome)
            message = f"{type(outcome).__name__}: {outcome}"[:500]
            claim.commit(status="failed", record={"message": message})
        case _:
            if outcome.test is not None:
                _save_predictions(claim.folder, outcome.test)
            claim.commit(status="done", record=outcome.record)


def _save_predictions(folder: Path, predictions: "Predictions") -> None:
    import pandas as pd

    columns = {
        "label": predictions.labels,
        "predicted": predictions.predicted,
        "loss": predictions.losses,
    }
    pd.DataFrame(columns).to_parquet(folder / "predictions.parquet", index=False)


def measure_run(run: TrainedRun, results: Path) -> None:
    """Measure the spectra of a run's updates, unless that has been done or there are none.

    Runs that don't read the test split are there to choose a rate by: nobody asks for theirs.
    """
    from lowrank_study.spectra.spectrum import save_spectra
    from lowrank_study.study.updates import spectra_of_run

    path = spectra_file(results, run.spec.run_id)
    if run.status != "done" or not run.spec.train.read_test or path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        spectra = list(spectra_of_run(run))
    except InputError as error:  # an adapter of a kind that can't be read exactly: its run stands
        print(f"{run.spec.run_id}: no spectra: {error}", file=sys.stderr)
        spectra = []
    save_spectra(path, spectra)


def spectra_file(results: Path, run_id: str) -> Path:
    """Return where the spectra of a run are kept."""
    return results / "spectra" / f"{run_id}.parquet"


def main() -> None:
    """Run one worker."""
    parser = argparse.ArgumentParser(description="Train the free runs of a planned sweep.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tracker", default="none")
    parser.add_argument("--parent", type=int, help="the process to end with")
    parser.add_argument("--cores", help="the cores to stay on, such as 0 or 2,3")
    arguments = parser.parse_args()
    if arguments.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    work(
        arguments.results,
        arguments.sweep,
        device=arguments.device,
        tracker=arguments.tracker,
        parent=arguments.parent,
    )


if __name__ == "__main__":
    main()
