"""How much of a spectrum noise alone explains, and under which floor no rank can be told.

Three answers, from three models of the noise:

* Marchenko-Pastur: the singular values of an m x n matrix of independent entries with
  standard deviation s end at s (sqrt(m) + sqrt(n)); what stands above isn't noise.
* Gavish-Donoho: the cut omega(beta) * median sigma above which keeping a direction lowers
  the error of the denoised matrix; it needs no knowledge of s.
* Rounding: a checkpoint stored in 16 bits has lost digits. The error that adds to W - W0
  depends on the weights and the dtype alone, so it is known before any spectrum is.

    floor = rounding_floor(W0_OI, delta_OI, "bfloat16")
    is_resolvable(singular_values, floor.edge, share=0.90)   # False: that rank is of rounding

Rounding of adapter factors is another thing. It moves the singular values of their product
a little and can't add a direction beyond the factors' rank: `rounding_floor_of_factors`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.optimize import brentq

from lowrank_study.errors import InputError
from lowrank_study.spectra.ranks import checked

Matrix = npt.NDArray[np.floating[Any]]
Vector = npt.NDArray[np.float64]

# Significand bits with the hidden one, and log2 of the smallest step (that of subnormals).
FLOAT_FORMATS = {
    "float64": (53, -1074),
    "float32": (24, -149),
    "float16": (11, -24),
    "bfloat16": (8, -133),
    "float8_e4m3fn": (4, -9),
    "float8_e5m2": (3, -16),
}


@lru_cache(maxsize=4096)
def noise_energy_rank(out_features: int, in_features: int) -> float:
    """Give the 90 % energy rank that independent Gaussian noise of this shape would have.

    Marchenko and Pastur: with β = min/max of the shape and σ² ∝ 1 + β + 2√β cos θ, the
    density of θ on (0, π) is ∝ sin²θ / (1 + β + 2√β cos θ) and of the energy ∝ sin²θ, so
    the top singular values that hold 90 % are those with θ below the quantile of
    sin²θ. It is what a rank says of an update without any structure: .509 n for n × n.
    """
    small, large = sorted((out_features, in_features))
    beta = small / large
    theta = (np.arange(20_000) + 0.5) * (math.pi / 20_000)
    held = np.cumsum(np.sin(theta) ** 2)
    count = np.cumsum(np.sin(theta) ** 2 / (1 + beta + 2 * math.sqrt(beta) * np.cos(theta)))
    share = float(np.interp(0.9, held / held[-1], count / count[-1]))
    return share * small


@lru_cache(maxsize=4096)
def marchenko_pastur_median(beta: float) -> float:
    """Give the median of the Marchenko-Pastur law of squared singular values.

    The law of lambda = sigma^2 / (max(m, n) s^2), with density
    sqrt((b - x)(x - a)) / (2 pi beta x) on a, b = (1 -/+ sqrt(beta))^2.

    Args:
        beta: Aspect ratio min(m, n) / max(m, n), in (0, 1].

    Returns:
        The median, in (0, 1]; 1 in the limit beta -> 0.

    Raises:
        InputError: If beta is outside (0, 1].
    """
    if not 0.0 < beta <= 1.0:
        raise InputError(f"aspect ratio {beta} is outside (0, 1]; give min(m, n) / max(m, n)")
    root = math.sqrt(beta)

    # With x = 1 + beta + 2 sqrt(beta) cos t the square-root ends of the density are smooth.
    def density(t: float) -> float:
        if beta == 1.0:
            return (1.0 - math.cos(t)) / math.pi
        return 2.0 * math.sin(t) ** 2 / (math.pi * (1.0 + beta + 2.0 * root * math.cos(t)))

    def excess(t: float) -> float:
        return float(quad(density, t, math.pi, epsabs=1e-13, epsrel=1e-13, limit=200)[0]) - 0.5

    t = float(brentq(excess, 1e-3, math.pi - 1e-3, xtol=1e-14))
    return 1.0 + beta + 2.0 * root * math.cos(t)


def noise_std(singular_values: npt.ArrayLike, shape: tuple[int, int]) -> float:
    """Estimate the standard deviation of the noise in each entry of a matrix.

    s = median(sigma) / sqrt(max(m, n) * mu_beta), mu_beta the Marchenko-Pastur median. Robust
    as long as the signal holds a small part of the directions.

    Args:
        singular_values: Descending, any unit; zeros beyond the end may be left out.
        shape: (m, n) of the matrix, without rows and columns that are exactly zero.

    Returns:
        s in the unit of the singular values; 0.0 where more than half of them are zero.
    """
    m, n = shape
    beta = min(m, n) / max(m, n)
    return _median(singular_values, shape) / math.sqrt(max(m, n) * marchenko_pastur_median(beta))


def marchenko_pastur_edge(singular_values: npt.ArrayLike, shape: tuple[int, int]) -> float:
    """Give the largest singular value that noise alone is expected to have.

    s (sqrt(m) + sqrt(n)) with s from `noise_std`. The largest value of pure noise scatters
    around the edge by about s n^(-1/6) and exceeds it in a few matrices of a hundred.

    Args:
        singular_values: Descending, any unit; zeros beyond the end may be left out.
        shape: (m, n) of the matrix, without rows and columns that are exactly zero.

    Returns:
        The edge in the unit of the singular values; 0.0 for a matrix of low rank (no noise).

    Source:
        Marchenko & Pastur, "Distribution of eigenvalues for some sets of random matrices", 1967.
    """
    m, n = shape
    return noise_std(singular_values, shape) * (math.sqrt(m) + math.sqrt(n))


def gavish_donoho_coefficient(beta: float) -> float:
    """Give the factor between the median singular value and the optimal hard threshold.

    omega(beta) = lambda(beta) / sqrt(mu_beta), lambda(beta)^2 = 2 (beta + 1)
    + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1)); mu_beta integrated numerically.

    Args:
        beta: Aspect ratio min(m, n) / max(m, n), in (0, 1].

    Returns:
        omega, 2.858 for a square matrix.

    Source:
        Gavish & Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", 2014,
        eq. 11 for lambda. Their eq. 5, .56 b^3 - .95 b^2 + 1.82 b + 1.43, is within .02 of this.
    """
    median = marchenko_pastur_median(beta)
    squared = 2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
    return math.sqrt(squared / median)


def gavish_donoho_rank(
    singular_values: npt.ArrayLike, shape: tuple[int, int], *, tolerance: float
) -> int:
    """Count the directions worth keeping in a low-rank matrix seen through unknown noise.

    The number of sigma_i > max(omega(beta) * median(sigma), tolerance).

    A matrix of structurally low rank (a product of factors, or more than half of the singular
    values zero) has median 0 and no noise to be cut: then the count is the numerical rank.

    Args:
        singular_values: Descending, any unit; zeros beyond the end may be left out.
        shape: (m, n) of the matrix, without rows and columns that are exactly zero.
        tolerance: Value under which a singular value counts as zero (`ranks.rank_tolerance`).

    Returns:
        A count in 0..min(m, n); 0 for pure noise.

    Source:
        Gavish & Donoho, 2014, for a noise level that isn't known.
    """
    values = checked(singular_values)
    beta = min(shape) / max(shape)
    cut = gavish_donoho_coefficient(beta) * _median(values, shape)
    return int(np.count_nonzero(values > max(cut, tolerance)))


def _median(singular_values: npt.ArrayLike, shape: tuple[int, int]) -> float:
    """Median of the min(m, n) singular values of which trailing zeros may be left out."""
    values = checked(singular_values)
    count = min(shape)
    if values.size > count:
        raise InputError(f"{values.size} singular values of a {shape[0]} x {shape[1]} matrix")
    middle = [values[i] if i < values.size else 0.0 for i in ((count - 1) // 2, count // 2)]
    return float(0.5 * middle[0] + 0.5 * middle[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingFloor:
    """What storing in few bits is expected to have added to an update; NaN where unknown."""

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
    hold no error and are left out. For updates smaller than a step, this is an upper estimate.

    Args:
        W0_OI: Matrix before, as it was stored; None if `delta_OI` is itself a stored matrix.
        delta_OI: W - W0, same shape and unit.
        dtype: Coarsest of both storage dtypes, a key of `FLOAT_FORMATS`.

    Returns:
        The floor in the unit of the weights; NaN for quantised integers, because their entries
        do not determine their steps.

    Raises:
        InputError: The shapes differ, or a matrix holds NaN or Inf.

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
        # Whatever was smaller than a step is hidden, and may be so everywhere.
        rows[:], columns[:] = True, True
    delta = delta_OI if rows.all() else delta_OI[rows]
    delta = delta if columns.all() else delta[:, columns]
    unit = _power_of_two_above(delta_OI)
    if W0_OI is not None:
        unit = max(unit, _power_of_two_above(W0_OI))
    if unit == 0.0:
        return NO_ROUNDING
    if W0_OI is None:
        by_row, by_column = _variance_sums(lambda i, j: delta[i:j], delta.shape, dtype, unit)
    else:
        base = W0_OI if rows.all() else W0_OI[rows]
        base = base if columns.all() else base[:, columns]
        by_row, by_column = _variance_sums(lambda i, j: base[i:j], base.shape, dtype, unit)
        # W is put together a block at a time, and in float64: in float32 it would be rounded.
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

    With independent errors dB, dA the error dB A + B dA has the expected squared norm
    sum_r |dB_r|^2 |A_r|^2 + |B_r|^2 |dA_r|^2 over the factors' columns and rows r. By Weyl's
    inequality no singular value moves further than the error's norm; `edge` is therefore this
    Frobenius norm. Unlike a rounded difference it can't add directions: the rank of the
    product is at most R however coarse the factors are.

    Args:
        B_OR: Left factor as it was stored.
        A_RI: Right factor as it was stored.
        scaling: Factor in front of the product.
        dtype: Coarsest of both storage dtypes, a key of `FLOAT_FORMATS`.

    Returns:
        The floor in the unit of the product; NaN for a dtype that isn't a plain float.
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
    """Power of two just above the largest magnitude; 0.0 for a zero matrix."""
    largest = max(float(matrix.max()), -float(matrix.min()))
    if not math.isfinite(largest):
        raise InputError("a matrix holds NaN or Inf; leave such a matrix out")
    # 2^1024 isn't a float64, hence the cap.
    return 0.0 if largest == 0.0 else math.ldexp(1.0, min(math.frexp(largest)[1], 1023))


def _variance_sums(
    rows_between: Callable[[int, int], Matrix], shape: tuple[int, ...], dtype: str, unit: float
) -> tuple[Vector, Vector]:
    """Row sums and column sums of step(w)^2 / 12, in units of `unit`^2."""
    bits, smallest = FLOAT_FORMATS[dtype]
    exponent_bits = np.int64(0x7FF0000000000000)
    least = max(math.ldexp(1.0, smallest + bits - 1), float(np.finfo(np.float64).tiny))
    by_row, by_column = np.empty(shape[0]), np.zeros(shape[1])
    block = max(1, 2**17 // shape[1])
    for start in range(0, shape[0], block):
        entries = rows_between(start, start + block).astype(np.float64)
        # Only the exponent's bits are kept: the power of two at or below each magnitude.
        powers = (entries.view(np.int64) & exponent_bits).view(np.float64)
        np.maximum(powers, least, out=powers)
        powers /= unit
        by_row[start : start + block] = np.einsum("ij,ij->i", powers, powers)
        by_column += np.einsum("ij,ij->j", powers, powers)
    factor = math.ldexp(1.0, 2 * (1 - bits)) / 12.0
    return by_row * factor, by_column * factor


def resolvable_energy_share(singular_values: npt.ArrayLike, edge: float) -> float:
    """Give the share of the energy that lies in directions above a noise floor.

    sum_{sigma_i > edge} sigma_i^2 / sum_i sigma_i^2.

    Args:
        singular_values: Descending, any unit.
        edge: Largest singular value the noise is expected to have, in the same unit.

    Returns:
        A number in [0, 1]; NaN for a zero matrix or an unknown (NaN) floor.
    """
    values = checked(singular_values)
    if math.isnan(edge) or values.size == 0 or values[0] == 0.0:
        return math.nan
    scaled = values / values[0]
    return float(np.sum(scaled[values > edge] ** 2) / np.sum(scaled**2))


def is_resolvable(singular_values: npt.ArrayLike, edge: float, share: float) -> bool:
    """Decide whether an energy rank is one of the update rather than of the noise floor.

    It is when every direction the rank counts stands above the floor, which is when those
    above it hold the share. A zero update is resolvable only if there is no floor at all:
    under one, "no update" and "smaller than a step" look alike. Nothing is above an unknown
    (NaN) floor.

    Args:
        singular_values: Descending, any unit.
        edge: Largest singular value the noise is expected to have, in the same unit.
        share: Share of the energy that the energy rank holds, in (0, 1].

    Returns:
        Whether the energy rank at that share may be given as a number.
    """
    values = checked(singular_values)
    if values.size == 0 or values[0] == 0.0:
        return edge == 0.0
    return resolvable_energy_share(values, edge) >= share
