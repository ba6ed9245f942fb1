"""Where everything is kept below the folder `results`.

    runs/                           the run store: specifications, records, checkpoints
    spectra/<run_id>.parquet        singular values of a run's updates
    truncation/<run_id>.parquet     predictions of a run whose updates were truncated
    controls/<sweep>.parquet        noise, weight decay, shuffled labels and other seeds
    controls/training-<run_id>.parquet  ranks of a run's updates during training
    jobs/<kind>/                    further jobs on ended runs, while they wait or run
    report/                         the report of a sweep
    papers/                         published tables next to our own
    records/<name>/                 tables, figures and findings of a report, to be committed
    measured/<name>/                the report of two checkpoints or an adapter

The claims' ledger goes to `claims/`, unless the setting `out` names another folder.
"""

from pathlib import Path


def runs_folder(results: Path) -> Path:
    """Return the folder of the run store."""
    return results / "runs"


def spectra_file(results: Path, run_id: str) -> Path:
    """Return the file of a run's spectra."""
    return results / "spectra" / f"{run_id}.parquet"


def truncation_file(results: Path, run_id: str) -> Path:
    """Return the file of the evaluations of a run's truncated updates."""
    return results / "truncation" / f"{run_id}.parquet"


def controls_file(results: Path, sweep: str) -> Path:
    """Return the file of a sweep's controls."""
    return results / "controls" / f"{sweep}.parquet"


def along_training_file(results: Path, run_id: str) -> Path:
    """Return the file of the ranks that a run's updates have during training."""
    return results / "controls" / f"training-{run_id}.parquet"


def jobs_folder(results: Path, kind: str) -> Path:
    """Return the store of one kind of job on ended runs."""
    return results / "jobs" / kind


def report_folder(results: Path) -> Path:
    """Return the folder of the latest report of a sweep."""
    return results / "report"


def papers_folder(results: Path) -> Path:
    """Return the folder of the pages on published tables."""
    return results / "papers"


def record_folder(results: Path, name: str) -> Path:
    """Return the folder of a record, which is committed."""
    return results / "records" / name


def measured_folder(results: Path, name: str) -> Path:
    """Return the folder of the report on two checkpoints or an adapter."""
    return results / "measured" / name
