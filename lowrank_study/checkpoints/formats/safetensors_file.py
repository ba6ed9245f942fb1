"""The header of a safetensors file, checked before anything is believed.

A file is eight bytes (length N of the header, little-endian), N bytes of JSON and then the
tensors: `{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}`. The library
accepts names given twice and spends seconds and gigabytes on a bloated header, so the header
is parsed here. Every byte after it has to belong to exactly one tensor.

    read_headers([SourceFile.open(path, root=path.parent)])     # ([TensorInfo(name="w", ...)], {})

Source: https://huggingface.co/docs/safetensors (format).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from lowrank_study.checkpoints.formats.source_file import SourceFile, parse_json, shown
from lowrank_study.checkpoints.formats.tensors import ITEM_BYTES, TensorInfo
from lowrank_study.errors import InputError

MAX_TENSORS = 200_000
"""Most tensors in a model; the largest public ones have about 140 000, over all shards."""

_HEADER_BYTES = 32 * 2**20
_KEYS = {"dtype", "shape", "data_offsets"}
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def read_headers(
    files: Sequence[SourceFile],
) -> tuple[list[TensorInfo], dict[str, Any]]:
    """Return every tensor of some safetensors files, in file order, and their metadata.

    Raises:
        InputError: anything but intact files.
    """
    headers = [_raw_header(file) for file in files]
    count = sum(header.count(b'"data_offsets"') for header in headers)
    if count > MAX_TENSORS:
        raise InputError(
            f"{shown(files[0].path)}: more than {MAX_TENSORS} tensors; it is damaged or hostile: "
            "get it from a source you trust"
        )
    tensors: list[TensorInfo] = []
    metadata: dict[str, Any] = {}
    for file, raw in zip(files, headers, strict=True):
        where = shown(file.path)
        header = parse_json(raw, f"{where}: header")
        more = header.pop("__metadata__", {})
        if not isinstance(more, dict):
            raise InputError(f"{where}: its __metadata__ is not an object; get the file again")
        metadata.update(more)
        found = [_tensor(name, entry, file, 8 + len(raw)) for name, entry in header.items()]
        _check_layout(found, file, 8 + len(raw))
        tensors += found
    return tensors, metadata


def _raw_header(file: SourceFile) -> bytearray:
    """Return the bytes of a header whose length is believable."""
    where = shown(file.path)
    if file.size < 8:
        raise InputError(f"{where}: {file.size} bytes is too short for safetensors; get it again")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise InputError(
            f"{where}: says its header has {length} bytes, the file has {file.size}; it is "
            "truncated or not safetensors: get it again from its source"
        )
    if length > _HEADER_BYTES:
        raise InputError(
            f"{where}: header of {length} bytes is above the limit of {_HEADER_BYTES}; "
            "it is damaged or hostile: get it from a source you trust"
        )
    raw = file.read(8, 8 + length)
    if raw[:1] != b"{":
        raise InputError(f"{where}: its header doesn't open with '{{'; it is not safetensors")
    return raw


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(name: str, entry: Any, file: SourceFile, data_start: int) -> TensorInfo:
    """Check one entry of a header."""

    def refusal(what: str) -> InputError:
        return InputError(
            f"{shown(file.path)}: tensor {shown(name)}: {what}; get it again from its source"
        )

    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise refusal("its name is not valid Unicode") from None
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise refusal("needs exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(
            f"{shown(file.path)}: tensor {shown(name)}: dtype {shown(code)} can't be read exactly; "
            f"save the model in one of {', '.join(_DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_count, shape)):
        raise refusal(f"shape {shown(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise refusal(f"data_offsets {shown(offsets)} are not two positions")
    start, stop = offsets
    if stop - start != prod(shape) * ITEM_BYTES[dtype]:
        raise refusal(
            f"{code} of shape {shown(shape)} needs {shown(prod(shape) * ITEM_BYTES[dtype])} bytes, "
            f"its offsets {shown(offsets)} give {stop - start}"
        )
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        start=data_start + start,
        stop=data_start + stop,
        file=file,
    )


def _check_layout(tensors: list[TensorInfo], file: SourceFile, data_start: int) -> None:
    """Refuse overlaps, holes, missing and trailing bytes: each byte belongs to one tensor."""
    where = shown(file.path)
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a hole"
            raise InputError(
                f"{where}: tensor {shown(tensor.name)} {kind}, at byte {tensor.start} instead of "
                f"{position}; the file is damaged or hostile: get it again from its source"
            )
        position = tensor.stop
    if position > file.size:
        raise InputError(
            f"{where}: truncated, {file.size} of {position} bytes; get it again from its source"
        )
    if position < file.size:
        raise InputError(
            f"{where}: {file.size - position} bytes after the last tensor belong to none; "
            "the file is damaged or hostile: get it again from its source"
        )
