"""Read the header of a GGUF file, and dequantise its tensors through the `gguf` library.

A GGUF file is `GGUF`, a version, the numbers of tensors and of settings, the settings, the
tensors' descriptions and, aligned, their data. The library maps the file into memory and
believes its counts, so the header is parsed here with bounds; only the arithmetic of the
quantisation formats is the library's.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats.source_file import SourceFile, damaged, shown
from lowrank_study.checkpoints.formats.stored import (
    MAX_TENSORS,
    Format,
    Stored,
    check_layout,
    rows_of,
)
from lowrank_study.checkpoints.formats.tensors import FLOATS, Array, TensorInfo, decode
from lowrank_study.errors import InputError

_HEADER_BYTES = 64 * 2**20
_MAX_STRINGS = 2_000_000
_MAX_SETTINGS = 10_000
_STRING, _ARRAY = 8, 9
_CODES = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""GGUF's type number of a setting to the code of `struct`."""

_PLAIN = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8",
    "I16": "int16", "I32": "int32", "I64": "int64",
}  # fmt: skip
_MERGE = "merge them with llama.cpp's `llama-gguf-split --merge` first"


class _Header:
    """A cursor over the header's bytes that never reads past them."""

    def __init__(self, file: SourceFile) -> None:
        self.where = shown(file.path)
        self._data = file.read(0, min(file.size, _HEADER_BYTES))
        self._strings = 0
        self.position = 0

    def refuse(self, what: str) -> InputError:
        return damaged(self.where, what)

    def _skip(self, count: int) -> int:
        """Move past some bytes; return where they begin."""
        start = self.position
        if count > len(self._data) - start:
            raise self._too_short()
        self.position += count
        return start

    def _too_short(self) -> InputError:
        return self.refuse(f"its header runs past byte {len(self._data)}")

    def number(self, code: str) -> Any:
        start = self._skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self._data, start)[0]

    def string(self) -> str:
        self._count_strings(1)
        start = self._skip(self.number("Q"))
        try:
            return self._data[start : self.position].decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"a string at byte {start} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """Read a setting; arrays are skipped, because none of them is needed."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item == _STRING:
                self._skip_strings(count)
            else:
                self._skip(count * struct.calcsize("<" + self._code(item)))
            return None
        return self.number(self._code(kind))

    def _skip_strings(self, count: int) -> None:
        """Skip an array of strings in a tight loop, because a vocabulary can have a million."""
        self._count_strings(count)
        position, last = self.position, len(self._data) - 8
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if position > last:
                raise self._too_short()
            position += 8 + length_at(self._data, position)[0]
        self._skip(position - self.position)

    def _count_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > _MAX_STRINGS:
            raise self.refuse(f"more than {_MAX_STRINGS} strings in its header")

    def _code(self, kind: int) -> str:
        if kind not in _CODES:
            raise self.refuse(f"a setting of the unknown type {kind}")
        return _CODES[kind]


def read_gguf(files: Sequence[SourceFile]) -> Stored:
    """Return every tensor and the scalar settings of a GGUF file.

    GGUF lists dimensions in the opposite order; shapes are returned as (out, in).
    """
    file = files[0]
    if len(files) != 1:
        raise InputError(f"{shown(file.path.parent)}: {len(files)} GGUF parts; {_MERGE}")
    header = _Header(file)
    settings, tensor_count = _settings(header)
    entries: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for _ in range(tensor_count):
        name = header.string()
        if name in entries:
            raise header.refuse(f"the tensor {shown(name)} occurs twice")
        entries[name] = _entry(header, name)
    alignment = settings.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
        raise header.refuse(f"its alignment is {shown(alignment)}")
    start = -(-header.position // alignment) * alignment
    tensors = [
        TensorInfo(
            name=name,
            dtype=_PLAIN.get(kind, kind),
            shape=shape,
            start=start + offset,
            stop=start + offset + size,
            file=file,
        )
        for name, (shape, kind, offset, size) in entries.items()
    ]
    check_layout(tensors, file, start, alignment=alignment)
    quantised = ", ".join(sorted({tensor.dtype for tensor in tensors} - set(FLOATS)))
    flag = f"GGUF dequantised from {quantised}: not the original weights"
    return Stored(
        tensors=tensors,
        metadata=settings,
        config={"gguf_architecture": settings.get("general.architecture")},
        read_rows=_read_rows,
        flags=[flag if quantised else "read from GGUF"],
    )


GGUF = Format(
    name="gguf",
    suffixes=(".gguf",),
    recognises=lambda head: head[:4] == b"GGUF",
    runs_code=False,
    read=read_gguf,
)


def _settings(header: _Header) -> tuple[dict[str, Any], int]:
    """Return the settings, and the number of tensors that are described after them."""
    header.number("I")  # "GGUF"
    version = header.number("I")
    if version not in (2, 3):
        raise InputError(
            f"{header.where}: GGUF version {version} can't be read; convert it to version 3"
        )
    tensor_count, setting_count = header.number("Q"), header.number("Q")
    if tensor_count > MAX_TENSORS or setting_count > _MAX_SETTINGS:
        raise header.refuse(f"{tensor_count} tensors and {setting_count} settings are too many")
    settings: dict[str, Any] = {}
    for _ in range(setting_count):
        key = header.string()
        if key in settings:
            raise header.refuse(f"the setting {shown(key)} occurs twice")
        settings[key] = header.value(header.number("I"))
    if settings.get("split.count", 0) not in (0, 1):
        raise InputError(
            f"{header.where}: is one of {shown(settings['split.count'])} parts; {_MERGE}"
        )
    return settings, tensor_count


def _entry(header: _Header, name: str) -> tuple[tuple[int, ...], str, int, int]:
    """Return the shape, quantisation, offset and size in bytes of the next tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    dimensions = header.number("I")
    if dimensions > 8:
        raise header.refuse(f"tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
    code, offset = header.number("I"), header.number("Q")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        raise InputError(
            f"{header.where}: tensor {shown(name)} has the unknown quantisation type {code}; "
            "update the gguf library, or convert the file to F16"
        ) from None
    if kind.name not in _PLAIN and not _can_dequantize(kind):
        raise InputError(
            f"{header.where}: tensor {shown(name)} is {kind.name}, which the gguf library "
            "can't dequantise; convert the file to F16"
        )
    block, size = GGML_QUANT_SIZES[kind]
    if (shape[-1] if shape else 1) % block:
        raise header.refuse(
            f"tensor {shown(name)}: {kind.name} stores blocks of {block}, not rows of {shape[-1:]}"
        )
    return shape, kind.name, offset, prod(shape) // block * size


@cache
def _can_dequantize(kind: Any) -> bool:
    """Whether the library can dequantise a type; a block of zeros is tried."""
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _read_rows(info: TensorInfo, first: int, last: int) -> Array:
    """Read rows of a tensor, dequantised to float32."""
    if len(info.shape) < 2:  # a block of quantised numbers may span several "rows"
        return _read_whole(info)[first:last] if info.shape else _read_whole(info)
    return _read_whole(rows_of(info, first, last))


def _read_whole(tensor: TensorInfo) -> Array:
    data = tensor.file.read(tensor.start, tensor.stop)
    if tensor.dtype in _PLAIN.values():
        return decode(data, tensor.dtype, tensor.shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(data, np.uint8).reshape(*tensor.shape[:-1], -1)
    with np.errstate(all="ignore"):  # a damaged scale may be anything; callers check for NaN
        values = dequantize(rows, GGMLQuantizationType[tensor.dtype])
    return np.asarray(values, np.float32).reshape(tensor.shape)
