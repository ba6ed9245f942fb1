"""Hashes depend on the content, and a damaged derived file is not found."""

import os
import time
from pathlib import Path

import pytest

from lowrank_study import hashing
from lowrank_study.hashing import find_named, keep_named, sha256_of, sha256_of_file


def test_a_file_is_hashed_again_only_if_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = sha256_of_file(file)
    monkeypatch.setattr(time, "time", lambda: file.stat().st_ctime + 60)
    assert sha256_of_file(file) == first
    counted = []
    digest = hashing.hashlib.file_digest
    monkeypatch.setattr(hashing.hashlib, "file_digest", lambda *a: counted.append(1) or digest(*a))
    assert sha256_of_file(file) == first
    assert not counted
    file.write_bytes(b"two")  # of the same size
    os.utime(file, ns=(0, 0))
    assert sha256_of_file(file) != first
    assert counted


def test_the_hash_of_a_file_just_written_is_not_cached(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for content in (b"one", b"two", b"six"):  # within one tick of the clock, perhaps
        file.write_bytes(content)
        assert sha256_of_file(file) == hashing.hashlib.sha256(content).hexdigest()


def test_the_hash_of_a_folder_includes_file_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    first = sha256_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256_of(tmp_path) != first


def kept(folder: Path, stem: str, content: bytes) -> Path:
    made = folder / "made"
    made.write_bytes(content)
    return keep_named(made, folder, stem=stem, suffix=".bin")


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    content = bytes(range(40))
    for bit in range(8 * len(content)):
        path = kept(tmp_path, "one", content)
        assert find_named(tmp_path, stem="one", suffix=".bin") == path
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert find_named(tmp_path, stem="one", suffix=".bin") is None
        assert not path.exists()


def test_swapped_and_renamed_files_are_detected(tmp_path: Path) -> None:
    one, two = kept(tmp_path, "one", b"1"), kept(tmp_path, "two", b"2")
    one.write_bytes(b"2")
    assert find_named(tmp_path, stem="one", suffix=".bin") is None
    two.rename(tmp_path / two.name.replace("two", "one"))
    assert find_named(tmp_path, stem="one", suffix=".bin") is None


def test_a_folder_with_a_changed_byte_or_one_file_more_is_made_again(tmp_path: Path) -> None:
    def made() -> Path:
        folder = tmp_path / "made"
        folder.mkdir()
        (folder / "weights").write_bytes(b"1234")
        return keep_named(folder, tmp_path, stem="model")

    path = made()
    assert find_named(tmp_path, stem="model") == path
    (path / "weights").write_bytes(b"1235")
    assert find_named(tmp_path, stem="model") is None
    (made() / "more").write_bytes(b"")
    assert find_named(tmp_path, stem="model") is None
    assert made().is_dir()


def test_a_second_process_keeps_the_folder_of_the_first(tmp_path: Path) -> None:
    paths = []
    for _ in range(2):
        made = tmp_path / "made"
        made.mkdir(exist_ok=True)
        (made / "a").write_bytes(b"1")
        paths.append(keep_named(made, tmp_path, stem="model"))
    assert paths[0] == paths[1]
    assert (paths[0] / "a").read_bytes() == b"1"
