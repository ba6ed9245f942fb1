"""What accuracies over seeds and test examples allow to be said: intervals, a sufficient rank.

    >>> paired_difference(lora_SE.astype(int) - full_SE)    # of the correctness of paired runs
    MeanEstimate(mean=-0.0121, standard_error=0.0048, degrees_of_freedom=11.3)
    >>> found = sufficient_rank({4: difference_4, 8: difference_8}, margin=0.02)
    >>> found.lowest, found.highest
    (4, 8)

An accuracy would come out differently with other seeds and with other test examples. All runs
share the examples, and a seed meets all of them, so the two sources are crossed, and one is no
stand-in for the other: a Student t interval over seeds speaks of this test set only.

Shape suffixes: S seeds, E test examples.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from lowrank_study.errors import InputError

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64 | np.integer | np.bool_]
Decision = Literal["sufficient", "inferior", "open"]

CONFIDENCE = 0.95
ERROR = 0.05
"""How often each end of a sufficient rank may be wrong."""


def interval_of_mean(values: Vector, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Give the two-sided Student t interval of a mean over seeds.

    mean ± t((1 + confidence) / 2, n - 1) · sd / √n, with sd the sample standard deviation (n - 1).
    It assumes that seeds are independent and their accuracies near normal, and covers the
    seeds' spread alone, not the drawing of the test set. (NaN, NaN) for fewer than two.
    """
    if len(values) < 2:
        return math.nan, math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    half = _quantile(len(values) - 1, (1 + confidence) / 2) * error
    return mean - half, mean + half


def interval_over_pairs(values: Vector, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Give the 95 % interval of a mean over pairs of seeds, of which several share one.

    Jackknifed: mean ± t(0.975, n - 1) · √((n - 1) / n · Σ (m_s - m̄)²), with m_s the mean of the
    pairs without seed s, of n seeds. Rather too wide than too narrow, for it counts
    what is a pair's own twice (Efron and Stein 1981). (NaN, NaN) where a seed is in all pairs.
    """
    seeds = sorted({seed for pair in pairs for seed in pair})
    without = [values[[seed not in pair for pair in pairs]] for seed in seeds]
    if not without or not all(len(left) for left in without):
        return math.nan, math.nan
    means = np.array([left.mean() for left in without])
    error = math.sqrt((len(seeds) - 1) * float(means.var()))
    half = _quantile(len(seeds) - 1, (1 + CONFIDENCE) / 2) * error
    return float(values.mean()) - half, float(values.mean()) + half


# ---------------------------------------------------------------- over seeds and test examples


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanEstimate:
    """A mean over seeds and test examples, and how far it can be trusted."""

    mean: float
    """Over all seeds and examples; NaN of none."""
    standard_error: float
    """From the drawing of both; NaN with fewer than two of either."""
    degrees_of_freedom: float
    """Of the standard error."""

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Give the two-sided Student t interval; its ends are one-sided limits of half the error.

        (NaN, NaN) where there is no standard error.
        """
        half = _quantile(self.degrees_of_freedom, (1 + confidence) / 2) * self.standard_error
        return self.mean - half, self.mean + half


def mean_score(correct_SE: Matrix) -> MeanEstimate:
    """Estimate an accuracy from correctness (0 or 1) by seed and example; see `_crossed_mean`."""
    return _crossed_mean(correct_SE, ends=(0.0, 1.0))


def paired_difference(difference_SE: Matrix) -> MeanEstimate:
    """Estimate a difference of two accuracies from runs paired by seed and example.

    Parameters
    ----------
    difference_SE
        Correctness of the one run less that of the other: -1, 0 or 1. See `_crossed_mean`.
    """
    return _crossed_mean(difference_SE, ends=(-1.0, 1.0))


def _crossed_mean(values_SE: Matrix, *, ends: tuple[float, float]) -> MeanEstimate:
    """Estimate a mean over two crossed random factors.

    With x_se = μ + a_s + b_e + c_se, of variances σa², σb², σc² and uncorrelated,

        Var(mean) = σa²/S + σb²/E + σc²/(S·E)
        T_S = var(row means)/S       estimates  σa²/S + σc²/(S·E)
        T_E = var(column means)/E    estimates  σb²/E + σc²/(S·E)
        T_R = MS_residual/(S·E)      estimates  σc²/(S·E)

    with MS_residual that of the two-way analysis of variance, so T_S + T_E - T_R estimates the
    variance without bias. As either single term alone is a lower bound, the estimate is never
    less than the larger. Each T is near a multiple of χ² with S-1, E-1 and (S-1)(E-1) degrees
    of freedom; Satterthwaite's for V = T_S + T_E - T_R are

        V² / (T_S²/(S-1) + T_E²/(E-1) + T_R²/((S-1)(E-1)))

    Half an example at each of the ends of the scale is added to T_E: where no two predictions
    differ there would be an interval of no width.

    `tests/study/test_score.py` holds the intervals against simulation.

    Source: A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), for the
    model and why resampling one factor is not enough; F. E. Satterthwaite, "An approximate
    distribution of estimates of variance components", Biometrics Bulletin 2 (1946); A. Agresti
    and Y. Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24 (2005), for the half examples.
    """
    x_SE = np.asarray(values_SE, dtype=np.float64)
    seeds, examples = x_SE.shape
    if min(seeds, examples) < 2:
        mean = float(x_SE.mean()) if x_SE.size else math.nan
        return MeanEstimate(mean=mean, standard_error=math.nan, degrees_of_freedom=math.nan)
    row_S, column_E = x_SE.mean(axis=1), x_SE.mean(axis=0)
    mean = float(row_S.mean())
    free = (seeds - 1) * (examples - 1)
    squares_S = float(np.sum((row_S - mean) ** 2))
    squares_E = float(np.sum((column_E - mean) ** 2))
    squares = float(np.sum((x_SE - mean) ** 2)) - examples * squares_S - seeds * squares_E
    residual = max(squares, 0.0) / free / (seeds * examples)
    by_seed = squares_S / (seeds - 1) / seeds
    added = sum((end - mean) ** 2 for end in ends) / 2
    by_example = squares_E / (examples - 1) / examples + added / examples**2
    variance = max(by_seed + by_example - residual, by_seed, by_example)
    spread = by_seed**2 / (seeds - 1) + by_example**2 / (examples - 1) + residual**2 / free
    return MeanEstimate(
        mean=mean,
        standard_error=math.sqrt(variance),
        degrees_of_freedom=variance**2 / spread,
    )


# ---------------------------------------------------------------- corrected for chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which share of what full fine-tuning has above chance an adapter keeps."""

    ratio: float
    """(a - c) / (f - c) of the mean accuracies; NaN where full fine-tuning is not above chance."""
    low: float
    """Lower end of its interval; -inf where that is unbounded, NaN for none."""
    high: float
    """Upper end; inf where the interval is unbounded."""

    @property
    def is_bounded(self) -> bool:
        """Whether the data bound the ratio: they don't where f - c may be nothing."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def retention(adapter_SE: Matrix, full_SE: Matrix, *, chance: float) -> Retention:
    """Give the retention corrected for chance, with its interval over seeds and test examples.

    Fieller's interval (`_fieller`) with the variances of `_crossed_mean`: those of u = a - c,
    v = f - c and u - v, of which the last gives the covariance. The degrees of freedom are those
    of u - ρv at the estimated ρ.

    Parameters
    ----------
    adapter_SE, full_SE
        Correctness, paired by seed and example.
    chance
        Share of the commonest class in the test split, taken as known.
    """
    u_SE = np.asarray(adapter_SE, dtype=np.float64) - chance
    v_SE = np.asarray(full_SE, dtype=np.float64) - chance
    if not u_SE.size:
        return Retention(ratio=math.nan, low=math.nan, high=math.nan)
    u, v, apart = (paired_difference(x_SE) for x_SE in (u_SE, v_SE, u_SE - v_SE))
    s_uu, s_vv, s_dd = (each.standard_error**2 for each in (u, v, apart))
    ratio = u.mean / v.mean if v.mean > 0 else 0.0
    free = paired_difference(u_SE - ratio * v_SE).degrees_of_freedom
    return _fieller(
        (u.mean, v.mean),
        (s_uu, (s_uu + s_vv - s_dd) / 2, s_vv),
        quantile=_quantile(free, (1 + CONFIDENCE) / 2),
    )


def retention_over_seeds(
    adapter_S: Vector, full_S: Vector, *, chance: float, confidence: float = CONFIDENCE
) -> Retention:
    """Give the retention corrected for chance, with its interval over seeds: of this test set only.

    Parameters
    ----------
    adapter_S, full_S
        Accuracies paired by seed.
    chance
        As `retention`'s.
    confidence
        That the interval holds the ratio.
    """
    u_S, v_S = adapter_S - chance, full_S - chance
    count = len(u_S)
    if not count:
        return Retention(ratio=math.nan, low=math.nan, high=math.nan)
    covariances = np.cov(u_S, v_S) / count if count > 1 else np.full((2, 2), math.nan)
    return _fieller(
        (float(u_S.mean()), float(v_S.mean())),
        (float(covariances[0, 0]), float(covariances[0, 1]), float(covariances[1, 1])),
        quantile=_quantile(count - 1, (1 + confidence) / 2),
    )


def _fieller(
    means: tuple[float, float], variances: tuple[float, float, float], *, quantile: float
) -> Retention:
    """Give the interval of the ratio ρ of two means u and v, from s_uu, s_uv and s_vv of them.

    ρ lies in it when u - ρv does not differ from 0 by a t test:

        (u - ρv)² ≤ t² (s_uu - 2ρ s_uv + ρ² s_vv)

    a quadratic inequality in ρ. Where v itself does not differ from 0, or lies below it, its
    solution is no interval of a share that is kept; both are given as unbounded. The delta
    method's interval, always bounded, would be wrong there.

    Source: E. C. Fieller, "Some problems in interval estimation", Journal of the Royal
    Statistical Society B 16 (1954).
    """
    (u, v), (s_uu, s_uv, s_vv) = means, variances
    if v <= 0:
        return Retention(ratio=math.nan, low=-math.inf, high=math.inf)
    if math.isnan(s_vv):
        return Retention(ratio=u / v, low=math.nan, high=math.nan)
    a = v * v - quantile**2 * s_vv
    b = u * v - quantile**2 * s_uv
    c = u * u - quantile**2 * s_uu
    if a <= 0:
        return Retention(ratio=u / v, low=-math.inf, high=math.inf)
    half = math.sqrt(max(b * b - a * c, 0.0))
    return Retention(ratio=u / v, low=(b - half) / a, high=(b + half) / a)


# ---------------------------------------------------------------- which rank suffices


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTest:
    """One rank against the whole: a line of the table behind a sufficient rank."""

    rank: int
    seeds: int
    """Pairs of runs."""
    difference: MeanEstimate
    """Accuracy less that of the whole."""
    low: float
    """Lower one-sided 95 % limit of the difference; NaN with fewer than two seeds."""
    high: float
    """Upper one-sided 95 % limit; with `low` the two-sided 90 % interval."""
    decision: Decision
    """`sufficient` and `inferior` are shown, in sequence; `open` is neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SufficientRank:
    """The ranks between which the smallest sufficient one of those tried lies."""

    margin: float
    """Largest loss of accuracy, as a share of one, that still counts as none; set beforehand."""
    lowest: int | None
    """Lowest rank not shown inferior; `None`: all are, the sufficient rank is above them."""
    highest: int | None
    """Smallest rank shown sufficient; `None`: none is, there is no upper end."""
    tests: tuple[RankTest, ...]
    """One a rank, rising."""


def sufficient_rank(
    differences: Mapping[int, Matrix], *, margin: float, lost: Collection[int] = ()
) -> SufficientRank:
    """Find the smallest rank that is non-inferior to the whole, as an interval of ranks.

    A rank is *sufficient* when the lower one-sided 95 % limit of its `paired_difference` lies
    above -margin. Ranks are tested from the highest down, and the first that fails ends it: no
    correction for many tests is needed, as each test after a true null is only reached by
    rejecting that. So with a probability of at most 5 % any rank is wrongly declared sufficient.
    *Inferior* ranks, with an upper limit below -margin, are looked for from the lowest up in the
    same way and at the same error. Both ends hold together at least 90 % of the time, of the ranks
    tried; of those between them, if accuracy doesn't fall with rank. The limits take seeds to
    spread near normally: where one in ten collapses, six seeds often show none that does.

    A rank that can't be tested, with fewer than two seeds, ends a sequence like one that fails. So
    does, on the way down, one that lost runs: the seeds that are left are those that went well.

    Parameters
    ----------
    differences
        Rank → correctness less that of the whole, (seeds, examples), paired by both. The whole
        is full fine-tuning, or for the functional rank the update that isn't truncated.
    margin
        See `SufficientRank.margin`.
    lost
        Ranks some of whose runs diverged or failed.

    Raises
    ------
    InputError
        The margin is not between 0 and 1.

    Source: W. Maurer, L. A. Hothorn and W. Lehmacher, "Multiple comparisons in drug clinical
    trials and preclinical assays: a-priori ordered hypotheses" (1995).
    """
    if not 0 < margin < 1:
        raise InputError(f"margin={margin!r}: a share of one is needed, such as 0.02 for 2 points")
    ranks = sorted(differences)
    estimates = [paired_difference(differences[rank]) for rank in ranks]
    limits = [estimate.interval(1 - 2 * ERROR) for estimate in estimates]
    inferior = _leading([high < -margin for _, high in limits])
    passed = [low > -margin and r not in lost for r, (low, _) in zip(ranks, limits, strict=True)]
    sufficient = _leading(passed[::-1])
    first_sufficient = len(ranks) - sufficient
    decisions: list[Decision] = [
        "inferior" if place < inferior else "sufficient" if place >= first_sufficient else "open"
        for place in range(len(ranks))
    ]
    tests = tuple(
        RankTest(
            rank=rank,
            seeds=len(differences[rank]),
            difference=estimate,
            low=low,
            high=high,
            decision=decision,
        )
        for rank, estimate, (low, high), decision in zip(
            ranks, estimates, limits, decisions, strict=True
        )
    )
    return SufficientRank(
        margin=margin,
        lowest=ranks[inferior] if inferior < len(ranks) else None,
        highest=ranks[first_sufficient] if sufficient else None,
        tests=tests,
    )


def _leading(passed: Sequence[bool]) -> int:
    """Count the tests that pass before the first that fails."""
    return passed.index(False) if False in passed else len(passed)


def _quantile(degrees_of_freedom: float, probability: float) -> float:
    return float(stdtrit(degrees_of_freedom, probability))
