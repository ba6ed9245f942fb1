"""The rounding floor: what storage in few bits adds to an update.

A checkpoint in 16 bits has lost digits. The error this adds to W - W0 depends only on the weights
and the dtype, so it is known before any spectrum.

    floor = rounding_floor(W0_OI, delta_OI, "bfloat16")
    resolvable_energy_share(singular_values, floor.edge)   # below 0.9: rounding decides the rank

Rounding of adapter factors is different: it moves the singular values of their product a little,
but cannot add a direction (`rounding_floor_of_factors`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowrank_study.errors import InputError
from lowrank_study.spectra.ranks import checked
from lowrank_study.spectra.svd import Matrix, selected

Vector = npt.NDArray[np.float64]

FLOAT_FORMATS = {
    "float64": (53, -1074),
    "float32": (24, -149),
    "float16": (11, -24),
    "bfloat16": (8, -133),
    "float8_e4m3fn": (4, -9),
    "float8_e5m2": (3, -16),
}
"""Significand bits including the hidden one, and log2 of the smallest (subnormal) step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingFloor:
    """The expected rounding error of storage in an update; NaN if unknown."""

    edge: float
    """Expected largest singular value of the rounding error, in the unit of the weights."""
    frobenius_norm: float
    """Expected Frobenius norm of the rounding error, in the unit of the weights."""


NO_ROUNDING = RoundingFloor(edge=0.0, frobenius_norm=0.0)
UNKNOWN_ROUNDING = RoundingFloor(edge=math.nan, frobenius_norm=math.nan)


def rounding_floor(W0_OI: Matrix | None, delta_OI: Matrix, dtype: str) -> RoundingFloor:
    """Estimate the rounding error in the difference of two stored matrices, or in one of them.

    Each stored entry w is off by up to half a step, variance step(w)^2 / 12. The variances of
    W0 and of W = W0 + delta add; the error's Frobenius norm is the root of their sum, and its
    largest singular value is about the largest root-sum over a row plus the largest over a column
    (s (sqrt(m) + sqrt(n)) if all variances are s^2). Rows and columns in which nothing changed
    hold no error and are left out. For updates smaller than a step, this is an upper estimate. For
    quantised integers the floor is NaN, because their entries do not determine their steps.

    `W0_OI` is None if `delta_OI` is itself a stored matrix. `dtype` is the coarsest of both storage
    dtypes.

    Source:
        Step noise: Widrow & Kollar, "Quantization noise", 2008. Norm of a matrix with a
        variance profile: Bandeira & van Handel, "Sharp nonasymptotic bounds on the norm of
        random matrices with independent entries", 2016.
    """
    if W0_OI is not None and W0_OI.shape != delta_OI.shape:
        raise InputError(f"shapes {W0_OI.shape} and {delta_OI.shape} differ; give the same matrix")
    if dtype not in FLOAT_FORMATS:
        return UNKNOWN_ROUNDING
    changed = delta_OI != 0
    rows, columns = changed.any(axis=1), changed.any(axis=0)
    if not rows.any():
        # Changes smaller than a step are hidden, possibly everywhere.
        rows[:], columns[:] = True, True
    delta = selected(delta_OI, rows, columns)
    unit = _power_of_two_above(delta_OI)
    if W0_OI is not None:
        unit = max(unit, _power_of_two_above(W0_OI))
    if unit == 0.0:
        return NO_ROUNDING
    if W0_OI is None:
        by_row, by_column = _variance_sums(lambda i, j: delta[i:j], delta.shape, dtype, unit)
    else:
        base = selected(W0_OI, rows, columns)
        by_row, by_column = _variance_sums(lambda i, j: base[i:j], base.shape, dtype, unit)
        # W is formed block by block in float64, because float32 would round it.
        after = _variance_sums(
            lambda i, j: np.add(base[i:j], delta[i:j], dtype=np.float64), base.shape, dtype, unit
        )
        by_row, by_column = by_row + after[0], by_column + after[1]
    return RoundingFloor(
        edge=unit * math.sqrt(by_row.max()) + unit * math.sqrt(by_column.max()),
        frobenius_norm=unit * math.sqrt(by_row.sum()),
    )


def rounding_floor_of_factors(
    B_OR: Matrix, A_RI: Matrix, scaling: float, dtype: str
) -> RoundingFloor:
    """Estimate how far rounding of stored factors moves the singular values of their product.

    With independent errors dB, dA, the error dB A + B dA has the expected squared norm
    sum_r |dB_r|^2 |A_r|^2 + |B_r|^2 |dA_r|^2 over the columns of B and rows of A. By Weyl's
    inequality no singular value moves further than the norm of the error, so `edge` is its
    Frobenius norm. Unlike the rounding of a difference, it adds no directions. For quantised
    integers the floor is NaN.
    """
    if dtype not in FLOAT_FORMATS:
        return UNKNOWN_ROUNDING
    left, right = _power_of_two_above(B_OR), _power_of_two_above(A_RI)
    if left == 0.0 or right == 0.0:
        return NO_ROUNDING
    B, A = B_OR / np.float64(left), A_RI / np.float64(right)
    _, dB = _variance_sums(lambda i, j: B_OR[i:j], B_OR.shape, dtype, left)
    dA, _ = _variance_sums(lambda i, j: A_RI[i:j], A_RI.shape, dtype, right)
    squared = np.sum(dB * np.sum(A**2, axis=1)) + np.sum(np.sum(B**2, axis=0) * dA)
    norm = float(np.sqrt(squared)) * left * right * abs(scaling)
    return RoundingFloor(edge=norm, frobenius_norm=norm)


def _power_of_two_above(matrix: Matrix) -> float:
    """Return the power of two just above the largest magnitude; 0.0 for a zero matrix."""
    largest = max(float(matrix.max()), -float(matrix.min()))
    if not math.isfinite(largest):
        raise InputError("a matrix holds NaN or Inf; leave such a matrix out")
    # 2^1024 exceeds float64.
    return 0.0 if largest == 0.0 else math.ldexp(1.0, min(math.frexp(largest)[1], 1023))


def _variance_sums(
    rows_between: Callable[[int, int], Matrix], shape: tuple[int, ...], dtype: str, unit: float
) -> tuple[Vector, Vector]:
    """Return the row sums and column sums of step(w)^2 / 12, in units of `unit`^2."""
    bits, smallest = FLOAT_FORMATS[dtype]
    exponent_bits = np.int64(0x7FF0000000000000)
    least = max(math.ldexp(1.0, smallest + bits - 1), float(np.finfo(np.float64).tiny))
    by_row, by_column = np.empty(shape[0]), np.zeros(shape[1])
    block = max(1, 2**17 // shape[1])
    for start in range(0, shape[0], block):
        entries = rows_between(start, start + block).astype(np.float64)
        # The exponent's bits alone give the power of two at or below each magnitude.
        powers = (entries.view(np.int64) & exponent_bits).view(np.float64)
        np.maximum(powers, least, out=powers)
        powers /= unit
        by_row[start : start + block] = np.einsum("ij,ij->i", powers, powers)
        by_column += np.einsum("ij,ij->j", powers, powers)
    factor = math.ldexp(1.0, 2 * (1 - bits)) / 12.0
    return by_row * factor, by_column * factor


def resolvable_energy_share(singular_values: npt.ArrayLike, edge: float) -> float:
    """Return sum_{sigma_i > edge} sigma_i^2 / sum_i sigma_i^2, the energy share above a floor.

    It is NaN for a zero matrix or an unknown floor.
    """
    values = checked(singular_values)
    if math.isnan(edge) or values.size == 0 or values[0] == 0.0:
        return math.nan
    scaled = values / values[0]
    return float(np.sum(scaled[values > edge] ** 2) / np.sum(scaled**2))
