"""Read the stored spectra of ended runs, and check which checkpoint they belong to."""

from collections.abc import Sequence
from pathlib import Path

from lowrank_study.errors import InputError
from lowrank_study.results import spectra_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra.spectra_file import count_spectra, load_spectra, spectra_made_from
from lowrank_study.spectra.spectrum import Spectrum


def is_asked_for(run: TrainedRun) -> bool:
    """Return whether a run's spectra have to be measured.

    Runs that don't read the test split only help to choose a rate, and keep no checkpoint.
    """
    return run.status == "done" and run.spec.train.read_test


def is_measured(run: TrainedRun, results: Path) -> bool:
    """Return whether the stored spectra belong to the run's current checkpoint.

    Older versions left an empty file where a checkpoint could not be read.
    """
    path = spectra_file(results, run.spec.run_id)
    has_none = run.spec.method.is_baseline or run.spec.method.why_no_updates is not None
    try:
        of_now = path.is_file() and spectra_made_from(path) == run.checkpoint_sha256
        return of_now and (has_none or count_spectra(path) > 0)
    except InputError:  # damaged, so measured again
        return False


def read_spectra(run: TrainedRun, results: Path) -> list[Spectrum] | None:
    """Return the spectra of a run's updates, or None if they were not measured."""
    path = spectra_file(results, run.spec.run_id)
    if not path.is_file():
        return None
    if spectra_made_from(path) != run.checkpoint_sha256:
        raise InputError(
            f"{path} was measured on an earlier checkpoint of the run: run the sweep again to "
            "measure it again"
        )
    return load_spectra(path)


def without_spectra(
    runs: Sequence[TrainedRun], results: Path, *, is_readable: bool = False
) -> dict[str, str]:
    """Return the trained runs whose updates were not measured, with the reason.

    With `is_readable`, include only methods whose updates can be measured.
    """
    found = {}
    for run in runs:
        if not is_asked_for(run) or run.spec.method.is_baseline:
            continue
        if reason := run.spec.method.why_no_updates:
            if not is_readable:
                found[run.spec.run_id] = reason
        elif not is_measured(run, results):
            found[run.spec.run_id] = _why_unmeasured(run)
    return found


def _why_unmeasured(run: TrainedRun) -> str:
    try:
        run.check_files("checkpoint/")
    except InputError as error:
        return str(error)
    return "they were not measured: run the sweep again to measure them or see the reason"
