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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from lowrank_study.loaded import splits_of
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.effort import Effort
from lowrank_study.training.fit import Job, Session
from lowrank_study.training.tracking import Tracker

_STEPS = 3
"""Timed steps, after one that fills caches."""
_EVALUATED = 128
"""Texts of validation in the timed evaluation, after one of a few texts."""
_SECONDS_A_RUN = 0.3
"""Time to save a run and measure its spectra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of a kind of packs."""

    building: float
    """Seconds until the first step."""
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

    def seconds(self, pack: Sequence[RunSpec]) -> float:
        """Return how long one process will take for a pack; it computes with the largest rank."""
        effort = self.effort
        training = max(effort.training(spec) for spec in pack)
        evaluation = max(effort.evaluation(spec) for spec in pack)
        speed = self._of(pack)
        each = training / speed.training + evaluation / speed.evaluation + _SECONDS_A_RUN
        return speed.building + len(pack) * each

    def _of(self, pack: Sequence[RunSpec]) -> Speed:
        model, train, method = pack[-1].model, pack[-1].train, pack[-1].method
        length = splits_of(pack[-1]).train.lengths.mean()
        key: tuple[object, ...] = (model.source, model.dropout, len(pack), round(math.log2(length)))
        key += (
            train.precision,
            train.batch_size,
            train.reference,
            method.name,
            method.target_label,
        )
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
        session.step(first)
        start = time.perf_counter()
        for batch in batches or [first]:
            session.step(batch)
        seconds = time.perf_counter() - start
        tokens = sum(len(batch.ids_T) for batch in batches or [first])
        validation = splits_of(pack[0]).validation
        session.read(validation.first(_EVALUATED // 8))
        some = validation.first(_EVALUATED)
        start = time.perf_counter()
        session.read(some)
        reading = time.perf_counter() - start
        return Speed(
            building=building,
            training=len(pack) * trained * tokens / seconds,
            evaluation=evaluated * float(some.lengths.sum()) / reading,
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
