"""The spectra of ended runs: where they are kept, and which checkpoint each file is of.

>>> read_spectra(run, Path("results"))          # None where they were not measured
>>> without_spectra(runs, Path("results"))      # run id → why
"""

from collections.abc import Sequence
from pathlib import Path

from lowrank_study.checkpoints.adapters.peft_settings import KINDS
from lowrank_study.errors import InputError
from lowrank_study.runs import TrainedRun
from lowrank_study.spec import HeadOnly, PeftMethod
from lowrank_study.spectra.spectra_file import (
    count_spectra,
    load_spectra,
    spectra_made_from,
)
from lowrank_study.spectra.spectrum import Spectrum


def spectra_file(results: Path, run_id: str) -> Path:
    """Return where the spectra of a run are kept."""
    return results / "spectra" / f"{run_id}.parquet"


def is_asked_for(run: TrainedRun) -> bool:
    """Whether a run's spectra are asked for.

    Runs that don't read the test split are there to choose a rate by, and keep no checkpoint.
    """
    return run.status == "done" and run.spec.train.read_test


def why_no_matrix(run: TrainedRun) -> str | None:
    """Say why the updates of a run's method are no matrices that can be measured, if so."""
    method = run.spec.method
    if not isinstance(method, PeftMethod) or method.peft_type in KINDS:
        return None
    return f"the updates of peft_type={method.peft_type} are no matrices that can be read exactly"


def is_measured(run: TrainedRun, results: Path) -> bool:
    """Whether there are spectra of the checkpoint that the run has now.

    Older versions left an empty file where a checkpoint could not be read.
    """
    path = spectra_file(results, run.spec.run_id)
    has_none = isinstance(run.spec.method, HeadOnly) or why_no_matrix(run) is not None
    try:
        of_now = path.is_file() and spectra_made_from(path) == run.checkpoint_sha256
        return of_now and (has_none or count_spectra(path) > 0)
    except InputError:  # it is damaged: it is measured anew
        return False


def read_spectra(run: TrainedRun, results: Path) -> list[Spectrum] | None:
    """Return the spectra of a run's updates, or `None` where they were not measured.

    Raises
    ------
    InputError
        The file is damaged, or of another checkpoint than the run has now.
    """
    path = spectra_file(results, run.spec.run_id)
    if not path.is_file():
        return None
    if spectra_made_from(path) != run.checkpoint_sha256:
        raise InputError(
            f"{path} was measured on another checkpoint than the run has now: run the sweep again, "
            "which measures it anew"
        )
    return load_spectra(path)


def without_spectra(
    runs: Sequence[TrainedRun], results: Path, *, is_readable: bool = False
) -> dict[str, str]:
    """Return the runs whose updates were not measured though they were trained, and why.

    With `is_readable`, only those of methods whose updates can be measured.
    """
    found = {}
    for run in runs:
        if not is_asked_for(run) or isinstance(run.spec.method, HeadOnly):
            continue
        if reason := why_no_matrix(run):
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
    return "they were not measured: run the sweep again, which measures them or says why not"
