"""Read the updates of an ended run from its checkpoint, and measure their spectra."""

import sys
from collections.abc import Iterator
from pathlib import Path

from lowrank_study.checkpoints import open_weights
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.results import spectra_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra.spectra_file import save_spectra
from lowrank_study.spectra.spectrum import Spectrum, measure
from lowrank_study.spectra.updates import Update
from lowrank_study.sweeps.measured_spectra import is_asked_for, is_measured


def measure_run(run: TrainedRun, results: Path) -> None:
    """Measure the spectra of a run's updates, unless they exist or aren't needed.

    If the updates can't be read, print the reason and write no file; the next call tries again.
    """
    if not is_asked_for(run) or is_measured(run, results):
        return
    try:
        spectra = [] if run.spec.method.why_no_updates else spectra_of_run(run)
    except InputError as error:
        print(f"{run.spec.run_id}: no spectra: {error}", file=sys.stderr)
        return
    path = spectra_file(results, run.spec.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_spectra(path, spectra, made_from=run.checkpoint_sha256)


def spectra_of_run(run: TrainedRun) -> list[Spectrum]:
    """Measure the spectrum of every updated matrix of a run, one in memory at a time."""
    return [measure(update, method="gram") for update in updates_of_run(run)]


def updates_of_run(run: TrainedRun) -> Iterator[Update]:
    """Yield `W - W0` of every matrix that the run changed and the pretrained model has.

    The new head has no W0, so it is left out.

    Raises:
        InputError: The checkpoint can't be read, differs from the one that the run wrote, or has a
            matrix that can't be compared.
    """
    if run.spec.method.is_baseline:
        return
    run.check_files("checkpoint/")
    model = run.spec.model
    with open_weights(model_folder(model)) as base:
        yield from run.spec.method.updates(run.checkpoint, base=base, roles=model.roles_by_path)
