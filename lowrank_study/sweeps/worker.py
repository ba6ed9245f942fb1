"""A worker: lease a pack of runs, train it, commit each run to the store, measure spectra.

    python -m lowrank_study.sweeps.worker --results results --sweep rank_sweep

starts one worker on a planned sweep, by hand, by `make study`, or as a Slurm or Ray job: any
number of them share the work through the store.
"""

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_study.errors import InputError
from lowrank_study.files import os_error_message
from lowrank_study.machine import end_with_parent
from lowrank_study.results import runs_folder
from lowrank_study.runs.leases import HEARTBEAT_SECONDS, Lease, LeaseLost
from lowrank_study.runs.store import RunStore

if TYPE_CHECKING:
    from lowrank_study.training.evaluate import Predictions
    from lowrank_study.training.member import FitResult

CANNOT_GO_ON = 3
"""Exit code of a worker whose replacement would fail too, as on a full disk."""
_STOPPED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to stop."""
_asked_to_end = threading.Event()


def work(
    results: Path,
    sweep: str,
    *,
    device: str,
    tracker: str,
    parent: int | None = None,
    name: str | None = None,
) -> None:
    """Train and measure runs of a planned sweep until none is free, or `parent` has ended.

    `name` is the worker's name in the store; `None` makes one.
    """
    from lowrank_study.sweeps.updates import measure_run

    store = RunStore(runs_folder(results), worker=name)
    packs = store.packs(sweep)
    run_ids = [run_id for pack in packs for run_id in pack]
    while not _is_orphan(parent):
        if leases := store.claim_pack(packs):
            with ExitStack() as held:
                for lease in leases:
                    held.enter_context(lease)
                run_leased(leases, device=device, tracker=tracker, sweep=sweep, parent=parent)
            for run in store.ended([lease.run_id for lease in leases]):
                measure_run(run, results)
        elif store.in_doubt(run_ids):  # are the other workers alive?
            time.sleep(HEARTBEAT_SECONDS)
        else:
            return


def run_leased(
    leases: Sequence[Lease], *, device: str, tracker: str, sweep: str, parent: int | None = None
) -> None:
    """Train leased runs together and commit each: done, diverged, or failed with the reason."""
    from lowrank_study.training.fit import Job, fit_together
    from lowrank_study.training.tracking import make_tracker

    def on_progress(lease: Lease, share: float) -> None:
        if _asked_to_end.is_set() or _is_orphan(parent):
            sys.exit(_STOPPED)
        lease.advance(share)

    with ExitStack() as trackers:
        jobs = [
            Job(
                spec=lease.spec,
                checkpoint_folder=lease.folder / "checkpoint",
                tracker=trackers.enter_context(
                    make_tracker(tracker, lease.spec, lease.folder, sweep)
                ),
                on_progress=partial(on_progress, lease),
            )
            for lease in leases
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
    for lease, outcome in zip(leases, outcomes, strict=True):
        try:
            _commit(lease, outcome)
        except LeaseLost as lost:
            print(lost, file=sys.stderr)


def _commit(lease: Lease, outcome: "FitResult | Exception") -> None:
    from lowrank_study.training.member import Diverged

    match outcome:
        case LeaseLost():
            raise outcome
        case Diverged():
            lease.commit(status="diverged", record={"message": str(outcome)})
        case InputError():
            lease.commit(status="failed", record={"message": str(outcome)})
        case Exception():
            lease.commit(status="failed", record={"message": _reason(outcome)})
        case _:
            try:
                if outcome.test is not None:
                    _save_predictions(lease.folder, outcome.test)
                lease.commit(status="done", record=outcome.record)
            except Exception as error:
                if isinstance(error, LeaseLost):
                    raise
                # A failed run keeps no checkpoint, which makes room on a full disk for its record.
                lease.commit(status="failed", record={"message": _reason(error)})


def _reason(error: Exception) -> str:
    """Return why a run failed; for a defect, also print the traceback to standard error."""
    if told := os_error_message(error):
        return told
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"[:500]


def _save_predictions(folder: Path, predictions: "Predictions") -> None:
    import pandas as pd

    columns = {
        "label": predictions.labels,
        "predicted": predictions.predicted,
        "loss": predictions.losses,
    }
    pd.DataFrame(columns).to_parquet(folder / "predictions.parquet", index=False)


def main() -> None:
    """Run one worker."""
    parser = argparse.ArgumentParser(description="Train the free runs of a planned sweep.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tracker", default="none")
    parser.add_argument("--parent", type=int, help="the process to end with")
    parser.add_argument("--name", help="unique name of the worker in the store")
    parser.add_argument("--cores", help="the cores to stay on, such as 0 or 2,3")
    arguments = parser.parse_args()
    with _told_in_one_line():
        signal.signal(signal.SIGTERM, _end)
        if arguments.parent is not None:
            end_with_parent(arguments.parent)
        if arguments.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
        work(
            arguments.results,
            arguments.sweep,
            device=arguments.device,
            tracker=arguments.tracker,
            parent=arguments.parent,
            name=arguments.name,
        )


def _is_orphan(parent: int | None) -> bool:
    return parent is not None and os.getppid() != parent


def _end(*_: Any) -> None:
    """Exit in order, which gives the runs back; further signals are ignored.

    Python drops exceptions inside a destructor, so the next step also checks the event.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked_to_end.set()
    sys.exit(_STOPPED)


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except SystemExit:
        if _asked_to_end.is_set():  # the runs are given back; a normal exit of torch takes seconds
            sys.stderr.flush()
            os._exit(_STOPPED)
        raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept; rerun to resume", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if (told := os_error_message(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(CANNOT_GO_ON)


if __name__ == "__main__":
    main()
