"""What a worker does: claim a run, train it, end it in the store, measure its spectra.

    python -m lowrank_study.study.work --results results --sweep rank_sweep

starts one worker on a planned sweep, by hand, by `make study`, or as a Slurm or Ray job: any
number of them share the work through the store.
"""

import argparse
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_study.errors import InputError
from lowrank_study.runs import Claim, RunStore, TrainedRun

if TYPE_CHECKING:
    from lowrank_study.training.evaluate import Predictions


def work(results: Path, sweep: str, *, device: str, tracker: str) -> None:
    """Train and measure runs of a planned sweep until none is free."""
    store = RunStore(results / "runs")
    run_ids = store.sweep(sweep)
    parent = os.getppid()
    while os.getppid() == parent and (claim := store.claim(run_ids)) is not None:
        with claim:
            run_claimed(claim, device=device, tracker=tracker, sweep=sweep)
        measure_run(store.load(claim.run_id), results)


def run_claimed(claim: Claim, *, device: str, tracker: str, sweep: str) -> None:
    """Train a claimed run and commit it: done, diverged, or failed with the reason."""
    from lowrank_study.training.fit import Diverged, fit
    from lowrank_study.training.tracking import make_tracker

    def show(share: float) -> None:
        claim.progress = share

    try:
        with make_tracker(tracker, claim.spec, claim.folder, sweep) as tracking:
            result = fit(
                claim.spec,
                checkpoint_folder=claim.folder / "checkpoint",
                tracker=tracking,
                device=device,
                on_progress=show,
            )
            tracking.log(
                step=result.record["steps"],
                metrics={f"test_{name}": value for name, value in result.record["test"].items()},
            )
    except Diverged as error:
        claim.commit(status="diverged", record={"message": str(error)})
    except InputError as error:
        claim.commit(status="failed", record={"message": str(error)})
    except Exception as error:
        traceback.print_exc()
        claim.commit(status="failed", record={"message": f"{type(error).__name__}: {error}"[:500]})
    else:
        _save_predictions(claim.folder, result.test)
        claim.commit(status="done", record=result.record)


def _save_predictions(folder: Path, predictions: "Predictions") -> None:
    import pandas as pd

    columns = {
        "label": predictions.labels,
        "predicted": predictions.predicted,
        "loss": predictions.losses,
    }
    pd.DataFrame(columns).to_parquet(folder / "predictions.parquet", index=False)


def measure_run(run: TrainedRun, results: Path) -> None:
    """Measure the spectra of a run's updates, unless that has been done or there are none."""
    from lowrank_study.spectra.spectrum import save_spectra
    from lowrank_study.study.updates import spectra_of_run

    path = spectra_file(results, run.spec.run_id)
    if run.status == "done" and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_spectra(path, spectra_of_run(run))


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
    parser.add_argument("--cores", help="the cores to stay on, such as 0 or 2,3")
    arguments = parser.parse_args()
    if arguments.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    work(arguments.results, arguments.sweep, device=arguments.device, tracker=arguments.tracker)


if __name__ == "__main__":
    main()
