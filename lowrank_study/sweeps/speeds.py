"""Measure how fast this machine trains: time a few steps of each kind of pack.

    >>> speeds = Speeds(device=torch.device("cpu"), threads=1)
    >>> speeds.seconds([rank_4, rank_8])
    38.2

Runs of one kind share the model, the precision, the method, the target and about the length of
their texts. A kind is measured once, by the session that trains (`training/fit.py`). The number of
operations (`effort.py`) then gives the time of other ranks and other numbers of texts.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from lowrank_study.loaded import splits_of
from lowrank_study.spec import Asset, RunSpec
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.updates import DenseUpdate
from lowrank_study.sweeps.effort import Effort
from lowrank_study.training.batches import Batch
from lowrank_study.training.fit import Job, Session
from lowrank_study.training.models import model_without_weights
from lowrank_study.training.tracking import Tracker

_STEPS = 3
"""Most timed steps, after one that fills caches."""
_ENOUGH_SECONDS = 2.0
"""No further step is timed after this time, and no further text is read."""
_EVALUATED = 128
"""Texts of validation in the timed evaluation, after one of a few texts."""
_SECONDS_TO_END = 0.1
"""Time to write the record of a run, and to load the data again."""
_SECONDS_TO_SAVE = 0.2
"""Time to save the adapter and the predictions of a reported run, and to measure its factors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of a kind of packs."""

    building: float
    """Seconds until the second step, less the time of one step."""
    training: float
    """Operations per second, over all runs of the pack."""
    evaluation: float
    """Operations per second, of one run after the other."""


class Speeds:
    """Predicts the time of packs on one device, and remembers the speeds that it measured."""

    def __init__(self, *, device: torch.device, threads: int) -> None:
        self.effort = Effort()
        self._device, self._threads = device, threads
        self._known: dict[tuple[object, ...], Speed] = {}
        self._spectra: dict[Asset, float] = {}

    def seconds(self, pack: Sequence[RunSpec], shares: Mapping[str, float] = {}) -> float:
        """Return how long one process will take for a pack; it computes with the largest rank.

        Args:
            pack: The runs.
            shares: Run id → share of its steps after which a run is stopped; 1 for others.
        """
        effort, speed = self.effort, self._of(pack)
        training = max(effort.training(spec) for spec in pack) / speed.training
        evaluation = max(effort.evaluation(spec) for spec in pack) / speed.evaluation
        whole_runs = sum(shares.get(spec.run_id, 1.0) for spec in pack)
        ended = sum(map(self._ending, pack))
        return speed.building + whole_runs * (training + evaluation) + ended

    def _ending(self, spec: RunSpec) -> float:
        """Return the seconds that it takes to save a run, and to measure its spectra."""
        if not spec.train.read_test:
            return _SECONDS_TO_END
        seconds = _SECONDS_TO_END + _SECONDS_TO_SAVE
        method = spec.method
        if method.is_adapter or method.is_baseline or method.why_no_updates:
            return seconds
        if spec.model.source not in self._spectra:
            with _threads(self._threads):
                self._spectra[spec.model.source] = _spectra_seconds(spec)
        return seconds + self._spectra[spec.model.source]

    def _of(self, pack: Sequence[RunSpec]) -> Speed:
        task, model, train, method = pack[-1].task, pack[-1].model, pack[-1].train, pack[-1].method
        length = splits_of(pack[-1]).train.lengths.mean()
        key: tuple[object, ...] = (type(task), model.source, model.dropout, len(pack))
        key += (round(math.log2(length)), train.precision, train.batch_size, train.reference)
        key += (method.name, method.target_label)
        if key not in self._known:
            with _threads(self._threads):
                self._known[key] = self._measured(pack)
        return self._known[key]

    def _measured(self, pack: Sequence[RunSpec]) -> Speed:
        jobs = [Job(spec=spec, checkpoint_folder=Path(), tracker=Tracker()) for spec in pack]
        start = time.perf_counter()
        session = Session(jobs, self._device)
        building = time.perf_counter() - start
        largest = max(pack, key=self.effort.training)
        trained, evaluated = self.effort.a_token(largest)
        first, *batches = islice(session.batches(), 1 + _STEPS)
        first_step = _seconds_of(session, first)
        seconds, tokens = 0.0, 0
        for batch in batches or [first]:
            seconds, tokens = seconds + _seconds_of(session, batch), tokens + len(batch.ids_T)
            if seconds > _ENOUGH_SECONDS:
                break
        # The first step also compiles code and fills caches.
        building += max(0.0, first_step - seconds * len(first.ids_T) / tokens)
        for count in (_EVALUATED // 8, _EVALUATED):
            some = splits_of(pack[0]).validation.first(count)
            start = time.perf_counter()
            session.read(some)
            reading = time.perf_counter() - start
            if reading > _ENOUGH_SECONDS:
                break
        return Speed(
            building=building,
            training=len(pack) * trained * tokens / seconds,
            evaluation=evaluated * float(some.lengths.sum()) / reading,
        )


def _seconds_of(session: Session, batch: Batch) -> float:
    """Return the seconds of one training step."""
    start = time.perf_counter()
    session.step(batch)
    return time.perf_counter() - start


def _spectra_seconds(spec: RunSpec) -> float:
    """Return the seconds to measure the updates of full fine-tuning, by one of each shape."""
    shapes = Counter(p.shape for p in model_without_weights(spec).parameters() if p.ndim == 2)
    seconds = 0.0
    for shape, count in shapes.items():
        before_OI, delta_OI = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
        update = DenseUpdate(
            name="",
            layer=None,
            role="",
            storage_dtype="float32",
            W0_OI=before_OI,
            delta_OI=delta_OI,
        )
        start = time.perf_counter()
        measure(update, method="gram")
        seconds += count * (time.perf_counter() - start)
    return seconds


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
