"""Measures of rank, each a function of descending singular values.

The measures answer different questions and differ by orders of magnitude on the same matrix, so
each has its own name and there is no plain "rank".

    sigma = np.array([3.0, 1.0, 0.1])
    energy_rank(sigma, 0.90)    # 2: the first value alone holds 89.9 %
    effective_rank(sigma)       # 1.94

Values may be in any unit: they are divided by the largest one, so that neither 1e30 nor 1e-300
overflows or vanishes when squared. For a zero matrix, counts are 0 and other ranks NaN. Input
that is not a finite, non-negative, descending vector raises an `InputError`. `measures.py` gives
sources and the values on noise.
"""

import math

import numpy as np
import numpy.typing as npt

from lowrank_study.errors import InputError

SingularValues = npt.NDArray[np.float64]


def checked(singular_values: npt.ArrayLike) -> SingularValues:
    """Return singular values as a float64 vector.

    Raises:
        InputError: They are not a finite, non-negative, descending vector.
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
    """Divide singular values by the largest; return an empty vector for a zero matrix."""
    values = checked(singular_values)
    if values.size == 0 or values[0] == 0.0:
        return np.zeros(0)
    # A power of two first: 1 / sigma_1 overflows for a subnormal sigma_1.
    exponent = math.frexp(float(values[0]))[1]
    scaled: SingularValues = np.ldexp(values, -exponent)
    scaled /= scaled[0]
    return scaled


def energy_rank(singular_values: npt.ArrayLike, share: float) -> int:
    """Return the smallest k with sum_{i<=k} sigma_i^2 >= share * sum_i sigma_i^2.

    Equality counts up to rounding (relative 4 eps per value), so that 9 of 10 equal values hold
    90 %.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"energy share {share} is outside (0, 1]; 0.9 means 90 %")
    scaled = unit_scaled(singular_values)
    if scaled.size == 0:
        return 0
    # Summed from the small end, each tail is accurate relative to itself, even for share = 1.
    tails = np.cumsum(scaled[::-1] ** 2)[::-1]
    missing = np.append(tails[1:], 0.0)
    rounding = 4 * np.finfo(np.float64).eps * scaled.size * tails[0]
    allowed = (1.0 - share) * tails[0]
    if share < 1.0:
        allowed += rounding
    return int(np.argmax(missing <= allowed)) + 1


def effective_rank(singular_values: npt.ArrayLike) -> float:
    """Return exp(-sum_i p_i log p_i) with p_i = sigma_i / sum_j sigma_j, in [1, n]."""
    scaled = unit_scaled(singular_values)
    if scaled.size == 0:
        return math.nan
    p = scaled / scaled.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def stable_rank(singular_values: npt.ArrayLike) -> float:
    """Return sum_i sigma_i^2 / sigma_1^2, in [1, n]; small perturbations hardly change it."""
    scaled = unit_scaled(singular_values)
    return float(np.sum(scaled**2)) if scaled.size else math.nan


def rank_tolerance(
    singular_values: npt.ArrayLike, shape: tuple[int, int], eps: float, absolute_error: float
) -> float:
    """Return the value up to which a singular value counts as zero.

    max(max(m, n) * eps * sigma_1, absolute_error): the convention of `numpy.linalg.matrix_rank`,
    but never below the error of the values themselves. `eps` is the machine epsilon of the
    arithmetic behind the matrix, such as 2**-23 for float32.
    """
    values = checked(singular_values)
    if values.size == 0:
        return absolute_error
    return max(max(shape) * eps * float(values[0]), absolute_error)


def participation_ratio(singular_values: npt.ArrayLike) -> float:
    """Return (sum_i sigma_i^2)^2 / sum_i sigma_i^4: how many directions share the energy."""
    energies = unit_scaled(singular_values) ** 2
    return float(energies.sum() ** 2 / np.sum(energies**2)) if energies.size else math.nan


def sigma_ratio(singular_values: npt.ArrayLike, index: int) -> float:
    """Return sigma_1 / sigma_index; NaN if the latter is zero or absent, or the ratio overflows."""
    if index < 1:
        raise InputError(f"index {index} of a singular value; indices start at 1")
    scaled = unit_scaled(singular_values)
    if scaled.size < index or scaled[index - 1] == 0.0:
        return math.nan
    with np.errstate(over="ignore"):
        ratio = float(1.0 / scaled[index - 1])
    return ratio if math.isfinite(ratio) else math.nan
