"""The header of a safetensors file, checked before anything is believed.

A file is eight bytes (length N of the header, little-endian), N bytes of JSON and then the
tensors: `{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}`. The library
accepts names given twice and spends seconds and gigabytes on a bloated header, so the header
is parsed here. Every byte after it has to belong to exactly one tensor.

    read_header(SourceFile.open(path, root=path.parent))     # ([TensorInfo(name="w", ...)], {})

Source: https://huggingface.co/docs/safetensors (format).
"""

from math import prod
from typing import Any

from lowrank_study.checkpoints.paths import SourceFile, parse_json, shown
from lowrank_study.checkpoints.tensors import ITEM_BYTES, TensorInfo
from lowrank_study.errors import InputError

MAX_TENSORS = 100_000
"""Most tensors in one file; the shards of the largest public models hold a few thousand."""

_HEADER_BYTES = 32 * 2**20
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


def read_header(file: SourceFile) -> tuple[list[TensorInfo], dict[str, Any]]:
    """Return every tensor of a safetensors file, in file order, and its metadata.

    Raises:
        InputError: anything but an intact file.
    """
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
    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        raise InputError(
            f"{where}: more than {MAX_TENSORS} tensors; it is damaged or hostile: "
            "get it from a source you trust"
        )
    header = parse_json(raw, f"{where}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: its __metadata__ is not an object; get the file again")
    tensors = [_tensor(name, entry, file, 8 + length) for name, entry in header.items()]
    _check_layout(tensors, file, 8 + length)
    return tensors, metadata


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(name: str, entry: Any, file: SourceFile, data_start: int) -> TensorInfo:
    where = f"{shown(file.path)}: tensor {shown(name)}"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: its name is not valid Unicode; get the file again") from None
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: needs exactly dtype, shape and data_offsets; get it again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InputError(
            f"{where}: dtype {shown(dtype)} can't be read exactly; save the model in one of "
            f"{', '.join(_DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_count, shape)):
        raise InputError(f"{where}: shape {shown(shape)} is not a list of sizes; get it again")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InputError(f"{where}: data_offsets {shown(offsets)} are not two positions")
    start, stop = offsets
    needed = prod(shape) * ITEM_BYTES[_DTYPES[dtype]]
    if stop - start != needed:
        raise InputError(
            f"{where}: {dtype} of shape {shown(shape)} needs {shown(needed)} bytes, its offsets "
            f"{shown(offsets)} give {stop - start}; the file is damaged: get it again"
        )
    return TensorInfo(
        name=name,
        dtype=_DTYPES[dtype],
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
