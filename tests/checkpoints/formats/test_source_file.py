"""Links, pipes, devices and files that change while read are refused."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.conftest import ONE


def test_a_link_that_leaves_the_folder_is_refused(
    tmp_path: Path, write_raw: Any, entry: Any
) -> None:
    secret = write_raw({"w": entry(0, 4, [1])}, ONE, name="secret/w.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    link = folder / "model.safetensors"
    link.symlink_to(secret)
    for path in (folder, link):
        with pytest.raises(InputError, match="is a link that leaves its folder"):
            open_weights(path)
    link.unlink()
    write_raw({"w": entry(0, 4, [1])}, ONE, name="model/model.safetensors")
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="is a link that leaves its folder"):
        open_weights(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(InputError, match="can't be opened"):
        open_weights(folder)


def test_links_of_a_hub_cache_are_followed_to_its_blobs_only(
    tmp_path: Path, write_raw: Any, entry: Any
) -> None:
    hub = tmp_path / "hub" / "models--a--b"
    write_raw({"w": entry(0, 4, [1])}, ONE, name="hub/models--a--b/blobs/0123")
    snapshot = hub / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    link = snapshot / "model.safetensors"
    link.symlink_to("../../blobs/0123")
    with open_weights(snapshot) as weights:
        np.testing.assert_array_equal(weights.read("w"), np.ones(1, np.float32))
    write_raw({"w": entry(0, 4, [1])}, ONE, name="hub/models--c--d/blobs/0123")
    link.unlink()
    link.symlink_to("../../../models--c--d/blobs/0123")
    with pytest.raises(InputError, match="leaves its folder"):
        open_weights(snapshot)


def test_a_link_within_the_folder_is_followed(write_raw: Any, entry: Any) -> None:
    path = write_raw({"w": entry(0, 4, [1])}, ONE, name="model/model.safetensors")
    link = path.with_name("alias.safetensors")
    link.symlink_to(path.name)
    with open_weights(link) as weights:
        assert weights.names() == ["w"]


def test_a_pipe_is_refused_without_waiting(tmp_path: Path, refused_in_budget: Any) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a regular file" in refused_in_budget(tmp_path)
    assert "not a regular file" in refused_in_budget(tmp_path / "model.safetensors")


def test_a_pipe_as_config_is_refused_without_waiting(
    write_raw: Any, entry: Any, refused_in_budget: Any
) -> None:
    path = write_raw({"w": entry(0, 4, [1])}, ONE)
    os.mkfifo(path.with_name("config.json"))
    assert "config.json: is not a regular file" in refused_in_budget(path.parent)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_a_device_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"not a regular file|leaves its folder"):
        open_weights(path)


def test_every_file_has_its_sha256(sharded: Path) -> None:
    with open_weights(sharded) as weights:
        for file in weights.files:
            assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
            assert file.size == file.path.stat().st_size


def test_a_flipped_bit_changes_the_sha256(write_model: Any) -> None:
    path = write_model({"w": torch.ones(4, 4)}) / "model.safetensors"
    with open_weights(path) as weights:
        before = weights.files[0].sha256
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    with open_weights(path) as weights:
        assert weights.files[0].sha256 != before


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
def test_a_file_that_changes_while_it_is_read_is_refused(write_model: Any, change: Any) -> None:
    path = write_model({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}) / "model.safetensors"
    with open_weights(path) as weights:
        weights.read("a")
        change(path)
        with pytest.raises(InputError, match="changed while it was read"):
            weights.read("b")
        with pytest.raises(InputError, match="changed while it was read"):
            _ = weights.files[0].sha256
