"""safetensors files are read exactly, or refused with the fault in their header."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.conftest import ONE


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100, 2**32])
def test_a_header_longer_than_the_file_is_refused(write_raw: Any, length: int) -> None:
    path = write_raw({}, length=length)
    with pytest.raises(InputError, match=f"says its header has {length} bytes"):
        open_weights(path)


def test_a_bloated_header_is_refused_before_it_is_parsed(
    write_raw: Any, refused_in_budget: Any
) -> None:
    many = ",".join(
        f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(500_000)
    )
    path = write_raw(("{" + many + "}").encode())
    assert path.stat().st_size > 25e6
    assert "more than 200000 tensors" in refused_in_budget(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}", "not valid JSON"),
        (b'{"a":' + b"[" * 2_000_000, "more than any real checkpoint"),
        (b'{"__metadata__":{' + b'"a":0,' * 1_400_000 + b'"b":1}}', "more than any real"),
        (b'{"__metadata__":{' + b'"a":0,' * 450_000 + b'"b":1}}', "occurs twice"),
        (b'{"' + b"a" * 30_000_000 + b'":{}}', "needs exactly dtype"),
        (b"{" + b" " * (33 * 2**20) + b"}", "above the limit"),
        (b'{"a":' + b"1" * 5_000_000 + b"}", "not valid JSON"),
    ],
    ids=["deep", "deeper", "entries", "twice", "long name", "blanks", "long number"],
)
def test_other_costly_headers_are_refused_in_time(
    write_raw: Any, refused_in_budget: Any, header: bytes, message: str
) -> None:
    assert message in refused_in_budget(write_raw(header))


def test_a_fault_behind_many_tensors_is_found_in_time(
    write_raw: Any, entry: Any, refused_in_budget: Any
) -> None:
    header = {
        f"model.layers.{i // 1000}.mlp.experts.{i}.down_proj.weight": entry(i, i + 1, [1, 1], "U8")
        for i in range(75_000)
    }
    assert "after the last tensor" in refused_in_budget(write_raw(header, bytes(75_001)))


def test_as_many_tensors_as_allowed_are_opened(write_raw: Any, entry: Any) -> None:
    path = write_raw({str(i): entry(0, 0, [0]) for i in range(3)} | {"w": entry(0, 4, [1])}, ONE)
    with open_weights(path) as weights:
        assert weights.names() == ["w"]


def test_a_name_given_twice_is_refused(write_raw: Any) -> None:
    one = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'
    with pytest.raises(InputError, match="the name w occurs twice"):
        open_weights(write_raw(b'{"w":{' + one + b'},"w":{' + one + b"}}", ONE))
    with pytest.raises(InputError, match="the name dtype occurs twice"):
        open_weights(write_raw(b'{"w":{"dtype":"F16",' + one + b"}}", ONE))


def test_overlapping_offsets_and_gaps_are_refused(write_raw: Any, entry: Any) -> None:
    overlap = {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}
    with pytest.raises(InputError, match="tensor b overlaps the tensor before it"):
        open_weights(write_raw(overlap, ONE * 3))
    hole = {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}
    with pytest.raises(InputError, match="tensor b leaves a gap"):
        open_weights(write_raw(hole, ONE * 3))
    with pytest.raises(InputError, match="tensor a leaves a gap"):
        open_weights(write_raw({"a": entry(4, 8, [1])}, ONE * 2))
    same = {"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}
    with pytest.raises(InputError, match="overlaps"):
        open_weights(write_raw(same, ONE))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2]},
        {"shape": [2**62, 2**62]},
        {"shape": [-1]},
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": "1"},
        {"shape": [1] * 17},
        {"shape": None},
        {"data_offsets": [0, 2**70]},
        {"data_offsets": [4, 0]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [False, 4]},
        {"data_offsets": {"0": 4}},
        {"dtype": "F4"},
        {"dtype": 32},
        {"dtype": ["F32"]},
        {"dtype": "F16"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused(
    write_raw: Any, entry: Any, change: dict[str, Any]
) -> None:
    path = write_raw({"w": entry(0, 4, [1]) | change}, ONE)
    with pytest.raises(InputError, match="tensor w"):
        open_weights(path)


def test_an_empty_tensor_with_a_huge_axis_is_skipped(write_raw: Any, entry: Any) -> None:
    path = write_raw({"e": entry(0, 0, [0, 2**40]), "w": entry(0, 4, [1])}, ONE)
    with open_weights(path) as weights:
        assert weights.names() == ["w"]
        assert weights.skipped == {"e": "empty, shape [0, 1099511627776]"}
        with pytest.raises(InputError, match="tensor e can't be read as weights"):
            weights.read("e")


def test_trailing_bytes_are_refused(write_raw: Any, entry: Any) -> None:
    with pytest.raises(InputError, match="1 bytes after the last tensor"):
        open_weights(write_raw({"w": entry(0, 4, [1])}, ONE + b"\0"))


def test_a_name_that_is_not_unicode_is_refused(write_raw: Any) -> None:
    path = write_raw(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', ONE)
    with pytest.raises(InputError, match="not valid Unicode"):
        open_weights(path)


def test_a_truncated_file_is_refused_at_every_length(write_model: Any, tmp_path: Path) -> None:
    whole = (write_model({"w": torch.ones(3, 2)}) / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"truncated|too short|get it again|not safetensors"):
            open_weights(cut)
    cut.write_bytes(whole)
    with open_weights(cut) as weights:
        assert weights.names() == ["w"]


FLOATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_is_read_exactly(write_model: Any, name: str) -> None:
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
def test_all_65536_bit_patterns_agree_with_torch(write_model: Any, name: str) -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(FLOATS[name])
    with open_weights(write_model({"w": bits})) as weights:
        np.testing.assert_array_equal(weights.read("w"), bits.float().numpy())
