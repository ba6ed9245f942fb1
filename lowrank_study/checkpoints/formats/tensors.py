r"""Describe one tensor of a file, and decode its bytes to float32 or float64 exactly.

Every 16-bit and 8-bit float is also a float32, so the conversion loses nothing:

    decode(bytearray(b"\x80\x3f"), "bfloat16", (1,))      # array([1.], dtype=float32)
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints.formats.source_file import SourceFile

Array = npt.NDArray[np.floating]
"""A float32 or float64 array."""

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""The dtypes that `decode` turns into numbers, by relative precision, finest first."""

ITEM_BYTES = {
    **{"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "bool": 1, "complex64": 8},
    **{f"{sign}int{8 * size}": size for sign in ("", "u") for size in (8, 4, 2, 1)},
}

INTEGERS = tuple(dtype for dtype in ITEM_BYTES if "int" in dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """The place and type of one tensor, known without reading it."""

    name: str
    """The name in the file, before wrapper prefixes are stripped."""
    dtype: str
    """The storage dtype in PyTorch's spelling, or GGUF's quantisation such as `Q4_1`."""
    shape: tuple[int, ...]
    """The shape in the file's own orientation."""
    start: int
    """First byte in the file."""
    stop: int
    """One past the last byte in the file."""
    file: SourceFile


def is_readable(dtype: str) -> bool:
    """Whether a dtype stands for real numbers: a float, or one of GGUF's (upper-case) types."""
    return dtype in FLOATS or dtype[:1].isupper()


def coarser(*dtypes: str) -> str:
    """Return the storage dtype with fewest significant bits; GGUF's quantisations are coarsest."""
    return max(dtypes, key=lambda dtype: FLOATS.index(dtype) if dtype in FLOATS else 99)


def decode(data: bytearray, dtype: str, shape: tuple[int, ...]) -> Array:
    """Decode row-major little-endian bytes exactly: float64 to float64, other dtypes to float32."""
    match dtype:
        case "float64":
            values: Array = np.frombuffer(data, "<f8").astype(np.float64, copy=False)
        case "float32":
            values = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
        case "float16":
            with np.errstate(invalid="ignore"):  # for signalling NaN
                values = np.frombuffer(data, "<f2").astype(np.float32)
        case "bfloat16":
            bits = np.frombuffer(data, "<u2").astype(np.uint32)
            bits <<= 16
            values = bits.view(np.float32)
        case "float8_e4m3fn" | "float8_e5m2":
            values = _float8_values(dtype)[np.frombuffer(data, np.uint8)]
        case _:
            raise ValueError(f"{dtype} is not one of {FLOATS}")
    return values.reshape(shape)


@cache
def _float8_values(dtype: str) -> npt.NDArray[np.float32]:
    """Return the 256 values of an 8-bit float (OCP 8-bit floating point specification, 2023)."""
    code = np.arange(256)
    mantissa_bits, bias = (3, 7) if dtype == "float8_e4m3fn" else (2, 15)
    sign = np.where(code >> 7, -1.0, 1.0)
    exponent = (code & 0x7F) >> mantissa_bits
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = sign * np.where(
        exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias)
    )
    if dtype == "float8_e4m3fn":
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[[0x7C, 0xFC]] = np.inf, -np.inf
        values[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return values.astype(np.float32)
