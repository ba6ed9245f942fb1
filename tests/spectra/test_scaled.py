"""The rounding floor of scaled float8 agrees with the real rounding error."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import Match, open_weights, pair
from lowrank_study.config.run import composed
from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.records import MeasuredMatrix
from lowrank_study.measurement.request import read_request
from lowrank_study.measurement.subjects import CheckpointPair
from lowrank_study.spectra.scaled import floor_of_scaled

BLOCK = 64


def quantised(W: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Store W in float8 with one scale, one per row, or one per block of 64 x 64."""
    if kind == "block":
        grid = W.reshape(W.shape[0] // BLOCK, BLOCK, W.shape[1] // BLOCK, BLOCK)
        scale = grid.abs().amax(dim=(1, 3)) / 448
        whole = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    elif kind == "row":
        whole = scale = W.abs().amax(dim=1, keepdim=True) / 448
    else:
        whole = scale = W.abs().max() / 448
    return (W / whole).to(torch.float8_e4m3fn), scale


def written(folder: Path, W: torch.Tensor, kind: str) -> Path:
    folder.mkdir()
    config: dict[str, Any] = {}
    tensors = {"q.weight": W}
    if kind != "plain":
        stored, scale = quantised(W, kind)
        name = "q.weight_scale_inv" if kind == "block" else "q.weight_scale"
        tensors = {"q.weight": stored, name: scale}
        config = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def weights_before_and_after() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights of usual size, with rows of different size, and a change of rank 4."""
    random = torch.Generator().manual_seed(0)
    W0 = 0.02 * torch.randn(192, 256, generator=random) * torch.linspace(0.2, 1, 192)[:, None]
    change = torch.randn(192, 4, generator=random) @ torch.randn(4, 256, generator=random)
    return W0, W0 + 0.004 * change


@pytest.mark.parametrize(
    ("before", "after"),
    [("block", "block"), ("row", "row"), ("one", "one"), ("plain", "block"), ("row", "plain")],
)
def test_the_floor_is_the_error_that_was_made(tmp_path: Path, before: str, after: str) -> None:
    W0, W = weights_before_and_after()
    left = open_weights(written(tmp_path / "before", W0, before))
    right = open_weights(written(tmp_path / "after", W, after))
    (match,) = pair(left, right).matches
    stored_W0, stored_W = match.read()
    delta = stored_W.astype(np.float64) - stored_W0
    error = delta - (W - W0).double().numpy()
    floor = floor_of_scaled(match, stored_W0, delta)
    assert floor.frobenius_norm == pytest.approx(np.linalg.norm(error), rel=0.1)
    assert 1.0 < floor.edge / np.linalg.norm(error, 2) < 1.35


def measured(before: Path, after: Path) -> MeasuredMatrix:
    settings = read_request(composed("measure_spectra") | {"before": "a", "after": "b"}).settings
    found = measure_spectra(
        CheckpointPair(before=before, after=after),
        other=None,
        settings=settings,
        on_progress=lambda step: None,
        on_left_out=print,
    )
    return found.matrices[0]


def test_true_directions_above_the_floor_are_resolved(tmp_path: Path) -> None:
    W0, W = weights_before_and_after()
    before = written(tmp_path / "before", W0, "block")
    found = measured(before, written(tmp_path / "after", W, "block"))
    assert found.spectrum.storage_dtype == "float8_e4m3fn"
    assert found.readings["energy_rank_90"].value == 4
    assert found.readings["numerical_rank"].value == 4


def test_a_change_that_rounding_hides_is_not_resolved(tmp_path: Path) -> None:
    W0, W = weights_before_and_after()
    before = written(tmp_path / "before", W0, "block")
    found = measured(before, written(tmp_path / "after", W0 + (W - W0) / 100, "block"))
    assert found.readings["energy_rank_90"].status == "not resolvable"


def test_zeros_have_the_smallest_step(tmp_path: Path) -> None:
    W0, W = weights_before_and_after()
    W0[:64], W[:64] = 0.0, 0.0
    W0[0, 0], W[0, 0] = 1e-3, 2e-3
    left = open_weights(written(tmp_path / "before", W0, "one"))
    right = open_weights(written(tmp_path / "after", W, "one"))
    match: Match = pair(left, right).matches[0]
    stored_W0, stored_W = match.read()
    floor = floor_of_scaled(match, stored_W0, stored_W.astype(np.float64) - stored_W0)
    error = np.linalg.norm(stored_W - stored_W0 - (W - W0).numpy())
    assert floor.frobenius_norm == pytest.approx(error, rel=0.1)
