"""Paths of everything that is kept below the folder `results`.

The claims' ledger goes to `claims/`, unless the setting `out` names another folder.
"""

from pathlib import Path


def runs_folder(results: Path) -> Path:
    """Return the folder of the run store: specifications, records and checkpoints."""
    return results / "runs"


def spectra_file(results: Path, run_id: str) -> Path:
    """Return the file with the singular values of a run's updates."""
    return results / "spectra" / f"{run_id}.parquet"


def truncation_file(results: Path, run_id: str) -> Path:
    """Return the file with the predictions of a run whose updates were truncated."""
    return results / "truncation" / f"{run_id}.parquet"


def forgetting_file(results: Path, name: str) -> Path:
    """Return the file with a model's losses on texts outside its task."""
    return results / "forgetting" / f"{name}.parquet"


def controls_file(results: Path, sweep: str) -> Path:
    """Return the file of a sweep's controls: noise, weight decay, shuffled labels, other seeds."""
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
    """Return the folder of a record: tables, figures and findings to commit."""
    return results / "records" / name


def measured_folder(results: Path, name: str) -> Path:
    """Return the folder of the report on two checkpoints or an adapter."""
    return results / "measured" / name
