"""The updates of an ended run, from what it saved, and their spectra."""

from collections.abc import Iterator

from lowrank_study.checkpoints import open_adapter, open_weights, pair
from lowrank_study.runs import TrainedRun
from lowrank_study.spec import FullFineTuning, HeadOnly
from lowrank_study.spectra.spectrum import Spectrum, measure
from lowrank_study.spectra.updates import UpdateMatrix, updates_of_adapter, updates_of_pair
from lowrank_study.training.models import model_folder


def spectra_of_run(run: TrainedRun) -> list[Spectrum]:
    """Measure the spectrum of every updated matrix of a run, one in memory at a time."""
    return [measure(update, method="gram") for update in updates_of_run(run)]


def updates_of_run(run: TrainedRun) -> Iterator[UpdateMatrix]:
    """Yield `W - W0` of every matrix that the run changed and the pretrained model has.

    The classification head has no W0 to compare with, and is left out.
    """
    if isinstance(run.spec.method, HeadOnly):
        return
    model = run.spec.model
    roles = model.roles_by_path
    with open_weights(model_folder(model)) as base:
        if isinstance(run.spec.method, FullFineTuning):
            with open_weights(run.checkpoint) as tuned:
                yield from updates_of_pair(pair(base, tuned), roles=roles)
        else:
            with open_adapter(run.checkpoint) as adapter:
                adapter.refuse_partial()
                yield from updates_of_adapter(adapter, base=base, roles=roles, skipped={})
