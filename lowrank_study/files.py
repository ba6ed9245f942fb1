"""Write files atomically, and explain errors of the operating system."""

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lowrank_study.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_PARTIAL = ".part"


@contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write to, which gets the name `path` once it is complete.

    Readers see the old file or the complete new one, even after a crash. An error while writing
    keeps the old file.

    Args:
        flush: Whether to wait for the disk, so that the file survives a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    if flush:
        flush_to_disk(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write bytes to a file; see `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; see `whole_file`."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a table; see `whole_file`."""
    with whole_file(path) as file:
        table.to_parquet(file, index=False)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_folder(path: Path) -> Path:
    """Check that a path is a writable folder, or can become one, and return it."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise InputError(f"{there} is a file: give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} is not writable: give another folder, or change its permissions")
    return path


_CAUSES = {
    errno.EACCES: ("permission denied", "choose another path, or change its permissions"),
    errno.EPERM: ("permission denied", "choose another path, or change its permissions"),
    errno.EROFS: ("the file system is read-only", "choose a path on another disk"),
    errno.ENOSPC: ("no space left on the disk", "free some space, then rerun"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then rerun"),
    errno.EFBIG: (
        "the file exceeds the largest size that is allowed",
        "raise the limit (`ulimit -f`), or use another disk",
    ),
    errno.ENOTDIR: ("a file is where a folder is needed", "give a folder, or move the file away"),
    errno.EEXIST: ("a file is where a folder is needed", "give a folder, or move the file away"),
    errno.EISDIR: ("a folder is where a file is needed", "give a file, or move the folder away"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter path"),
    errno.ELOOP: ("symbolic links form a loop", "give the file or folder itself"),
    errno.ENOENT: ("no such file or folder", "check whether it was removed, then rerun"),
    errno.EIO: ("the disk reports an error", "check the disk, then rerun"),
    errno.ESTALE: ("the network file system lost the file", "check its server, then rerun"),
    errno.EMFILE: ("too many files are open", "raise the limit (`ulimit -n`), then rerun"),
}
"""Error number of the operating system → its meaning and the remedy."""


def os_error_message(error: BaseException) -> str | None:
    """Return one line on an error of the operating system: path, reason and remedy.

    None for other errors, such as a defect or a network failure. Libraries written in Rust
    (safetensors, tokenizers) give the error number only in their text.
    """
    path, number = "", None
    if isinstance(error, OSError):
        number = error.errno
        names = [n for n in (error.filename2, error.filename) if isinstance(n, str | bytes)]
        path = os.fsdecode(names[0]) if names else ""
        if path.endswith(_PARTIAL):  # made by `whole_file`; users know only its folder
            path = os.path.dirname(path)
    elif found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found.group(1))
    if number not in _CAUSES:
        return None
    what, remedy = _CAUSES[number]
    return f"{path}: {what}; {remedy}" if path else f"{what}; {remedy}"
