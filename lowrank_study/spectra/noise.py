"""Rank, edge and threshold of noise: of matrices with independent random entries.

* Marchenko-Pastur: the singular values of an m x n matrix of independent entries with standard
  deviation s end at s (sqrt(m) + sqrt(n)). Larger ones are not noise.
* Gavish-Donoho: omega(beta) * median sigma is the threshold above which keeping a direction lowers
  the error of the denoised matrix. It does not need s.

`rounding.py` estimates the noise of storage, which depends only on the weights and the dtype.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.optimize import brentq

from lowrank_study.errors import InputError
from lowrank_study.spectra.ranks import checked


@lru_cache(maxsize=4096)
def noise_energy_rank(out_features: int, in_features: int) -> float:
    """Return the 90 % energy rank of independent Gaussian noise of this shape: .509 n for n x n.

    By Marchenko and Pastur, with beta = min/max of the shape and
    sigma^2 proportional to 1 + beta + 2 sqrt(beta) cos t, the density of t on (0, pi) is
    proportional to sin^2 t / (1 + beta + 2 sqrt(beta) cos t), and the energy to sin^2 t. The
    values that hold 90 % are those with t below the 90 % quantile of sin^2 t.
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
    """Return the median of the Marchenko-Pastur law of lambda = sigma^2 / (max(m, n) s^2).

    Its density is sqrt((b - x)(x - a)) / (2 pi beta x) on a, b = (1 -/+ sqrt(beta))^2. `beta` is
    the aspect ratio min(m, n) / max(m, n). The median tends to 1 as beta tends to 0.
    """
    if not 0.0 < beta <= 1.0:
        raise InputError(f"aspect ratio {beta} is outside (0, 1]; give min(m, n) / max(m, n)")
    root = math.sqrt(beta)

    # With x = 1 + beta + 2 sqrt(beta) cos t, the square-root ends of the density are smooth.
    def density(t: float) -> float:
        if beta == 1.0:
            return (1.0 - math.cos(t)) / math.pi
        return 2.0 * math.sin(t) ** 2 / (math.pi * (1.0 + beta + 2.0 * root * math.cos(t)))

    def excess(t: float) -> float:
        return float(quad(density, t, math.pi, epsabs=1e-13, epsrel=1e-13, limit=200)[0]) - 0.5

    t = float(brentq(excess, 1e-3, math.pi - 1e-3, xtol=1e-14))
    return 1.0 + beta + 2.0 * root * math.cos(t)


def noise_std(singular_values: npt.ArrayLike, shape: tuple[int, int]) -> float:
    """Estimate the standard deviation s of the noise in each entry of a matrix.

    s = median(sigma) / sqrt(max(m, n) * mu_beta), mu_beta the Marchenko-Pastur median. The
    estimate is robust if the signal has few of the directions. It is 0 if more than half of the
    singular values are zero. Zeros at the end may be missing. `shape` leaves out rows and columns
    that are exactly zero.
    """
    m, n = shape
    beta = min(m, n) / max(m, n)
    return _median(singular_values, shape) / math.sqrt(max(m, n) * marchenko_pastur_median(beta))


def marchenko_pastur_edge(singular_values: npt.ArrayLike, shape: tuple[int, int]) -> float:
    """Return s (sqrt(m) + sqrt(n)), the expected largest singular value of noise alone.

    The largest value of pure noise scatters around the edge by about s n^(-1/6) and exceeds it in
    a few matrices of a hundred. The arguments are those of `noise_std`.

    Source:
        Marchenko & Pastur, "Distribution of eigenvalues for some sets of random matrices", 1967.
    """
    m, n = shape
    return noise_std(singular_values, shape) * (math.sqrt(m) + math.sqrt(n))


def gavish_donoho_coefficient(beta: float) -> float:
    """Return omega(beta), the optimal hard threshold over the median singular value.

    omega(beta) = lambda(beta) / sqrt(mu_beta), lambda(beta)^2 = 2 (beta + 1)
    + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1)); mu_beta is integrated numerically.
    omega(1) is 2.858.

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
    """Count the directions worth keeping in a low-rank matrix under noise of unknown level.

    The count is that of sigma_i > max(omega(beta) * median(sigma), tolerance). If more than half
    of the singular values are zero, the median is 0 and the count is the numerical rank. The first
    two arguments are those of `noise_std`; `tolerance` is that of `ranks.rank_tolerance`.
    """
    values = checked(singular_values)
    beta = min(shape) / max(shape)
    threshold = gavish_donoho_coefficient(beta) * _median(values, shape)
    return int(np.count_nonzero(values > max(threshold, tolerance)))


def _median(singular_values: npt.ArrayLike, shape: tuple[int, int]) -> float:
    """Return the median of min(m, n) singular values, where zeros at the end may be missing."""
    values = checked(singular_values)
    count = min(shape)
    if values.size > count:
        raise InputError(f"{values.size} singular values of a {shape[0]} x {shape[1]} matrix")
    middle = [values[i] if i < values.size else 0.0 for i in ((count - 1) // 2, count // 2)]
    return float(0.5 * middle[0] + 0.5 * middle[1])
