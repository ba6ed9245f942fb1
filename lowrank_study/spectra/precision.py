"""The dtype whose rounding is in a difference W - W0.

The dtype of a file is not always the precision of its numbers.

* If W was tuned in 16 bits and saved as float32, it has the rounding of 16 bits, and its low bits
  are all zero. `UsedBits` detects this.
* W0 may be stored in 16 bits and W in 32. If training began from finer weights and W0 was rounded
  later, this rounding error is in W - W0. If training began from the stored W0, W - W0 is exact,
  however small. `CoarseStart` tells the two cases apart.

    values = UsedBits()
    for block in blocks:
        values.add(block)
    values.dtype()          # "bfloat16"
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints import coarser
from lowrank_study.spectra.rounding import FLOAT_FORMATS

FloatArray = npt.NDArray[np.floating[Any]]

_BELOW_BFLOAT16, _BELOW_HALF = 0xFFFF, 0x1FFF
"""Bits of a float32 that bfloat16 and float16 lack."""
_LARGEST_HALF = 65504.0
MOST_CLOSE = 0.55
"""Share of differences below a quarter step that proves exactness; rounding gives 1/2."""
SIGMAS = 5.0
"""How far above that share the observed one must be, in standard deviations."""


class UsedBits:
    """The coarsest dtype that holds all of many numbers, which arrive in blocks."""

    def __init__(self) -> None:
        self._used = 0
        self._magnitude: float | None = None
        self._varied = False
        self._fits_single = self._fits_half = True
        self._declared = "float32"

    def add(self, block: FloatArray) -> None:
        """Take a block of finite numbers into account."""
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
            # The significands fit; check the largest number and the smallest step of float16.
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
        """Return "bfloat16", "float16", "float32" or "float64".

        Numbers of one magnitude show nothing; the result is then the dtype of their array.
        """
        if not self._varied:
            return self._declared
        if not self._fits_single:
            return "float64"
        if self._used & _BELOW_BFLOAT16 == 0:
            return "bfloat16"
        return "float16" if self._used & _BELOW_HALF == 0 and self._fits_half else "float32"


def dtype_of_values(matrix: FloatArray) -> str:
    """Return the coarsest dtype that holds every entry of a matrix; see `UsedBits`."""
    values = UsedBits()
    values.add(matrix)
    return values.dtype()


class CoarseStart:
    """Whether the rounding of W0, stored more coarsely than W, is in W - W0.

    The rounding error of an entry of W0 is uniform in half a step to either side. Whatever training
    adds, the difference is then below a quarter step in at most half of the entries. If it is in
    more of the entries of any one power of two, training began from the stored W0 and the
    difference is exact. Updates below a step, or of few rows, show this clearly. Updates of a few
    per cent of the weights show it only for the largest entries, whose steps are coarsest. For
    larger updates the question stays open.
    """

    def __init__(self, dtype: str) -> None:
        bits, smallest = FLOAT_FORMATS[dtype]
        # Exponent field of a float32: 0 is zero or subnormal, 255 is not finite.
        exponents = np.arange(256) - 127
        self._quarter_steps = np.exp2(np.maximum(exponents + 1.0 - bits, smallest) - 2)
        self._quarter_steps[0] = 0.0
        self._counts = np.zeros(256, dtype=np.int64)
        self._close = np.zeros(256, dtype=np.int64)

    def add(self, W0: FloatArray, delta: FloatArray) -> None:
        """Take a block of W0 and of W - W0 into account."""
        entries = W0.astype(np.float32, copy=False)
        bits = entries.view(np.uint32)
        # Steps halve below a power of two, so exact powers are counted in field 0.
        powers = ((bits >> 23 & 0xFF) * (bits & 0x7FFFFF != 0)).astype(np.uint8)
        close = np.abs(delta) < self._quarter_steps[powers]
        self._counts += np.bincount(powers.ravel(order="K"), minlength=256)
        self._close += np.bincount(powers[close], minlength=256)

    def is_rounded(self) -> bool:
        """Return whether the rounding error is in the difference; true if that stays open."""
        # A fair coin's count has the standard deviation √n/2.
        most = MOST_CLOSE * self._counts + SIGMAS * np.sqrt(self._counts) / 2
        return bool((self._close <= most).all())


def coarse_start(before: str, after: str) -> CoarseStart | None:
    """Return the test of whether W0's rounding is in a difference, or None if no test is needed.

    `before` is the storage dtype of W0, `after` the coarsest dtype that W has been through.
    """
    # Numbers in float8 or GGUF's quantisations do not determine their step.
    if coarser(before, after) == after or before not in ("float32", "float16", "bfloat16"):
        return None
    return CoarseStart(before)


def dtype_of_difference(
    W0: FloatArray, W: FloatArray, delta: FloatArray, *, dtypes: tuple[str, str]
) -> str:
    """Return the coarsest dtype whose rounding is in delta = W - W0, given both storage dtypes."""
    before, after = dtypes[0], coarser(dtypes[1], dtype_of_values(W))
    start = coarse_start(before, after)
    if start is None:
        return coarser(before, after)
    start.add(W0, delta)
    return before if start.is_rounded() else after
