"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from lowrank_study.files import whole_file, write_whole
from lowrank_study.machine import cores_of_workers, free_cores


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    write_whole(path, b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    def broken_off() -> None:
        with whole_file(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_workers_share_out_the_cores() -> None:
    free = free_cores()
    assert sorted(core for cores in cores_of_workers(len(free)) for core in cores) == free
    assert cores_of_workers(1) == [free]
    assert all(len(cores) == 1 for cores in cores_of_workers(2 * len(free)))
