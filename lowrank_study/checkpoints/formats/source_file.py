"""Open files that may be hostile: regular files in one folder that stay unchanged while read.

Checkpoints come from strangers. A name in one can be a pipe that never ends, a link to a private
file, or a file that another process is still writing. All reading goes through `SourceFile`, which
refuses each of these.

    with SourceFile.open(folder / "model.safetensors", root=folder) as file:
        first_eight = file.read(0, 8)
"""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from lowrank_study.errors import InputError

_CHUNK = 4 * 2**20


def shown(text: object, limit: int = 160) -> str:
    """Return text of unknown origin as one printable ASCII line of bounded length."""
    try:
        line = ascii(str(text))[1:-1]
    except RecursionError:
        line = "(deeply nested)"
    return line if len(line) <= limit else line[: limit - 3] + "..."


def damaged(where: str, what: str) -> InputError:
    """Return the error for a file that contradicts its own format."""
    return InputError(f"{where}: {what}; the file is damaged: get it again from its source")


def hostile(where: str, what: str) -> InputError:
    """Return the error for a file that no honest program writes."""
    return InputError(
        f"{where}: {what}; the file is damaged or hostile: get it from a source you trust"
    )


def resolve_inside(path: Path, root: Path) -> Path:
    """Return the real path of `path`, which must lie in `root` or in its hub cache's blobs."""
    try:
        real, real_root = path.resolve(strict=True), root.resolve(strict=True)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file; check the path") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{shown(path)}: can't be opened ({shown(error)})") from None
    if real.is_relative_to(real_root) or real.parent == _hub_blobs(real_root):
        return real
    raise InputError(
        f"{shown(path)}: is a link that leaves its folder (to {shown(real)}); "
        "copy the file into the folder, or give the path it points to"
    )


def _hub_blobs(root: Path) -> Path | None:
    """Return the folder of blobs if `root` is a snapshot in a Hugging Face hub cache."""
    for parent in (root, *root.parents):
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent / "blobs"
    return None


class Closing(ABC):
    """A context manager that closes itself at the end of its block."""

    @abstractmethod
    def close(self) -> None:
        """Close it; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SourceFile(Closing):
    """One regular file, open for reading; every read checks that it hasn't changed."""

    def __init__(self, path: Path, real: Path, descriptor: int, identity: tuple[int, ...]) -> None:
        self.path = path
        self.size = identity[2]
        self._real = real
        self._descriptor: int | None = descriptor
        self._identity = identity
        self._sha256: str | None = None

    @classmethod
    def open(cls, path: Path, *, root: Path) -> Self:
        """Open a regular file inside the folder `root`.

        Raises:
            InputError: the file is missing, unreadable, a folder, pipe or device, or a link
                that leaves `root`.
        """
        real = resolve_inside(path, root)
        refusal = InputError(
            f"{shown(path)}: is not a regular file (a folder, pipe or device); "
            "give a checkpoint file"
        )
        try:
            # Checked before opening too, because opening a device can have effects.
            if not stat.S_ISREG(os.stat(real).st_mode):
                raise refusal
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{shown(path)}: can't be opened ({error.strerror})") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise refusal
        return cls(path, real, descriptor, _identity(status))

    def read(self, start: int, stop: int) -> bytearray:
        """Return the bytes `start:stop`; refuse if the file is shorter or has changed."""
        if not 0 <= start <= stop <= self.size:
            raise damaged(
                shown(self.path), f"bytes {start} to {stop} are needed of a file of {self.size}"
            )
        return self.read_pieces(start, stop - start, stop - start, 1)

    def read_pieces(self, start: int, length: int, step: int, count: int) -> bytearray:
        """Return `count` pieces of `length` bytes, joined; each begins `step` after the last.

        Some columns of a row-major matrix are such pieces. Nothing between them is read.
        """
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        if count and not 0 <= start <= start + (count - 1) * step + length <= self.size:
            raise ValueError(f"{count} pieces from byte {start} of a file of {self.size}")
        if length == step:
            length, step, count = length * count, length * count, 1
        buffer = bytearray(length * count)
        view = memoryview(buffer)
        for piece in range(count):
            self._fill(view[piece * length : (piece + 1) * length], start + piece * step)
        self.check_unchanged()
        return buffer

    def _fill(self, view: memoryview, position: int) -> None:
        """Read from a position until the buffer is full."""
        assert self._descriptor is not None
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done : done + 2**30]], position + done)
            except OSError as error:
                raise InputError(f"{shown(self.path)}: can't be read ({error.strerror})") from None
            if count == 0:
                raise self._changed()
            done += count

    def check_unchanged(self) -> None:
        """Refuse a file whose size, modification time or identity has changed since opening."""
        assert self._descriptor is not None
        try:
            now = _identity(os.fstat(self._descriptor)), _identity(os.stat(self._real))
        except OSError:
            raise self._changed() from None
        if now != (self._identity, self._identity):
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(
            f"{shown(self.path)}: changed while it was read; wait until it is written, "
            "then run again"
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole file in hexadecimal, computed on first use."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for start in range(0, self.size, _CHUNK):
                digest.update(self.read(start, min(start + _CHUNK, self.size)))
            self._sha256 = digest.hexdigest()
        return self._sha256

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def close_all(files: Iterable[SourceFile]) -> None:
    """Close every file."""
    for file in files:
        file.close()
