"""Opening files that may be hostile: regular files inside a given folder, unchanged while read.

A checkpoint is downloaded from strangers. A name in it may be a pipe that never ends, a
link to somebody's private file, or a file another process is still writing. All reading of
the package goes through `SourceFile`, which refuses each of these.

    with SourceFile.open(folder / "model.safetensors", root=folder) as file:
        first_eight = file.read(0, 8)
"""

import hashlib
import itertools
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from lowrank_study.errors import InputError

JSON_BYTES = 32 * 2**20
"""Largest JSON text that is parsed; the index of a 671B model has 9 MB."""

JSON_TOKENS = 1_000_000
"""Most separators (`,` `:` `[` `{`) a parsed JSON text may hold: it bounds time and memory."""

_CHUNK = 4 * 2**20


def shown(text: object, limit: int = 160) -> str:
    """Return text of unknown origin as one printable ASCII line of bounded length."""
    try:
        line = ascii(str(text))[1:-1]
    except RecursionError:
        line = "(deeply nested)"
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _hub_blobs(root: Path) -> Path | None:
    """The `blobs` folder of the Hugging Face hub cache that `root` is a snapshot of, if it is."""
    for parent in (root, *root.parents):
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent / "blobs"
    return None


def resolve_inside(path: Path, root: Path) -> Path:
    """Return the real path of `path`, which has to lie inside `root` (or its hub cache's blobs)."""
    try:
        real, real_root = path.resolve(strict=True), root.resolve(strict=True)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file; check the path") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{shown(path)}: can't be opened ({shown(error)})") from None
    blobs = _hub_blobs(real_root)
    if real.is_relative_to(real_root) or (blobs is not None and real.parent == blobs):
        return real
    raise InputError(
        f"{shown(path)}: is a link that leaves its folder (to {shown(real)}); "
        "copy the file into the folder, or give the path it points to"
    )


class Closing(ABC):
    """What a `with` block closes at its end."""

    @abstractmethod
    def close(self) -> None:
        """Close it; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SourceFile(Closing):
    """One regular file, open for reading; every read checks that it hasn't changed since."""

    def __init__(self, path: Path, real: Path, descriptor: int, identity: tuple[int, ...]) -> None:
        self.path = path
        self.size = identity[2]
        self._real = real
        self._descriptor: int | None = descriptor
        self._identity = identity
        self._sha256: str | None = None

    @classmethod
    def open(cls, path: Path, *, root: Path) -> Self:
        """Open `path`, which has to be a regular file inside the folder `root`.

        Raises:
            InputError: the file is missing, unreadable, a folder, pipe or device, or a link
                that leaves `root`.
        """
        real = resolve_inside(path, root)
        # Asked before opening too: opening a device can have effects of its own.
        try:
            regular = stat.S_ISREG(os.stat(real).st_mode)
            if regular:
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(real, flags)
        except OSError as error:
            raise InputError(f"{shown(path)}: can't be opened ({error.strerror})") from None
        if not regular:
            raise InputError(
                f"{shown(path)}: is not a regular file (a folder, pipe or device); "
                "give a checkpoint file"
            )
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise InputError(f"{shown(path)}: is not a regular file; give a checkpoint file")
        return cls(path, real, descriptor, _identity(status))

    def read(self, start: int, stop: int) -> bytearray:
        """Return the bytes `start:stop`; refuse if the file is shorter or has changed."""
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        if not 0 <= start <= stop <= self.size:
            raise InputError(
                f"{shown(self.path)}: bytes {start} to {stop} asked of a file of {self.size}; "
                "it is truncated or damaged: download it again"
            )
        return self._gather(start, stop - start, stop - start, 1)

    def read_pieces(self, start: int, length: int, step: int, count: int) -> bytearray:
        """Return `count` pieces of `length` bytes, each beginning `step` after the last, joined.

        Some columns of a row-major matrix are such pieces; nothing between them is read.
        """
        if count and not 0 <= start <= start + (count - 1) * step + length <= self.size:
            raise ValueError(f"{count} pieces from byte {start} of a file of {self.size}")
        if length == step:
            return self._gather(start, length * count, length * count, 1)
        return self._gather(start, length, step, count)

    def _gather(self, start: int, length: int, step: int, count: int) -> bytearray:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        buffer = bytearray(length * count)
        view = memoryview(buffer)
        for piece in range(count):
            if not self._fill(view[piece * length : (piece + 1) * length], start + piece * step):
                self._refuse_changed()
        self.check_unchanged()
        return buffer

    def _fill(self, view: memoryview, position: int) -> bool:
        """Read into a buffer; whether there was enough to fill it."""
        assert self._descriptor is not None
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done : done + 2**30]], position + done)
            except OSError as error:
                raise InputError(f"{shown(self.path)}: can't be read ({error.strerror})") from None
            if count == 0:
                return False
            done += count
        return True

    def check_unchanged(self) -> None:
        """Refuse a file whose size, time of change or identity differs from when it was opened."""
        assert self._descriptor is not None
        try:
            same = (
                _identity(os.fstat(self._descriptor)) == self._identity
                and _identity(os.stat(self._real)) == self._identity
            )
        except OSError:
            same = False
        if not same:
            self._refuse_changed()

    def _refuse_changed(self) -> None:
        raise InputError(
            f"{shown(self.path)}: changed while it was read; wait until it is written, "
            "then run again"
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole file in hexadecimal, streamed once when first asked for."""
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = sorted(key for key, _ in pairs)
        double = next(a for a, b in itertools.pairwise(keys) if a == b)
        raise InputError(f"the name {shown(double)} occurs twice")
    return result


def parse_json(data: bytes | bytearray, where: str) -> dict[str, Any]:
    """Parse a JSON object whose size, depth and keys are checked; `where` opens the errors.

    Raises:
        InputError: too large, not UTF-8, not JSON, not an object, or a key given twice.
    """
    tokens = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    if len(data) > JSON_BYTES or tokens > JSON_TOKENS:
        raise InputError(
            f"{where}: {len(data)} bytes with {tokens} entries is more than any real checkpoint "
            f"has (limits {JSON_BYTES} and {JSON_TOKENS}); it is damaged or hostile: "
            "get it from a source you trust"
        )
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except InputError as error:
        raise InputError(f"{where}: {error}; get the file again from its source") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: is not valid JSON ({shown(error)}); get the file again from its source"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_json(path: Path, *, root: Path) -> dict[str, Any]:
    """Read a JSON object from a file inside the folder `root`, as `parse_json`."""
    with SourceFile.open(path, root=root) as file:
        if file.size > JSON_BYTES:
            raise InputError(
                f"{shown(path)}: {file.size} bytes is too large for a JSON file here "
                f"(limit {JSON_BYTES}); get it again from its source"
            )
        return parse_json(file.read(0, file.size), shown(path))


def close_all(files: Iterable[SourceFile]) -> None:
    """Close every file."""
    for file in files:
        file.close()
