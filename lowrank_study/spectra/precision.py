"""Which dtype the numbers of a difference W - W0 have really been through.

A file's dtype says in how many bits a number is written, which isn't always its precision.

* A W that was tuned in 16 bits and then saved as float32 has the rounding of 16 bits, and all
  its low bits are zero: `UsedBits`.
* W0 is in 16 bits, W in 32. Either W0 was rounded for storage after W had been trained from
  finer numbers; then its rounding error is in W - W0. Or training began from W0 as it is
  stored; then W - W0 is exact, however small. The numbers tell which: `CoarseStart`.

    values = UsedBits()
    for block in blocks:
        values.add(block)
    values.dtype()          # "bfloat16"
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints import coarser
from lowrank_study.spectra.noise import FLOAT_FORMATS

FloatArray = npt.NDArray[np.floating[Any]]

_BELOW_BFLOAT16, _BELOW_HALF = 0xFFFF, 0x1FFF
"""Bits of a float32 that bfloat16 and float16 don't have."""
_LARGEST_HALF = 65504.0
MOST_CLOSE = 0.55
"""Share of entries within a quarter step of zero that rounding never reaches: it gives 1/2."""
SIGMAS = 5.0
"""How far above that share, in its scatter by chance, a share has to be."""


class UsedBits:
    """Finds the coarsest dtype that holds every one of many numbers, given in blocks."""

    def __init__(self) -> None:
        self._used = 0
        self._magnitude: float | None = None
        self._varied = False
        self._fits_single = self._fits_half = True
        self._declared = "float32"

    def add(self, block: FloatArray) -> None:
        """Take some more finite numbers into account."""
        if block.size == 0:
            return
        low, high = float(block.min()), float(block.max())
        self._varied = self._varied or self._is_varied(block, low, high)
        with np.errstate(over="ignore"):
            single = block.astype(np.float32, copy=False)
        if block.dtype == np.float64:
            self._declared = "float64"
            self._fits_single = self._fits_single and np.array_equal(single, block)
        self._used |= int(np.bitwise_or.reduce(single.view(np.uint32), axis=None))
        if self._fits_half and self._used & _BELOW_HALF == 0:
            # Eleven bits are in place; what is left is a half's largest number and smallest step.
            with np.errstate(over="ignore"):
                steps = single * np.float32(2**24)
            self._fits_half = max(high, -low) <= _LARGEST_HALF and np.array_equal(
                np.rint(steps), steps
            )

    def _is_varied(self, block: FloatArray, low: float, high: float) -> bool:
        if self._magnitude is None:
            self._magnitude = abs(high)
        if {abs(low), abs(high)} != {self._magnitude}:
            return True
        return bool(np.any(np.abs(block) != self._magnitude))

    def dtype(self) -> str:
        """Give that dtype: "bfloat16", "float16", "float32" or "float64".

        Numbers that tell nothing, as all are of one magnitude, have the dtype of their array.
        """
        if not self._varied:
            return self._declared
        if not self._fits_single:
            return "float64"
        if self._used & _BELOW_BFLOAT16 == 0:
            return "bfloat16"
        return "float16" if self._used & _BELOW_HALF == 0 and self._fits_half else "float32"


def dtype_of_values(matrix: FloatArray) -> str:
    """Give the coarsest dtype that holds every entry of a matrix; see `UsedBits`.

    Args:
        matrix: Any float dtype, as it was read.

    Returns:
        "bfloat16", "float16", "float32" or "float64"; that of the array itself for a matrix
        that tells nothing (all entries of one magnitude).
    """
    values = UsedBits()
    values.add(matrix)
    return values.dtype()


class CoarseStart:
    """Tells whether the rounding of a W0 that is stored more coarsely than W is in W - W0.

    An entry of W0 that was rounded is off by an error uniform in half a step to either side.
    Whatever was trained on top of it, the difference is then smaller than a quarter of a step in
    at most half of the entries. Where it is in more of them, among those of any one power of
    two, W0 wasn't rounded: training began from it as it is stored, and the difference is exact.
    Updates below a step, or of few rows, show that at once; those of some per cent of the
    weights only at the largest, whose steps are the coarsest; of larger ones it stays open.
    """

    def __init__(self, dtype: str) -> None:
        bits, smallest = FLOAT_FORMATS[dtype]
        # Of the exponent field of a float32: 0 is zero and what is subnormal, 255 isn't finite.
        exponents = np.arange(256) - 127
        self._quarter_steps = np.exp2(np.maximum(exponents + 1.0 - bits, smallest) - 2)
        self._quarter_steps[0] = 0.0
        self._counts = np.zeros(256, dtype=np.int64)
        self._close = np.zeros(256, dtype=np.int64)

    def add(self, W0: FloatArray, delta: FloatArray) -> None:
        """Take a block of W0 and of W - W0 into account."""
        entries = W0.astype(np.float32, copy=False)
        bits = entries.view(np.uint32)
        # Below a power of two steps are half as long, so these entries are left to field 0.
        powers = ((bits >> 23 & 0xFF) * (bits & 0x7FFFFF != 0)).astype(np.uint8)
        close = np.abs(delta) < self._quarter_steps[powers]
        self._counts += np.bincount(powers.ravel(order="K"), minlength=256)
        self._close += np.bincount(powers[close], minlength=256)

    def is_rounded(self) -> bool:
        """Whether the rounding error is in the difference; true where it stays open."""
        # Of n entries a number that is a coin's scatters by √n/2.
        most = MOST_CLOSE * self._counts + SIGMAS * np.sqrt(self._counts) / 2
        return bool((self._close <= most).all())


def coarse_start(before: str, after: str) -> CoarseStart | None:
    """Give what tells whether W0's rounding is in a difference; None where it surely is.

    Args:
        before: Storage dtype of W0.
        after: Coarsest dtype that W has been through.
    """
    # Of float8 and GGUF's quantisations the numbers alone don't tell the step.
    if coarser(before, after) == after or before not in ("float32", "float16", "bfloat16"):
        return None
    return CoarseStart(before)


def dtype_of_difference(
    W0: FloatArray, W: FloatArray, delta: FloatArray, *, dtypes: tuple[str, str]
) -> str:
    """Give the coarsest dtype whose rounding is in the difference of two stored matrices.

    Args:
        W0: Before, as it was read.
        W: After.
        delta: W - W0.
        dtypes: In which W0 and W are stored.
    """
    before, after = dtypes[0], coarser(dtypes[1], dtype_of_values(W))
    start = coarse_start(before, after)
    if start is None:
        return coarser(before, after)
    start.add(W0, delta)
    return before if start.is_rounded() else after
