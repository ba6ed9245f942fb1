"""Adapters of MLX equal the products that mlx_lm's own `fuse` forms."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError

WriteMlx = Callable[..., Path]
LORA_A = torch.arange(12.0).reshape(6, 2)  # (in, rank)
LORA_B = torch.arange(10.0).reshape(2, 5) - 3  # (rank, out)
LINEAR = {"layers.0.q.lora_a": LORA_A, "layers.0.q.lora_b": LORA_B}
FUSED = (LORA_B.T.double() @ LORA_A.T.double()).numpy()
CONFIG = {
    "fine_tune_type": "lora",
    "num_layers": 16,
    "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["q"]},
}


@pytest.fixture
def write_mlx(tmp_path: Path) -> WriteMlx:
    """Write an adapter as mlx_lm.lora does."""

    def write(
        tensors: dict[str, torch.Tensor], config: dict[str, Any], folder: str = "mlx"
    ) -> Path:
        path = tmp_path / folder
        path.mkdir()
        save_file(
            {name: value.clone().contiguous() for name, value in tensors.items()},
            path / "adapters.safetensors",
        )
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    return write


def test_factors_are_stored_transposed(write_mlx: WriteMlx) -> None:
    path = write_mlx(LINEAR, CONFIG)
    for given in (path, path / "adapters.safetensors"):
        with open_adapter(given) as adapter:
            assert adapter.kind == "lora"
            factors = adapter.factors("layers.0.q")
            assert (factors.B_OR.shape, factors.A_RI.shape) == ((5, 2), (2, 6))
            assert factors.scaling == 20.0
            np.testing.assert_array_equal(adapter.delta("layers.0.q"), 20 * FUSED)


def test_the_factor_until_2024_was_scale_times_alpha_over_rank(write_mlx: WriteMlx) -> None:
    settings = {"rank": 2, "alpha": 16, "scale": 10.0, "dropout": 0.0}
    with open_adapter(write_mlx(LINEAR, {"lora_parameters": settings})) as adapter:
        assert adapter.factors("layers.0.q").scaling == 80.0
        assert any("until 2024" in flag for flag in adapter.flags)


def test_an_embedding_is_not_transposed(write_mlx: WriteMlx, write_model: Any) -> None:
    tensors = {"model.embed_tokens.lora_a": LORA_A, "model.embed_tokens.lora_b": LORA_B}
    base = write_model({"model.embed_tokens.weight": torch.ones(6, 5)})
    with open_adapter(write_mlx(tensors, CONFIG)) as adapter, open_weights(base) as weights:
        expected = 20 * (LORA_A.double() @ LORA_B.double()).numpy()  # (tokens, dimensions)
        np.testing.assert_array_equal(adapter.delta("model.embed_tokens", weights), expected)


def test_dora_scales_rows(write_mlx: WriteMlx, write_model: Any) -> None:
    torch.manual_seed(0)
    W0, m = torch.randn(5, 6), torch.rand(5) + 0.5
    base = write_model({"layers.0.q.weight": W0})
    path = write_mlx(LINEAR | {"layers.0.q.m": m}, CONFIG | {"fine_tune_type": "dora"})
    tuned = W0.double() + 20 * torch.from_numpy(FUSED)
    expected = (m.double() / tuned.norm(dim=1))[:, None] * tuned - W0.double()
    with open_adapter(path) as adapter, open_weights(base) as weights:
        assert adapter.kind == "dora"
        np.testing.assert_allclose(
            adapter.delta("layers.0.q", weights), expected.numpy(), rtol=0, atol=1e-12
        )


def test_full_fine_tuning_has_full_weights(write_mlx: WriteMlx, write_model: Any) -> None:
    path = write_mlx({"layers.0.q.weight": torch.full((5, 6), 3.0)}, {"fine_tune_type": "full"})
    base = write_model({"layers.0.q.weight": torch.ones(5, 6)})
    with open_adapter(path) as adapter, open_weights(base) as weights:
        assert adapter.modules() == []
        delta = adapter.saved_delta("layers.0.q.weight", weights)
        np.testing.assert_array_equal(delta, np.full((5, 6), 2.0))


def test_experts_are_left_out_with_their_share(write_mlx: WriteMlx) -> None:
    experts = {
        "layers.0.switch.up.lora_a": torch.ones(3, 2, 6),
        "layers.0.switch.up.lora_b": torch.ones(3, 5, 2),
    }
    with open_adapter(write_mlx(LINEAR | experts, CONFIG)) as adapter:
        assert adapter.modules() == ["layers.0.q"]
        (part,) = adapter.left_out
        assert (part.count, part.total) == (36 + 30, 36 + 30 + 22)
        assert "stack of experts" in part.why


@pytest.mark.parametrize(
    ("tensors", "change", "message"),
    [
        (LINEAR, {"lora_parameters": None}, "lora_parameters is None, so the scale"),
        (LINEAR, {"lora_parameters": {"rank": 2}}, "scale is None, not a number"),
        (LINEAR, {"lora_parameters": {"rank": 4, "scale": 1.0}}, "rank 2, but its config says 4"),
        (LINEAR, {"fine_tune_type": "bitfit"}, "fine_tune_type bitfit .*mlx_lm.fuse"),
        ({"layers.0.q.lora_a": LORA_A}, {}, "has A but no B"),
        (LINEAR, {"fine_tune_type": "dora"}, "has A, B but no magnitude"),
    ],
    ids=str,
)
def test_unreadable_adapters_are_refused(
    write_mlx: WriteMlx, tensors: dict[str, torch.Tensor], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter(write_mlx(tensors, CONFIG | change))


def test_the_old_npz_is_refused_with_the_remedy(write_mlx: WriteMlx) -> None:
    path = write_mlx(LINEAR, CONFIG)
    (path / "adapters.safetensors").rename(path / "adapters.npz")
    with pytest.raises(InputError, match=r"MLX's old format; save it as adapters\.safetensors"):
        open_adapter(path)
