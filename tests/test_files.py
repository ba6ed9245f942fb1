"""Files appear complete or not at all, and errors of the system are explained."""

import errno
import os
from pathlib import Path

import pytest

from lowrank_study.files import os_error_message, whole_file, write_whole
from lowrank_study.machine import cores_of_workers, free_cores


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    write_whole(path, b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken_off() -> None:
        with whole_file(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_workers_divide_the_cores() -> None:
    free = free_cores()
    assert sorted(core for cores in cores_of_workers(len(free)) for core in cores) == free
    assert cores_of_workers(1) == [free]
    assert all(len(cores) == 1 for cores in cores_of_workers(2 * len(free)))


@pytest.mark.parametrize("name", ["EACCES", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "ENOTDIR", "EIO"])
def test_system_errors_are_one_line_with_path_and_remedy(name: str) -> None:
    number = getattr(errno, name)
    message = os_error_message(OSError(number, os.strerror(number), "/data/Bücher"))
    assert message is not None
    assert message.startswith("/data/Bücher: ")
    assert "; " in message
    assert "\n" not in message


def test_errors_name_the_target_instead_of_the_partial_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as refused:
        write_whole(tmp_path / "file" / "below", b"")
    assert str(os_error_message(refused.value)).startswith(f"{tmp_path / 'file'}: a file is where")
    partial = OSError(errno.EACCES, "", str(tmp_path / ".record.json.x1.part"))
    assert str(os_error_message(partial)).startswith(f"{tmp_path}: permission denied")


def test_error_numbers_are_read_from_messages_of_rust_libraries() -> None:
    error = RuntimeError("I/O error: No space left on device (os error 28)")
    assert os_error_message(error) == "no space left on the disk; free some space, then rerun"


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), ValueError("no")])
def test_other_errors_stay_defects(error: Exception) -> None:
    assert os_error_message(error) is None
