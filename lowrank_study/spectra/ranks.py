"""Measures of rank, each a pure function of descending singular values.

The measures answer different questions and disagree by orders of magnitude on the same
matrix, so each has its own name and there is no plain "rank" here.

    sigma = np.array([3.0, 1.0, 0.1])
    energy_rank(sigma, 0.90)    # 2: the first two hold 99.9 % of the energy, the first 89.9 %
    effective_rank(sigma)       # 1.94

On pure noise they read .51 n (energy rank 90), .80 n (effective), .5 n (participation) and
n/4 (stable); `lowrank_study.spectra.noise` has the measures that read 0 there.

All take float64 values in any unit: they are first divided by the largest one, so that
neither 1e30 nor 1e-300 overflows or vanishes on squaring. Of no singular values, or of all
zero, ranks that count are 0 and ratios are NaN ("undefined").
"""

import math

import numpy as np
import numpy.typing as npt

from lowrank_study.errors import InputError

SingularValues = npt.NDArray[np.float64]


def checked(singular_values: npt.ArrayLike) -> SingularValues:
    """Give singular values as a float64 vector after checking that they can be some.

    Args:
        singular_values: Vector, descending, none negative.

    Returns:
        The same values as float64.

    Raises:
        InputError: If they aren't a finite, non-negative, descending vector.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"singular values have shape {values.shape}; give a vector")
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise InputError(f"{bad} of {values.size} singular values are NaN or Inf; give finite ones")
    if values.size and (values[-1] < 0 or (np.diff(values) > 0).any()):
        raise InputError("singular values must be >= 0 and descending; sort them first")
    return values


def unit_scaled(singular_values: npt.ArrayLike) -> SingularValues:
    """Divide singular values by the largest; the empty vector if there is none above zero."""
    values = checked(singular_values)
    if values.size == 0 or values[0] == 0.0:
        return np.zeros(0)
    # A subnormal largest value has no full precision to keep, but mustn't overflow 1 / sigma_1.
    exponent = math.frexp(float(values[0]))[1]
    scaled: SingularValues = np.ldexp(values, -exponent)
    scaled /= scaled[0]
    return scaled


def energy_rank(singular_values: npt.ArrayLike, share: float) -> int:
    """Count the leading directions that hold a share of the energy.

    The smallest k with sum_{i<=k} sigma_i^2 >= share * sum_i sigma_i^2. Equality counts up to
    rounding (relative 4 eps per value), so that 9 of 10 equal values hold 90 %.

    Args:
        singular_values: Descending, any unit, length n.
        share: Share of sum sigma^2 to hold, in (0, 1].

    Returns:
        k in 1..n, or 0 for a zero matrix.

    Raises:
        InputError: If the share is outside (0, 1] or the values can't be singular values.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"energy share {share} is outside (0, 1]; 0.9 means 90 %")
    scaled = unit_scaled(singular_values)
    if scaled.size == 0:
        return 0
    # Summed from the small end, each tail is right relative to itself, even for share = 1.
    tails = np.cumsum(scaled[::-1] ** 2)[::-1]
    left_over = np.append(tails[1:], 0.0)
    rounding = 4 * np.finfo(np.float64).eps * scaled.size * tails[0]
    allowed = (1.0 - share) * tails[0]
    if share < 1.0:
        allowed += rounding
    return int(np.argmax(left_over <= allowed)) + 1


def effective_rank(singular_values: npt.ArrayLike) -> float:
    """Measure how many directions the spectrum spreads over, by its entropy.

    exp(-sum_i p_i log p_i) with p_i = sigma_i / sum_j sigma_j.

    Args:
        singular_values: Descending, any unit, length n.

    Returns:
        A real number in [1, n]; NaN for a zero matrix.

    Source:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    scaled = unit_scaled(singular_values)
    if scaled.size == 0:
        return math.nan
    p = scaled / scaled.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def stable_rank(singular_values: npt.ArrayLike) -> float:
    """Measure the energy in units of that of the leading direction.

    sum_i sigma_i^2 / sigma_1^2, which a small perturbation can't change by much.

    Args:
        singular_values: Descending, any unit, length n.

    Returns:
        A real number in [1, n]; NaN for a zero matrix.

    Source:
        Rudelson & Vershynin, "Sampling from large matrices: an approach through geometric
        functional analysis", 2007.
    """
    scaled = unit_scaled(singular_values)
    return float(np.sum(scaled**2)) if scaled.size else math.nan


def numerical_rank(
    singular_values: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    eps: float,
    absolute_error: float,
) -> int:
    """Count the singular values that rounding alone doesn't explain.

    The number of sigma_i > max(max(m, n) * eps * sigma_1, absolute_error): the convention of
    `numpy.linalg.matrix_rank`, never below what the values themselves are accurate to.

    Args:
        singular_values: Descending, any unit; zeros beyond the end may be left out.
        shape: (m, n) of the matrix.
        eps: Machine epsilon of the arithmetic that made the matrix, such as 2**-23 for float32.
        absolute_error: Bound on the error of each value, in their unit; 0.0 if there is none.

    Returns:
        A count in 0..min(m, n).
    """
    values = checked(singular_values)
    return int(np.count_nonzero(values > rank_tolerance(values, shape, eps, absolute_error)))


def rank_tolerance(
    singular_values: npt.ArrayLike, shape: tuple[int, int], eps: float, absolute_error: float
) -> float:
    """Give the value under which `numerical_rank` counts a singular value as zero."""
    values = checked(singular_values)
    if values.size == 0:
        return absolute_error
    return max(max(shape) * eps * float(values[0]), absolute_error)


def participation_ratio(singular_values: npt.ArrayLike) -> float:
    """Measure how many directions share the energy.

    (sum_i sigma_i^2)^2 / sum_i sigma_i^4, the number of directions if all were equal.

    Args:
        singular_values: Descending, any unit, length n.

    Returns:
        A real number in [1, n]; NaN for a zero matrix.

    Source:
        Bell & Dean, "Atomic vibrations in vitreous silica", 1970, for the atoms that take part in
        a vibration.
    """
    energies = unit_scaled(singular_values) ** 2
    return float(energies.sum() ** 2 / np.sum(energies**2)) if energies.size else math.nan


def sigma_ratio(singular_values: npt.ArrayLike, index: int) -> float:
    """Give how much larger the first singular value is than a later one.

    sigma_1 / sigma_index.

    Args:
        singular_values: Descending, any unit.
        index: Which one to compare with, counted from 1.

    Returns:
        A number >= 1; NaN where the later one is zero, absent, or its ratio overflows.

    Raises:
        InputError: If the index is below 1.
    """
    if index < 1:
        raise InputError(f"index {index} of a singular value; they count from 1")
    scaled = unit_scaled(singular_values)
    if scaled.size < index or scaled[index - 1] == 0.0:
        return math.nan
    with np.errstate(over="ignore"):
        ratio = float(1.0 / scaled[index - 1])
    return ratio if math.isfinite(ratio) else math.nan
