"""The time of a pack follows from a few steps of its kind."""

import time

import pytest
import torch

from lowrank_study.config.run import compose
from lowrank_study.loaded import splits_of
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.speeds import Speed, Speeds
from lowrank_study.training.batches import Batch, steps_of
from lowrank_study.training.fit import Session


def make_pack(tiny_overrides: list[str], *overrides: str, runs: int = 1) -> list[RunSpec]:
    return [
        compose(*tiny_overrides, "method.rank=2", *overrides, f"seed={seed}", "data_seed=0")
        for seed in range(runs)
    ]


def on_cpu() -> Speeds:
    return Speeds(device=torch.device("cpu"), threads=1)


def test_a_kind_of_pack_is_measured_once(
    tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def measure(self: Speeds, pack: list[RunSpec]) -> Speed:
        measured.append(len(pack))
        return Speed(building=0.0, training=1e9, evaluation=1e9)

    monkeypatch.setattr(Speeds, "_measured", measure)
    speeds = on_cpu()
    for pack in (
        make_pack(tiny_overrides),
        make_pack(tiny_overrides, "method.rank=4"),
        make_pack(tiny_overrides, "trainer.epochs=3"),
        make_pack(tiny_overrides, runs=3),
        make_pack(tiny_overrides, "method.target=all_linear"),
    ):
        speeds.seconds(pack)
    assert measured == [1, 3, 1]


def test_the_time_of_steps_counts(
    tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seconds = Session.step, 0.1

    def slow_step(self: Session, batch: Batch) -> None:
        time.sleep(seconds)
        step(self, batch)

    monkeypatch.setattr(Session, "step", slow_step)
    pack = make_pack(tiny_overrides, "trainer.epochs=30")
    train = splits_of(pack[0]).train
    steps = steps_of(train, batch_size=pack[0].train.batch_size, epochs=30)
    assert on_cpu().seconds(pack) > 0.8 * seconds * steps
