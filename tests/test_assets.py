"""Pinned wheels are fetched by pip, verified at each use, and mended when damaged."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from lowrank_study import assets
from lowrank_study.errors import InputError
from lowrank_study.spec import LocalPath, WheelMember

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


def test_a_damaged_cache_is_mended(index: Path) -> None:
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


def test_a_full_disk_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not enough disk space.*are needed.*results=PATH"):
        assets.require_free_space(tmp_path / "not" / "there", 10**18)
    assert not (tmp_path / "not").exists()
