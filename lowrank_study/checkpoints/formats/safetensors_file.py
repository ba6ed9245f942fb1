"""Read the header of a safetensors file; every byte after it must belong to exactly one tensor.

A file is eight bytes (length N of the header, little-endian), N bytes of JSON and then the
tensors: `{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}`. The safetensors
library accepts repeated names and spends seconds and gigabytes on a bloated header, so the header
is parsed here.

    read_safetensors([SourceFile.open(path, root=path.parent)]).tensors     # [TensorInfo(...)]

Source: https://huggingface.co/docs/safetensors (format).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from lowrank_study.checkpoints.formats.json_text import parse_json
from lowrank_study.checkpoints.formats.source_file import SourceFile, damaged, hostile, shown
from lowrank_study.checkpoints.formats.stored import (
    MAX_TENSORS,
    Format,
    Stored,
    check_layout,
    read_plain_rows,
)
from lowrank_study.checkpoints.formats.tensors import ITEM_BYTES, TensorInfo
from lowrank_study.errors import InputError

_HEADER_BYTES = 32 * 2**20
_KEYS = {"dtype", "shape", "data_offsets"}
_DTYPES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def read_safetensors(files: Sequence[SourceFile]) -> Stored:
    """Return every tensor of some safetensors files, in file order, and their metadata."""
    headers = [_raw_header(file) for file in files]
    if sum(header.count(b'"data_offsets"') for header in headers) > MAX_TENSORS:
        raise hostile(shown(files[0].path), f"more than {MAX_TENSORS} tensors")
    tensors: list[TensorInfo] = []
    metadata: dict[str, Any] = {}
    for file, raw in zip(files, headers, strict=True):
        header = parse_json(raw, f"{shown(file.path)}: header")
        more = header.pop("__metadata__", {})
        if not isinstance(more, dict):
            raise damaged(shown(file.path), "its __metadata__ is not an object")
        metadata.update(more)
        found = [_tensor(name, entry, file, 8 + len(raw)) for name, entry in header.items()]
        check_layout(found, file, 8 + len(raw), alignment=1)
        tensors += found
    return Stored(
        tensors=tensors, metadata=metadata, config={}, read_rows=read_plain_rows, flags=[]
    )


SAFETENSORS = Format(
    name="safetensors",
    suffixes=(".safetensors",),
    # A GGUF file of 123 tensors has these bytes too.
    recognises=lambda head: head[5:] == b"\0\0\0{" and head[:4] != b"GGUF",
    runs_code=False,
    read=read_safetensors,
)


def _raw_header(file: SourceFile) -> bytearray:
    """Return the bytes of a header of plausible length."""
    where = shown(file.path)
    if file.size < 8:
        raise damaged(where, f"{file.size} bytes is too short for safetensors")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise damaged(
            where,
            f"says its header has {length} bytes, but the file has {file.size}, so it is "
            "truncated or not safetensors",
        )
    if length > _HEADER_BYTES:
        raise hostile(where, f"header of {length} bytes is above the limit of {_HEADER_BYTES}")
    raw = file.read(8, 8 + length)
    if raw[:1] != b"{":
        raise damaged(where, "its header doesn't open with '{', so it is not safetensors")
    return raw


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(name: str, entry: Any, file: SourceFile, data_start: int) -> TensorInfo:
    """Check one entry of a header."""
    where = f"{shown(file.path)}: tensor {shown(name)}"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise damaged(where, "its name is not valid Unicode") from None
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise damaged(where, "needs exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(
            f"{where}: dtype {shown(code)} can't be read exactly; "
            f"save the model in one of {', '.join(_DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_count, shape)):
        raise damaged(where, f"shape {shown(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise damaged(where, f"data_offsets {shown(offsets)} are not two positions")
    start, stop = offsets
    needed = prod(shape) * ITEM_BYTES[dtype]
    if stop - start != needed:
        raise damaged(
            where,
            f"{code} of shape {shown(shape)} needs {shown(needed)} bytes, but its offsets "
            f"{shown(offsets)} give {stop - start}",
        )
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        start=data_start + start,
        stop=data_start + stop,
        file=file,
    )
