"""Launchers are found by name, and know where workers run."""

from pathlib import Path

import pytest
import torch

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.sweeps.launch import launcher_of, local
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.training import fit


def test_an_unknown_launcher_is_refused_before_anything_is_written(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    spec = compose(*tiny_overrides, "method.rank=2")
    with pytest.raises(InputError, match=r"launcher='slrum': valid are inline, local"):
        sweep([spec], name="x", results=tmp_path / "results", launcher="slrum")
    assert not (tmp_path / "results").exists()


def test_every_launcher_has_places() -> None:
    for name in ("inline", "local"):
        [place] = launcher_of(name).places(1, "cpu", 3)
        assert place.device == "cpu"


@pytest.mark.parametrize(
    ("device", "workers", "devices"),
    [
        ("cuda", None, ["cuda:0", "cuda:1"]),
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", None, ["cuda:1"]),
        ("mps", None, ["mps"]),
        ("cpu", 1, ["cpu"]),
    ],
)
def test_workers_run_in_the_requested_places(
    device: str, workers: int | None, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "torch_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    places = local.places(workers, device, 9)
    assert [place.device for place in places] == devices
    assert all((place.cores != "") == (device == "cpu") for place in places)
