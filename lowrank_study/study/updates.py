"""The updates of an ended run, from what it saved, and their spectra."""

from collections.abc import Iterator

import numpy as np

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.runs import TrainedRun
from lowrank_study.spec import Lora
from lowrank_study.spectra.spectrum import Spectrum, measure
from lowrank_study.spectra.updates import UpdateMatrix, layer_of
from lowrank_study.training.models import model_folder


def spectra_of_run(run: TrainedRun) -> list[Spectrum]:
    """Measure the spectrum of every updated matrix of a run, one in memory at a time."""
    return [measure(update, method="gram") for update in updates_of_run(run)]


def updates_of_run(run: TrainedRun) -> Iterator[UpdateMatrix]:
    base = model_folder(run.spec.model)
    with open_weights(base) as before:
        by_tail = {name: name for name in before.names()}

        def find(name):
            for cand in (name, name.partition(".")[2]):
                if cand in by_tail:
                    return cand
            return None

        if isinstance(run.spec.method, Lora):
            adapter = open_adapter(run.checkpoint)
            for module in adapter.modules():
                B, A, s, dt = adapter.factors(module)
                w0 = find(module + ".weight")
                yield UpdateMatrix(
                    name=module,
                    layer=layer_of(module),
                    role=run.spec.model.role_of(module),
                    storage_dtype=dt,
                    delta_OI=None,
                    B_OR=B,
                    A_RI=A,
                    scaling=s,
                    W0_OI=before.read(w0),
                )
        else:
            with open_weights(run.checkpoint) as after:
                for name in after.names():
                    w0 = find(name)
                    if w0 is None or len(after.shape(name)) != 2:
                        continue
                    m = name.removesuffix(".weight")
                    W0 = before.read(w0)
                    yield UpdateMatrix(
                        name=m,
                        layer=layer_of(m),
                        role=run.spec.model.role_of(m),
                        storage_dtype=after.dtype(name),
                        delta_OI=after.read(name).astype(np.float64) - W0,
                        B_OR=None,
                        A_RI=None,
                        scaling=1.0,
                        W0_OI=W0,
                    )
