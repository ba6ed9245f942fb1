"""SHA-256 of files and folders, and derived files that carry their own hash in their name.

    keep_named(made, folder, stem="tokens", suffix=".npz")     # …/tokens-1f0c9a7be2d45a33.npz
    find_named(folder, stem="tokens", suffix=".npz")           # that path, or None if it is damaged

A derived file whose content does not match the hash in its name is removed, and made again.
"""

import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

_SETTLED_SECONDS = 2.0
"""A file this young may change again within one tick of the file system's clock."""

_known: dict[tuple[str, int, int, int, int, int], str] = {}


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's contents.

    The hash is cached until the file's size, times or inode change: every run of a sweep asks for
    the same model and data.
    """
    return _until_changed(path, "sha256", _sha256)


def crc32_of_file(path: Path) -> str:
    """Return the CRC-32 of a file's contents, in hexadecimal; cached like `sha256_of_file`."""
    return _until_changed(path, "crc32", _crc32)


def _until_changed(path: Path, name: str, compute: Callable[[BinaryIO], str]) -> str:
    stat = path.stat()
    state = (name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if state not in _known:
        with path.open("rb") as file:
            found = compute(file)
        if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED_SECONDS:
            return found
        _known[state] = found
    return _known[state]


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _crc32(file: BinaryIO) -> str:
    checksum = 0
    while piece := file.read(1 << 22):
        checksum = zlib.crc32(piece, checksum)
    return f"{checksum:08x}"


def sha256_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return one SHA-256 over the names and contents of some of a folder's files."""
    total = hashlib.sha256()
    for name in sorted(set(names), key=Path):
        line = f"{name}\0{sha256_of_file(folder / name)}\n"
        total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()


def sha256_of(path: Path) -> str:
    """Return one SHA-256 over a file, or over all the files of a folder."""
    if path.is_file():
        return sha256_of_file(path)
    files = (file for file in path.rglob("*") if file.is_file())
    return sha256_of_files(path, [str(file.relative_to(path)) for file in files])


def keep_named(made: Path, folder: Path, *, stem: str, suffix: str = "") -> Path:
    """Move a finished file or folder to a name that contains its hash, and return that path.

    If another process has made the same folder meanwhile, that one stays.
    """
    path = folder / _name(made, stem, suffix)
    if made.is_file():
        os.replace(made, path)
    elif not path.exists():
        os.rename(made, path)
    return path


def find_named(folder: Path, *, stem: str, suffix: str = "") -> Path | None:
    """Return the intact derived file or folder with a stem; remove damaged ones."""
    for path in sorted(folder.glob(f"{stem}-*{suffix}")):
        try:
            if path.name == _name(path, stem, suffix):
                return path
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except FileNotFoundError:  # another process has just removed it
            continue
    return None


def _name(path: Path, stem: str, suffix: str) -> str:
    """Hash the stem as well, so that a file renamed to another stem does not match."""
    return f"{stem}-{hashlib.sha256(f'{stem} {sha256_of(path)}'.encode()).hexdigest()[:16]}{suffix}"
