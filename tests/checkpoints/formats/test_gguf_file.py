"""GGUF files are dequantised through the gguf library, within bounds."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lowrank_study.checkpoints import open_weights
from lowrank_study.errors import InputError

KINDS = [
    gguf.GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
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
def test_gguf_is_dequantised_through_its_library(
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


def test_a_truncated_gguf_is_refused_at_every_length(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", {"w": np.ones((2, 32), np.float32)}, gguf.GGMLQuantizationType.Q8_0
    )
    whole = path.read_bytes()
    with open_weights(path) as weights:
        end = weights.info("w").stop
    for length in range(4, end):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m.gguf"):
            open_weights(path)


def word(value: int) -> bytes:
    return value.to_bytes(8, "little")


def setting(*kinds: int) -> bytes:
    """Return no tensors, and one setting `k` of the given types."""
    return word(0) + word(1) + word(1) + b"k" + b"".join(k.to_bytes(4, "little") for k in kinds)


HOSTILE = {
    "tensors": (word(2**63) + word(0), "are too many"),
    "settings": (word(0) + word(2**63), "are too many"),
    "strings": (setting(9, 8) + word(2**62) + bytes(40_000_000), "more than 2000000 strings"),
    "array": (setting(9, 0) + word(2**62), "runs past byte"),
    "type": (setting(77), "unknown type 77"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_counts_in_a_gguf_are_refused_in_time(
    tmp_path: Path, refused_in_budget: Any, kind: str
) -> None:
    body, message = HOSTILE[kind]
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + body)
    assert message in refused_in_budget(path)
