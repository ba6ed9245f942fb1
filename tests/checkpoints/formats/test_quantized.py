"""float8 weights are read with their scales; other packed weights are refused."""

from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import find_matrices, open_weights
from lowrank_study.errors import InputError


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_all_256_float8_values_agree_with_torch(write_model: Any, name: str) -> None:
    value = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, name))
    model = {"w": value, "w_scale": torch.tensor(0.5)}
    with open_weights(write_model(model)) as weights:
        np.testing.assert_array_equal(weights.read("w"), value.double().numpy() * 0.5)
        assert weights.names() == ["w"]
        assert weights.skipped == {"w_scale": "a scale of float8 values"}
        assert "float8 weights dequantised with their scales" in weights.flags


@pytest.mark.parametrize("scales", ["one", "row", "flat rows", "block", "comfy"])
def test_float8_is_multiplied_by_its_scales(write_model: Any, scales: str) -> None:
    torch.manual_seed(0)
    value = torch.randn(5, 7).to(torch.float8_e4m3fn)
    stored, plain = {"q.weight": value}, value.double()
    config: dict[str, Any] = {}
    match scales:
        case "one":
            stored["q.weight_scale"] = torch.rand(1)
            expected = plain * stored["q.weight_scale"].double()
        case "row":
            stored["q.weight_scale"] = torch.rand(5, 1)
            expected = plain * stored["q.weight_scale"].double()
        case "flat rows":
            stored["q.weight_scale"] = torch.rand(5).to(torch.bfloat16)
            expected = plain * stored["q.weight_scale"].double()[:, None]
        case "comfy":
            stored["q.scale_weight"] = torch.rand(())
            expected = plain * stored["q.scale_weight"].double()
        case _:
            config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
            stored["q.weight_scale_inv"] = torch.rand(3, 3)
            blocks = stored["q.weight_scale_inv"].double()
            expected = plain * blocks.repeat_interleave(2, 0)[:5].repeat_interleave(3, 1)[:, :7]
    with open_weights(write_model(stored, config)) as weights:
        read = weights.read("q.weight")
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, expected.numpy())
        np.testing.assert_array_equal(weights.read_rows("q.weight", 2, 4), expected.numpy()[2:4])
        matrices, _ = find_matrices(weights)
        assert list(matrices) == ["q"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "with 0 scale tensors"),
        ({"w_scale": torch.ones(1), "w_scale_inv": torch.ones(1)}, "with 2 scale tensors"),
        ({"w_scale": torch.ones(2, 2)}, "neither one, one per row"),
        ({"w_scale": torch.ones(1, dtype=torch.int32)}, "of dtype int32"),
    ],
    ids=["none", "two", "odd shape", "integer"],
)
def test_float8_without_clear_scales_is_refused(
    write_model: Any, extra: dict[str, torch.Tensor], message: str
) -> None:
    path = write_model({"w": torch.ones(4, 4).to(torch.float8_e5m2)} | extra)
    with pytest.raises(InputError, match=message):
        open_weights(path)


def integers(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype)


ONES = torch.ones(4, 1)
PACKED: dict[str, tuple[dict[str, torch.Tensor], Any, str]] = {
    "gptq": ({"q.qweight": integers(2, 2, dtype=torch.int32)}, None, "GPTQ or AWQ"),
    "int8": ({"q.SCB": ONES}, None, "bitsandbytes int8"),
    "nf4": ({"q.weight.absmax": ONES}, None, "bitsandbytes 4-bit"),
    "packed": ({"q.weight_packed": integers(2, 2)}, None, "compressed-tensors"),
    "nvfp4": (
        {
            "q.weight": integers(4, 2),
            "q.weight_scale": ONES.to(torch.float8_e4m3fn),
            "q.weight_scale_2": torch.ones(()),
        },
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "q.weight_scale_2 is NVFP4 quantised",
    ),
    "nvfp4 packed": (
        {"q.weight_packed": integers(4, 2), "q.weight_global_scale": torch.ones(1)},
        {"quant_method": "compressed-tensors"},
        "NVFP4",
    ),
    "hqq": ({"q.W_q": integers(4, 2), "q.scale": ONES}, None, "HQQ"),
    "mlx": (
        {"q.weight": integers(4, 2, dtype=torch.uint32), "q.scales": ONES, "q.biases": ONES},
        None,
        "MLX quantised.*mlx_lm.convert --dequantize",
    ),
    "mxfp4": ({"experts.down_proj_blocks": integers(2)}, None, "MXFP4"),
    "plain int8": (
        {"q.weight": integers(2, 2, dtype=torch.int8)}, None, "int8 without known scales"
    ),
    "config": ({"q.weight": integers(2, 2)}, {"quant_method": "quanto"}, "quantised by quanto"),
    "odd config": ({"q.weight": integers(2, 2)}, "odd", "quantised by odd"),
}  # fmt: skip


@pytest.mark.parametrize("scheme", PACKED)
def test_packed_integers_are_refused_by_name(write_model: Any, scheme: str) -> None:
    tensors, quantization, message = PACKED[scheme]
    path = write_model(tensors, quantization and {"quantization_config": quantization})
    with pytest.raises(InputError, match=message):
        open_weights(path)


def test_counters_and_masks_are_skipped(write_model: Any) -> None:
    path = write_model(
        {
            "embeddings.position_ids": torch.arange(4)[None],
            "attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
            "w": torch.ones(2, 2),
        }
    )
    with open_weights(path) as weights:
        assert weights.names() == ["w"]
        assert set(weights.skipped) == {"embeddings.position_ids", "attn.bias"}
        with pytest.raises(InputError, match="int64, a counter or mask"):
            weights.read("embeddings.position_ids")
