"""PyTorch's own files are read on request only, and no code in them runs."""

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import find_matrices, open_weights
from lowrank_study.errors import InputError


@pytest.mark.parametrize("zipped", [True, False])
def test_every_dtype_is_read_exactly(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    state = {
        name: torch.randn(4, 6, dtype=torch.float64).to(getattr(torch, name))
        for name in ("float64", "float32", "bfloat16", "float16")
    } | {"ids": torch.arange(3), "transposed": torch.randn(6, 4).T, "scalar": torch.tensor(2.5)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=zipped)
    with open_weights(path, allow_pickle=True) as weights:
        assert weights.skipped == {"ids": "int64, a counter or mask, not weights"}
        for name in weights.names():
            read = weights.read(name)
            assert read.dtype == (np.float64 if name == "float64" else np.float32)
            np.testing.assert_array_equal(read, state[name].double().numpy())
            if read.ndim:
                np.testing.assert_array_equal(weights.read_rows(name, 1, 3), read[1:3])
        assert set(find_matrices(weights)[0]) == set(weights.names()) - {"scalar"}


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_weights_of_a_training_checkpoint_are_found(tmp_path: Path, key: str) -> None:
    torch.save({key: {"module.w": torch.ones(2)}, "epoch": 3}, tmp_path / "last.pt")
    with open_weights(tmp_path / "last.pt", allow_pickle=True) as weights:
        assert weights.names() == ["w"]


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, shard in names.items():
        torch.save({name: torch.ones(2)}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    with open_weights(tmp_path, allow_pickle=True) as weights:
        assert weights.names() == ["a", "b"]
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / names["b"])
    with pytest.raises(InputError, match="tensor a is in both"):
        open_weights(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, not named tensors"),
        ({}, "holds a dict, not named tensors"),
        ({"w": torch.ones(1), "lr": 0.1}, "entry lr isn't a plain dense tensor"),
        ({1: torch.ones(1)}, "entry 1 isn't a plain dense tensor"),
        ({"w": torch.ones(3, 3).to_sparse()}, "entry w isn't a plain dense tensor"),
        ({"w": torch.ones(1, device="meta")}, "entry w isn't a plain dense tensor"),
        ({"w": torch.ones(1).expand(2**40)}, "claims more numbers than the file stores"),
    ],
    ids=["list", "empty", "number", "key", "sparse", "meta", "expanded"],
)
def test_contents_other_than_tensors_are_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(InputError, match=message):
        open_weights(tmp_path, allow_pickle=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.bin"
    torch.save({"w": torch.ones(8)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.bin"):
            open_weights(path, allow_pickle=True)


def test_a_damaged_header_of_a_member_is_refused(tmp_path: Path) -> None:
    """PyTorch itself returns other bytes of the file as the weights."""
    path = tmp_path / "model.bin"
    expected = torch.arange(64.0).reshape(8, 8)
    torch.save({"w": expected}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        [start] = [m.header_offset for m in archive.infolist() if m.filename.endswith("/data/0")]
    misread = 0
    for place in range(start, start + 30):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                with open_weights(path, allow_pickle=True) as weights:
                    np.testing.assert_array_equal(weights.read("w"), expected.numpy())
            except InputError as error:
                misread += "doesn't end where the next begins" in str(error)
    assert misread >= 20  # the lengths of name and extra field move the numbers


def test_a_pickle_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"w": torch.ones(8)}, path)
    with open_weights(path, allow_pickle=True) as weights:
        path.touch()
        with pytest.raises(InputError, match="changed while it was read"):
            weights.read("w")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"run code.*safetensors\.torch\.save_file"):
        open_weights(tmp_path)
    with open_weights(tmp_path, allow_pickle=True) as weights:
        np.testing.assert_array_equal(weights.read("w"), np.ones((2, 3), np.float32))
        assert weights.flags == ("read from a PyTorch pickle with weights_only",)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "weights.dat"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_under_another_name_is_refused(tmp_path: Path, name: str, protocol: int) -> None:
    path, mark = tmp_path / name, tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark), protocol=protocol))
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_weights(path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "model.bin", tmp_path / "mark"
    if zipped:
        torch.save({"w": torch.ones(1), "x": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_weights(path)
    with pytest.raises(InputError, match="holds more than tensors"):
        open_weights(path, allow_pickle=True)
    assert not mark.exists()


def test_a_zip_bomb_is_refused_before_it_inflates(tmp_path: Path, refused_in_budget: Any) -> None:
    path = tmp_path / "model.bin"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as member,
    ):
        for _ in range(256):
            member.write(bytes(2**20))
    assert "zip bomb" in refused_in_budget(path, pickle=True)
    assert "is a PyTorch pickle" in refused_in_budget(path)


def test_a_zip_directory_of_many_members_is_refused(tmp_path: Path, refused_in_budget: Any) -> None:
    path = tmp_path / "model.bin"
    end = b"PK\x05\x06" + bytes(8) + (2**30).to_bytes(4, "little") + bytes(6)
    path.write_bytes(b"PK\x03\x04" + bytes(100) + end)
    assert "zip directory is too large" in refused_in_budget(path, pickle=True)
