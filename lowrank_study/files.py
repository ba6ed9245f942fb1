"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lowrank_study.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write to, that takes the name `path` when all is written.

    Whoever reads sees the old file or the whole new one, after a crash too. What goes wrong
    while it is written leaves the old one.

    Parameters
    ----------
    path
        Of the file; its folder is made if need be.
    flush
        False where a file that is lost with the power is no loss: a disk takes its time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
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


def write_whole(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write a file's whole content; see `whole_file`."""
    with whole_file(path, flush=flush) as file:
        file.write(content)


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a table; see `whole_file`."""
    with whole_file(path) as file:
        table.to_parquet(file, index=False)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_folder(path: Path) -> Path:
    """Return a path that is a folder, or can become one.

    Raises
    ------
    InputError
        It is a file.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder")
    return path
