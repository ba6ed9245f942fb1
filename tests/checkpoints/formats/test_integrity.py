"""Classes 19 to 27: files that are damaged, incomplete, or not what they were."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import open_adapter, open_weights, pair
from lowrank_study.errors import InputError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for number, names in enumerate((["a", "b"], ["c"]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: torch.full((2, 2), ord(name)) * 1.0 for name in names}, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    index = {"metadata": {"total_size": 48}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_19_a_truncated_file_is_refused_at_every_length(write_model: Any, tmp_path: Path) -> None:
    whole = (write_model({"w": torch.ones(3, 2)}) / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"truncated|too short|get it again|not safetensors"):
            open_weights(cut)
    cut.write_bytes(whole)
    with open_weights(cut) as weights:
        assert weights.names() == ["w"]


def test_20_shards_are_read_as_one_model(sharded: Path) -> None:
    for path in (sharded, sharded / "model.safetensors.index.json"):
        with open_weights(path) as weights:
            assert sorted(weights.names()) == ["a", "b", "c"]
            assert weights.read("c")[0, 0] == ord("c")
            assert len(weights.files) == 2
    (sharded / "model.safetensors.index.json").unlink()
    with open_weights(sharded) as weights:
        assert sorted(weights.names()) == ["a", "b", "c"]


@pytest.mark.parametrize("with_index", [True, False])
def test_20_a_missing_shard_is_named(sharded: Path, with_index: bool) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
        with pytest.raises(InputError, match=r"is shard 1 of 2; download all"):
            open_weights(sharded)
    else:
        with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is missing"):
            open_weights(sharded)


def test_20_a_missing_one_of_several_shards_is_named(tmp_path: Path) -> None:
    for number in (1, 3):
        save_file({f"w{number}": torch.ones(1)}, tmp_path / f"m-{number:05d}-of-00003.safetensors")
    with pytest.raises(InputError, match=r"m-00002-of-00003\.safetensors is missing"):
        open_weights(tmp_path)


def test_20_one_shard_alone_is_refused(sharded: Path) -> None:
    with pytest.raises(InputError, match="is shard 1 of 2; download all of them"):
        open_weights(sharded / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": "model-00001-of-00002.safetensors"}, "puts tensor d into model-00001"),
        ({"c": None}, "tensor c is in model-00002.*the index doesn't list it"),
        ({"b": "model-00002-of-00002.safetensors"}, "tensor b is in model-00001"),
    ],
    ids=["not there", "not listed", "elsewhere"],
)
def test_21_an_index_its_shards_contradict_is_refused(
    sharded: Path, change: dict[str, Any], message: str
) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].update(change)
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if v}
    content["weight_map"].setdefault("c2", "model-00002-of-00002.safetensors")
    if "c" not in content["weight_map"]:
        save_file(
            {"c": torch.ones(1), "c2": torch.ones(1)}, sharded / "model-00002-of-00002.safetensors"
        )
    else:
        del content["weight_map"]["c2"]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        open_weights(sharded)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "x"])
def test_21_an_index_without_a_map_is_refused(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json"):
        open_weights(sharded)


@pytest.mark.parametrize("shard", ["x" * 300, "\ud800", "a\nb"], ids=["long", "no text", "line"])
def test_20_a_missing_shard_of_an_odd_name_is_named(sharded: Path, shard: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="is missing; download it"):
        open_weights(sharded)


def test_21_a_shard_the_index_does_not_know_is_refused(sharded: Path) -> None:
    save_file({"z": torch.ones(1)}, sharded / "model-00003-of-00002.safetensors")
    with pytest.raises(InputError, match=r"isn't in model.safetensors.index.json"):
        open_weights(sharded)


@pytest.mark.parametrize("with_index", [True, False])
def test_22_a_tensor_in_two_shards_is_refused(sharded: Path, with_index: bool) -> None:
    save_file(
        {"a": torch.ones(1), "c": torch.ones(1)}, sharded / "model-00002-of-00002.safetensors"
    )
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"tensor a is in both model-00001.* and model-00002"):
        open_weights(sharded)


def test_22_several_unrelated_files_are_refused(write_model: Any) -> None:
    folder = write_model({"w": torch.ones(1)})
    write_model({"w": torch.ones(1)}, name="model.fp16.safetensors")
    with pytest.raises(InputError, match="2 weight files that aren't one numbered set"):
        open_weights(folder)


def test_23_every_file_has_its_sha256(sharded: Path) -> None:
    with open_weights(sharded) as weights:
        for file in weights.files:
            assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
            assert file.size == file.path.stat().st_size


def test_23_a_flipped_bit_changes_the_sha256(write_model: Any) -> None:
    path = write_model({"w": torch.ones(4, 4)}) / "model.safetensors"
    with open_weights(path) as weights:
        before = weights.files[0].sha256
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    with open_weights(path) as weights:
        assert weights.files[0].sha256 != before


def test_24_25_nan_and_inf_are_skipped_with_their_count(write_model: Any) -> None:
    good = {"good": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    before = {"nan": np.ones((2, 2), np.float32), "inf": np.ones((2, 2), np.float32), **good}
    after = {name: value.copy() for name, value in before.items()}
    after["nan"][0] = np.nan
    before["inf"][1, 1] = np.inf
    after["inf"][0, 1] = -np.inf
    after["bias"][0] = np.nan
    a, b = write_model(before, folder="a"), write_model(after, folder="b")
    with open_weights(a) as left, open_weights(b) as right:
        pairing = pair(left, right)
        assert [match.name for match, _, _ in pairing.read_matrices()] == ["good"]
        assert list(pairing.read_vectors()) == []
        assert pairing.skipped == {
            "nan": "2 NaN and 0 infinite values",
            "inf": "0 NaN and 2 infinite values",
            "bias": "1 NaN and 0 infinite values",
        }


def _rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))


def _replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("change", [_rewrite, _replace, _shorten, Path.unlink])
def test_26_a_file_that_changes_while_it_is_read_is_refused(write_model: Any, change: Any) -> None:
    path = write_model({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}) / "model.safetensors"
    with open_weights(path) as weights:
        weights.read("a")
        change(path)
        with pytest.raises(InputError, match="changed while it was read"):
            weights.read("b")
        with pytest.raises(InputError, match="changed while it was read"):
            _ = weights.files[0].sha256


def test_27_nothing_matched_names_what_there_was(write_model: Any) -> None:
    a = write_model({"left.weight": torch.ones(2, 2)}, folder="a")
    b = write_model({"right.weight": torch.ones(2, 2)}, folder="b")
    with (
        open_weights(a) as left,
        open_weights(b) as right,
        pytest.raises(InputError, match=r"no matrix of .*left\.weight.* is in .*right\.weight"),
    ):
        pair(left, right)


def test_27_a_tensor_that_is_not_there_names_those_that_are(write_model: Any) -> None:
    with (
        open_weights(write_model({"w": torch.ones(1)})) as weights,
        pytest.raises(InputError, match="no tensor v; it has 1, such as w"),
    ):
        weights.read("v")


def test_27_a_path_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.safetensors.*found nothing"):
        open_weights(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_weights(tmp_path / "model.safetensors")
    for odd in ("a\0b", "a" * 5000, "a\nb", ""):
        for opener in (open_weights, open_adapter):
            with pytest.raises(InputError) as caught:
                opener(tmp_path / odd)
            assert str(caught.value).isprintable()
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match=r"not safetensors|truncated"):
        open_weights(tmp_path / "model.h5")


def test_rows_are_read_without_the_others(write_model: Any, rng: np.random.Generator) -> None:
    w = rng.standard_normal((5, 3)).astype(np.float32)
    with open_weights(write_model({"w": w, "x": np.array([7], np.float32)})) as weights:
        np.testing.assert_array_equal(weights.read_rows("w", 1, 4), w[1:4])
        np.testing.assert_array_equal(weights.read_rows("x", 0, 1), [7])
        assert weights.shape("w") == (5, 3)
        assert weights.dtype("w") == "float32"
        assert "w" in weights
        assert len(weights) == 2
        with pytest.raises(ValueError, match="rows 4:6 of 5"):
            weights.read_rows("w", 4, 6)
    weights.close()
    with pytest.raises(ValueError, match="is closed"):
        weights.read("w")


def test_a_git_lfs_pointer_is_named(sharded: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 26843545600\n"
    (sharded / "model-00001-of-00002.safetensors").write_text(pointer)
    with pytest.raises(InputError, match=r"is a git-lfs pointer.*`git lfs pull`"):
        open_weights(sharded)


def test_a_web_page_in_place_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("<!DOCTYPE html><html><body>login</body></html>")
    with pytest.raises(InputError, match=r"is a web page instead of weights.*/resolve/"):
        open_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("index", [True, False])
def test_mistrals_own_copy_gives_way_to_the_files_beside_it(sharded: Path, index: bool) -> None:
    if not index:
        (sharded / "model.safetensors.index.json").unlink()
    names = set(open_weights(sharded).names())
    save_file({"layers.0.wq": torch.ones(2, 2)}, sharded / "consolidated.safetensors")
    assert set(open_weights(sharded).names()) == names
    for path in sharded.glob("model*"):
        path.unlink()
    assert open_weights(sharded).names() == ["layers.0.wq"]
