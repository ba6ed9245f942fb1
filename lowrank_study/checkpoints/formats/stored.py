"""The interface that every file format implements.

A format is one module with one `Format`, listed in `formats/table.py`. Its `read` returns the
`Stored` tensors of some files without reading the tensors' data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowrank_study.checkpoints.formats.source_file import SourceFile, damaged, hostile, shown
from lowrank_study.checkpoints.formats.tensors import Array, TensorInfo, decode

MAX_TENSORS = 200_000
"""Most tensors in a model; the largest public ones have about 140 000, over all shards."""

RowReader = Callable[[TensorInfo, int, int], Array]
"""Read the rows `first:last` (of axis 0) of one tensor exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The tensors and settings of a model's files."""

    tensors: list[TensorInfo]
    """All tensors, in file order."""
    metadata: Mapping[str, Any]
    """A safetensors file's own metadata, or GGUF's settings: free text, not checked."""
    config: Mapping[str, Any]
    """Settings used where there is no config.json."""
    read_rows: RowReader
    """How to read rows of a tensor."""
    flags: list[str]
    """Remarks for the report, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One file format of weights."""

    name: str
    """Its name in error messages."""
    suffixes: tuple[str, ...]
    """Suffixes of its weight files in a folder."""
    recognises: Callable[[bytes], bool]
    """Whether a file with these first nine bytes has this format."""
    runs_code: bool
    """Whether loading a file can run code, so that it needs `allow_pickle`."""
    read: Callable[[Sequence[SourceFile]], Stored]
    """Read the headers of a model's files."""


def rows_of(info: TensorInfo, first: int, last: int) -> TensorInfo:
    """Describe the rows `first:last` of a tensor as a tensor of their own."""
    if not info.shape or (first, last) == (0, info.shape[0]):
        return info
    row = (info.stop - info.start) // info.shape[0]
    return replace(
        info,
        shape=(last - first, *info.shape[1:]),
        start=info.start + first * row,
        stop=info.start + last * row,
    )


def read_plain_rows(info: TensorInfo, first: int, last: int) -> Array:
    """Read rows of a tensor whose numbers lie row-major in the file."""
    part = rows_of(info, first, last)
    return decode(part.file.read(part.start, part.stop), part.dtype, part.shape)


def check_layout(
    tensors: Sequence[TensorInfo], file: SourceFile, start: int, *, alignment: int
) -> None:
    """Check that each byte from `start` on belongs to exactly one tensor, apart from padding.

    Raises:
        InputError: tensors overlap, the file is truncated, or more bytes than the padding to
            multiples of `alignment` belong to no tensor.
    """
    where = shown(file.path)
    position = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        padding = tensor.start - position
        if not 0 <= padding < alignment or (tensor.start - start) % alignment:
            fault = "overlaps the tensor before it" if padding < 0 else "leaves a gap"
            what = f"tensor {shown(tensor.name)} {fault}: it begins at byte {tensor.start}"
            raise hostile(where, f"{what} instead of {position}")
        position = tensor.stop
    if position > file.size and tensors:
        raise damaged(where, f"truncated, {file.size} of {position} bytes")
    if file.size - position >= alignment:
        raise hostile(
            where, f"{file.size - position} bytes after the last tensor belong to no tensor"
        )
