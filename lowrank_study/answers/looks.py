"""Looks: tests that are repeated while seeds are added, with one error rate for all of them.

    >>> Looks(seeds=(4, 6, 8), spending="pocock").levels(0.05)
    (0.031, 0.020, 0.019)

An ordinary test at every look errs too often, because chance may cross its bound at any of them.
Error spending gives each look a share of the error rate. Because the number of seeds at each look
is planned, the bounds hold whatever makes a sweep stop.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from lowrank_study.answers.statistics import Vector

_FURTHEST = 5.0
"""Largest normal score of a p-value; a look whose level is lower (3e-7) decides nothing."""
_SMALLEST = 1e-6
"""A look that may spend less decides nothing."""
_CELLS, _ANGLES = 200, np.linspace(-np.pi / 2, np.pi / 2, 10_001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """The plan of a sequential test, fixed before its scores are seen."""

    seeds: tuple[int, ...]
    """Seeds at each look, rising; the last number is the most that are trained."""
    spending: str
    """`obrien_fleming` or `pocock`: how much of the error rate is spent by each look."""

    def levels(self, error: float) -> tuple[float, ...]:
        """Return the one-sided level of the test at each look; see `_levels`."""
        return _levels(self.seeds, self.spending, error)

    def made(self, seeds: int) -> tuple[int, ...]:
        """Return the looks that this many seeds allow."""
        return tuple(look for look in self.seeds if look <= seeds)

    def following(self, seeds: int) -> int:
        """Return the seeds of the next look; after the last look, its seeds."""
        return next((look for look in self.seeds if look > seeds), self.seeds[-1])

    def chance(self, distance: float, seeds: int, error: float) -> float:
        """Return the chance that a test is passed at the last look if its effect stays the same.

        Φ((|Z| / √t - c_K) / √(1 - t)) with the fraction t of the seeds; 1 before half of them,
        when an estimate says little. To stop at a low chance can only lower the error rate.

        Args:
            distance: |Z|, the estimate's distance from the margin in standard errors.
            seeds: Seeds so far.
            error: Error rate of the test.

        Source: K. K. G. Lan, R. Simon and M. Halperin, "Stochastically curtailed tests in long-term
        clinical trials", Communications in Statistics C 1 (1982).
        """
        fraction = seeds / self.seeds[-1]
        if not 0.5 <= fraction < 1:
            return 1.0
        bound = -ndtri(self.levels(error)[-1])
        return float(ndtr((distance / np.sqrt(fraction) - bound) / np.sqrt(1 - fraction)))


def spent(fraction: float, spending: str, error: float) -> float:
    """Return the error rate that is spent when a fraction of the seeds is trained.

    Pocock type: α · ln(1 + (e - 1) t). O'Brien-Fleming type: 2 - 2 Φ(z(1 - α/2) / √t).

    Source: K. K. G. Lan and D. L. DeMets, "Discrete sequential boundaries for clinical trials",
    Biometrika 70 (1983).
    """
    if spending == "pocock":
        return float(error * np.log1p((np.e - 1) * fraction))
    return float(2 * ndtr(ndtri(error / 2) / np.sqrt(fraction)))


@cache
def _levels(seeds: tuple[int, ...], spending: str, error: float) -> tuple[float, ...]:
    """Return the one-sided level of the t test at each look.

    With p-values P_k of t tests on n_k seeds of mean 0, the levels p_k solve

        P(P_1 > p_1, …, P_{k-1} > p_{k-1}, P_k ≤ p_k) = α*(n_k / n_K) - α*(n_{k-1} / n_K)

    The sum of the seeds over the root of their sum of squares, u_n, is a Markov chain: u_{n+1} =
    (u_n + v) / √(1 + v²), where v √n has a t distribution with n degrees of freedom. Its
    distribution is followed on a grid that is even in the normal score of P. The levels are exact
    for normal seeds. Variance from test examples, which all looks share, makes the tests more
    alike, and so lowers the error rate.

    Source: C. Jennison and B. W. Turnbull, "Exact calculations for sequential t, χ² and F tests",
    Biometrika 78 (1991).
    """
    first, last = seeds[0], seeds[-1]
    level = spent(first / last, spending, error)
    edges = np.linspace(-_FURTHEST, -ndtri(level) if level > _SMALLEST else _FURTHEST, _CELLS + 1)
    mass = np.diff(ndtr(edges))
    levels = [float(ndtr(-edges[-1]))]
    for count in range(first + 1, last + 1):
        u, highest = _u_of((edges[1:] + edges[:-1]) / 2, count - 1), _FURTHEST
        if count in seeds:
            earlier = seeds[seeds.index(count) - 1]
            share = spent(count / last, spending, error) - spent(earlier / last, spending, error)
            highest = _crossed_with(share, u, mass, count)
            levels.append(float(ndtr(-highest)))
        edges = np.linspace(-_FURTHEST, highest, _CELLS + 1)
        mass = np.diff(_reached(edges, u, count) @ mass)
    return tuple(levels)


def _crossed_with(share: float, u: Vector, mass: Vector, count: int) -> float:
    """Return the score above which the chain goes with a probability, or the end of the grid."""

    def excess(score: float) -> float:
        return float(mass @ (1 - _reached(np.array([score]), u, count)[0])) - share

    is_found = share > _SMALLEST and excess(_FURTHEST) < 0
    return float(brentq(excess, -_FURTHEST, _FURTHEST)) if is_found else _FURTHEST


def _u_of(scores: Vector, count: int) -> Vector:
    """Return u_n for normal scores of t tests on n seeds: u = t √n / √(n - 1 + t²)."""
    t = stdtrit(count - 1, ndtr(scores))
    return np.asarray(t * np.sqrt(count / (count - 1 + t**2)))


def _reached(scores: Vector, u: Vector, count: int) -> Vector:
    """Return the probability of each score or less at n seeds, given u at n - 1: (scores, u).

    With v = tan φ, u_n is √(1 + u²) sin(φ + atan u), which is solved for φ.
    """
    probability = _probability_of_angles(count - 1)

    def below(angle: Vector) -> Vector:
        return np.interp(angle, _ANGLES, probability)

    at = np.arcsin(np.clip(_u_of(scores, count)[:, None] / np.sqrt(1 + u**2), -1, 1))
    turn = np.arctan(u)
    return below(at - turn) + 1 - below(np.pi - at - turn) - below(-np.pi - at - turn)


@cache
def _probability_of_angles(freedom: int) -> Vector:
    """Return P(arctan v ≤ φ) for each of `_ANGLES`; v √n has n degrees of freedom."""
    return np.asarray(stdtr(freedom, np.sqrt(freedom) * np.tan(_ANGLES)))
