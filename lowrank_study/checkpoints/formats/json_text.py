"""Parse JSON of unknown origin, with bounds on its size and without repeated keys."""

import itertools
import json
from pathlib import Path
from typing import Any

from lowrank_study.checkpoints.formats.source_file import SourceFile, damaged, hostile, shown
from lowrank_study.errors import InputError

_MAX_BYTES = 32 * 2**20
"""Largest text that is parsed; the index of a 671B model has 9 MB."""

_MAX_TOKENS = 1_000_000
"""Most separators (`,` `:` `[` `{`) in a text; this bounds time and memory."""


def parse_json(data: bytes | bytearray, where: str) -> dict[str, Any]:
    """Parse a JSON object; `where` begins the error messages."""
    tokens = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    if len(data) > _MAX_BYTES or tokens > _MAX_TOKENS:
        raise hostile(
            where,
            f"{len(data)} bytes with {tokens} entries is more than any real checkpoint has "
            f"(limits {_MAX_BYTES} and {_MAX_TOKENS})",
        )
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except InputError as error:
        raise damaged(where, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"is not valid JSON ({shown(error)})") from None
    if not isinstance(value, dict):
        raise damaged(where, f"holds a JSON {type(value).__name__}, not an object")
    return value


def read_json(path: Path, *, root: Path) -> dict[str, Any]:
    """Read a JSON object from a file inside the folder `root`; see `parse_json`."""
    with SourceFile.open(path, root=root) as file:
        if file.size > _MAX_BYTES:
            raise hostile(
                shown(path), f"{file.size} bytes is too large for a JSON file (limit {_MAX_BYTES})"
            )
        return parse_json(file.read(0, file.size), shown(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = sorted(key for key, _ in pairs)
        double = next(a for a, b in itertools.pairwise(keys) if a == b)
        raise InputError(f"the name {shown(double)} occurs twice")
    return result
