"""Shards and their index are read as one model, or refused if they disagree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.conftest import ONE


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "a/../../secret", "..", "", "a\\b", "a\0b", 7, None],
)
def test_an_index_that_points_out_of_its_folder_is_refused(
    tmp_path: Path, write_raw: Any, entry: Any, shard: Any
) -> None:
    write_raw({"w": entry(0, 4, [1])}, ONE, name="secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(InputError, match="which isn't a file of its own folder"):
        open_weights(folder)


def test_a_huge_index_is_refused_in_time(tmp_path: Path, refused_in_budget: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    body = ",".join(f'"{i}":"x{i}"' for i in range(1_800_000))
    index.write_text('{"weight_map":{' + body + "}}")
    message = refused_in_budget(tmp_path)
    assert "more than any real checkpoint" in message or "too large" in message


def test_shards_are_read_as_one_model(sharded: Path) -> None:
    for path in (sharded, sharded / "model.safetensors.index.json"):
        with open_weights(path) as weights:
            assert sorted(weights.names()) == ["a", "b", "c"]
            assert weights.read("c")[0, 0] == ord("c")
            assert len(weights.files) == 2
    (sharded / "model.safetensors.index.json").unlink()
    with open_weights(sharded) as weights:
        assert sorted(weights.names()) == ["a", "b", "c"]


@pytest.mark.parametrize("with_index", [True, False])
def test_a_missing_shard_is_named(sharded: Path, with_index: bool) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
        with pytest.raises(InputError, match=r"is shard 1 of 2; download all"):
            open_weights(sharded)
    else:
        with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is missing"):
            open_weights(sharded)


def test_a_missing_one_of_several_shards_is_named(tmp_path: Path) -> None:
    for number in (1, 3):
        save_file({f"w{number}": torch.ones(1)}, tmp_path / f"m-{number:05d}-of-00003.safetensors")
    with pytest.raises(InputError, match=r"m-00002-of-00003\.safetensors is missing"):
        open_weights(tmp_path)


def test_one_shard_alone_is_refused(sharded: Path) -> None:
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
def test_an_index_its_shards_contradict_is_refused(
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
def test_an_index_without_a_map_is_refused(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json"):
        open_weights(sharded)


@pytest.mark.parametrize("shard", ["x" * 300, "\ud800", "a\nb"], ids=["long", "no text", "line"])
def test_a_missing_shard_of_an_odd_name_is_named(sharded: Path, shard: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="is missing; download it"):
        open_weights(sharded)


def test_a_shard_the_index_does_not_know_is_refused(sharded: Path) -> None:
    save_file({"z": torch.ones(1)}, sharded / "model-00003-of-00002.safetensors")
    with pytest.raises(InputError, match=r"isn't in model.safetensors.index.json"):
        open_weights(sharded)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_tensor_in_two_shards_is_refused(sharded: Path, with_index: bool) -> None:
    save_file(
        {"a": torch.ones(1), "c": torch.ones(1)}, sharded / "model-00002-of-00002.safetensors"
    )
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"tensor a is in both model-00001.* and model-00002"):
        open_weights(sharded)


@pytest.mark.parametrize("index", [True, False])
def test_mistrals_own_copy_is_ignored_beside_other_files(sharded: Path, index: bool) -> None:
    if not index:
        (sharded / "model.safetensors.index.json").unlink()
    names = set(open_weights(sharded).names())
    save_file({"layers.0.wq": torch.ones(2, 2)}, sharded / "consolidated.safetensors")
    assert set(open_weights(sharded).names()) == names
    for path in sharded.glob("model*"):
        path.unlink()
    assert open_weights(sharded).names() == ["layers.0.wq"]
