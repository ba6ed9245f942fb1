"""Classes 28 to 34: how numbers are stored."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import find_matrices, open_weights, pair
from lowrank_study.errors import InputError

FLOATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@pytest.mark.parametrize("name", FLOATS)
def test_28_every_float_is_read_exactly(write_model: Any, name: str) -> None:
    torch.manual_seed(0)
    value = torch.cat(
        [torch.randn(64, dtype=torch.float64), torch.tensor([0.0, -0.0, 6e-8, 6e4, 1e-3])]
    ).to(FLOATS[name])
    with open_weights(write_model({"w": value})) as weights:
        read = weights.read("w")
        assert weights.dtype("w") == name
    assert read.dtype == (np.float64 if name == "float64" else np.float32)
    np.testing.assert_array_equal(read, value.double().numpy())
    np.testing.assert_array_equal(np.signbit(read), np.signbit(value.double().numpy()))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_28_all_65536_bit_patterns_agree_with_torch(write_model: Any, name: str) -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(FLOATS[name])
    with open_weights(write_model({"w": bits})) as weights:
        np.testing.assert_array_equal(weights.read("w"), bits.float().numpy())


def test_29_33_storage_and_extreme_values_reach_the_spectrum_unchanged(write_model: Any) -> None:
    before = {"w": torch.full((2, 2), 1e30), "v": torch.ones(2, 2, dtype=torch.bfloat16)}
    after = {"w": torch.full((2, 2), -3e38), "v": torch.ones(2, 2, dtype=torch.float16)}
    a, b = write_model(before, folder="a"), write_model(after, folder="b")
    with open_weights(a) as left, open_weights(b) as right:
        pairing = pair(left, right)
        found = {match.name: (match.storage_dtype, w) for match, _, w in pairing.read_matrices()}
        assert found["w"][0] == "float32"
        np.testing.assert_array_equal(found["w"][1], after["w"].numpy())
        assert found["v"][0] == "bfloat16"  # of the two, the one with fewer significant bits
        assert any("bfloat16: each difference" in flag for flag in pairing.flags)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_30_all_256_float8_values_agree_with_torch(write_model: Any, name: str) -> None:
    value = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, name))
    model = {"w": value, "w_scale": torch.tensor(0.5)}
    with open_weights(write_model(model)) as weights:
        np.testing.assert_array_equal(weights.read("w"), value.double().numpy() * 0.5)
        assert weights.names() == ["w"]
        assert weights.skipped == {"w_scale": "a scale of float8 values"}
        assert "float8 weights dequantised with their scales" in weights.flags


@pytest.mark.parametrize("scales", ["one", "row", "flat rows", "block", "comfy"])
def test_30_float8_is_multiplied_by_its_scales(write_model: Any, scales: str) -> None:
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
def test_30_float8_without_clear_scales_is_refused(
    write_model: Any, extra: dict[str, torch.Tensor], message: str
) -> None:
    path = write_model({"w": torch.ones(4, 4).to(torch.float8_e5m2)} | extra)
    with pytest.raises(InputError, match=message):
        open_weights(path)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"q.qweight": torch.ones(2, 2, dtype=torch.int32)}, {}, "GPTQ or AWQ"),
        ({"q.SCB": torch.ones(2)}, {}, "bitsandbytes int8"),
        ({"q.weight.absmax": torch.ones(2)}, {}, "bitsandbytes 4-bit"),
        ({"q.weight_packed": torch.ones(2, 2, dtype=torch.int32)}, {}, "compressed-tensors"),
        (
            {
                "q.weight": torch.ones(4, 2, dtype=torch.uint8),
                "q.weight_scale": torch.ones(4, 1).to(torch.float8_e4m3fn),
                "q.weight_scale_2": torch.ones(()),
            },
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
            "q.weight_scale_2 is NVFP4 quantised",
        ),
        (
            {
                "q.weight_packed": torch.ones(4, 2, dtype=torch.uint8),
                "q.weight_global_scale": torch.ones(1),
            },
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "NVFP4",
        ),
        ({"q.W_q": torch.ones(4, 2, dtype=torch.uint8), "q.scale": torch.ones(4, 1)}, {}, "HQQ"),
        (
            {
                "q.weight": torch.ones(4, 2, dtype=torch.uint32),
                "q.scales": torch.ones(4, 1),
                "q.biases": torch.ones(4, 1),
            },
            {},
            "MLX quantised.*mlx_lm.convert --dequantize",
        ),
        ({"experts.down_proj_blocks": torch.ones(2, dtype=torch.uint8)}, {}, "MXFP4"),
        ({"q.weight": torch.ones(2, 2, dtype=torch.int8)}, {}, "int8 without known scales"),
        (
            {"q.weight": torch.ones(2, 2, dtype=torch.int8)},
            {"quantization_config": {"quant_method": "quanto"}},
            "quantised by quanto",
        ),
        (
            {"q.weight": torch.ones(2, 2, dtype=torch.uint8)},
            {"quantization_config": "odd"},
            "quantised by odd",
        ),
    ],
    ids=[
        "gptq",
        "int8",
        "nf4",
        "packed",
        "nvfp4",
        "nvfp4 packed",
        "hqq",
        "mlx",
        "mxfp4",
        "plain int8",
        "config",
        "odd config",
    ],
)
def test_31_packed_integers_are_refused_by_name(
    write_model: Any, tensors: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    path = write_model(tensors, config)
    with pytest.raises(InputError, match=message):
        open_weights(path)


def test_31_counters_and_masks_are_skipped(write_model: Any) -> None:
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


KINDS = [
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.BF16,
    gguf.GGMLQuantizationType.Q4_0,
    gguf.GGMLQuantizationType.Q4_1,
    gguf.GGMLQuantizationType.Q5_0,
    gguf.GGMLQuantizationType.Q5_1,
    gguf.GGMLQuantizationType.Q8_0,
]


def write_gguf(path: Path, tensors: dict[str, np.ndarray], kind: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    for name, value in tensors.items():
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_32_gguf_is_dequantised_through_its_library(
    tmp_path: Path, rng: np.random.Generator, kind: gguf.GGMLQuantizationType
) -> None:
    value = rng.standard_normal((6, 64)).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", {"a.weight": value, "b.weight": 2 * value}, kind)
    expected = gguf.dequantize(gguf.quantize(value, kind), kind)
    for given in (path, tmp_path):
        with open_weights(given) as weights:
            assert weights.names() == ["a.weight", "b.weight"]
            assert weights.shape("a.weight") == (6, 64)
            np.testing.assert_array_equal(weights.read("a.weight"), expected)
            np.testing.assert_array_equal(weights.read_rows("a.weight", 2, 5), expected[2:5])
            assert weights.metadata["general.architecture"] == "llama"
            quantised = kind.name.startswith("Q")
            flag = f"GGUF dequantised from {kind.name}: not the original weights"
            assert weights.flags == (flag if quantised else "read from GGUF",)


def test_32_the_library_reads_the_same_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    values = {f"w{i}": rng.standard_normal((i + 1, 32)).astype(np.float32) for i in range(5)}
    path = write_gguf(tmp_path / "m.gguf", values, gguf.GGMLQuantizationType.Q8_0)
    with open_weights(path) as weights:
        for tensor in gguf.GGUFReader(path).tensors:
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(weights.read(tensor.name), expected)


def test_32_a_truncated_gguf_is_refused_at_every_length(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        {"w": np.ones((2, 32), np.float32)},
        gguf.GGMLQuantizationType.Q8_0,
    )
    whole = path.read_bytes()
    with open_weights(path) as weights:
        end = weights.info("w").stop
    for length in range(4, end):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m.gguf"):
            open_weights(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((2**63).to_bytes(8, "little") + bytes(8), "are too many"),
        (bytes(8) + (2**63).to_bytes(8, "little"), "are too many"),
        (
            bytes(8)
            + (1).to_bytes(8, "little")
            + (1).to_bytes(8, "little")
            + b"k"
            + (9).to_bytes(4, "little")
            + (8).to_bytes(4, "little")
            + (2**62).to_bytes(8, "little")
            + bytes(40_000_000),
            "more than 2000000 strings",
        ),
        (
            bytes(8)
            + (1).to_bytes(8, "little")
            + (1).to_bytes(8, "little")
            + b"k"
            + (9).to_bytes(4, "little")
            + (0).to_bytes(4, "little")
            + (2**62).to_bytes(8, "little"),
            "runs past byte",
        ),
        (
            bytes(8)
            + (1).to_bytes(8, "little")
            + (1).to_bytes(8, "little")
            + b"k"
            + (77).to_bytes(4, "little"),
            "unknown type 77",
        ),
    ],
    ids=["tensors", "settings", "strings", "array", "type"],
)
def test_32_hostile_counts_in_a_gguf_are_refused_in_time(
    tmp_path: Path, refused_in_budget: Any, body: bytes, message: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + body)
    assert message in refused_in_budget(path)


def test_34_mixed_dtypes_are_flagged(write_model: Any) -> None:
    path = write_model({"a": torch.ones(2, 2), "b": torch.ones(2, 2, dtype=torch.bfloat16)})
    with open_weights(path) as weights:
        assert weights.flags == ("mixed storage dtypes: bfloat16, float32",)
