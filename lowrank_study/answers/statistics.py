"""Intervals over seeds and test examples.

    >>> paired_difference(lora_SE - full_SE)    # scores of paired runs
    MeanEstimate(mean=-0.0121, standard_error=0.0048, degrees_of_freedom=11.3)

A score varies with the seed and with the test examples. All runs share the examples, so the two
sources of variance are crossed, and neither replaces the other: a Student t interval over seeds
holds for this test set only.

Examples may have weights, as documents have tokens: nats per token are Σ loss / Σ tokens over all
documents. An interval then holds for other documents of such lengths.

Shape suffixes: S seeds, E test examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64 | np.integer | np.bool_]

CONFIDENCE = 0.95
ERROR = 0.05
"""Error rate of each bound of a sufficient rank."""


def interval_of_mean(values: Vector, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided Student t interval of a mean over seeds.

    mean ± t((1 + confidence) / 2, n - 1) · sd / √n, with sd the sample standard deviation (n - 1).
    It assumes independent seeds and nearly normal scores. It covers the spread of seeds, not the
    sampling of the test set. (NaN, NaN) for fewer than two values.
    """
    if len(values) < 2:
        return math.nan, math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    half = _quantile(len(values) - 1, (1 + confidence) / 2) * error
    return mean - half, mean + half


def interval_over_pairs(values: Vector, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the 95 % jackknife interval of a mean over pairs of seeds that share seeds.

    mean ± t(0.975, n - 1) · √((n - 1) / n · Σ (m_s - m̄)²), with n seeds and m_s the mean of the
    pairs without seed s. It is conservative: it counts the variance specific to a pair twice.
    (NaN, NaN) if all pairs share a seed.

    Source: B. Efron and C. Stein, "The jackknife estimate of variance", Annals of Statistics 9
    (1981).
    """
    seeds = sorted({seed for pair in pairs for seed in pair})
    without = [values[[seed not in pair for pair in pairs]] for seed in seeds]
    if not without or not all(len(left) for left in without):
        return math.nan, math.nan
    means = np.array([left.mean() for left in without])
    error = math.sqrt((len(seeds) - 1) * float(means.var()))
    half = _quantile(len(seeds) - 1, (1 + CONFIDENCE) / 2) * error
    return float(values.mean()) - half, float(values.mean()) + half


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanEstimate:
    """A mean over seeds and test examples, with its uncertainty."""

    mean: float
    """Over all seeds and examples; NaN without any."""
    standard_error: float
    """From both sources of variance; NaN with fewer than two seeds or examples."""
    degrees_of_freedom: float
    """Degrees of freedom with which the standard error was estimated."""
    skewness: float
    """Skewness of the mean's distribution, from the examples; 0 on a scale with ends."""

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the two-sided Student t interval, or (NaN, NaN) without a standard error.

        Each end is also a one-sided limit, with half the error rate. The quantiles are corrected
        for the skewness γ by the inverse of Hall's transformation

            t + γ/6 + γ t²/3 + γ² t³/27

        Source: P. Hall, "On the removal of skewness by transformation", Journal of the Royal
        Statistical Society B 54 (1992).
        """
        t = _quantile(self.degrees_of_freedom, (1 + confidence) / 2)
        above, below = (self.standard_error * self._skewed(each) for each in (t, -t))
        return self.mean - above, self.mean - below

    def _skewed(self, t: float) -> float:
        third = self.skewness / 3
        return (math.cbrt(1 + 3 * third * (t - third / 2)) - 1) / third if third else t


def mean_score(
    score_SE: Matrix, *, ends: tuple[float, float] = (0.0, 1.0), weights_E: Vector | None = None
) -> MeanEstimate:
    """Estimate the mean of a score that lies between two ends; see `_crossed_mean`."""
    return _crossed_mean(score_SE, ends=ends, weights_E=weights_E)


def paired_difference(
    difference_SE: Matrix, *, width: float = 1.0, weights_E: Vector | None = None
) -> MeanEstimate:
    """Estimate the mean difference of two scores, paired by seed and example.

    See `_crossed_mean`; a difference lies between -width and width, the width of the score's scale.
    """
    return _crossed_mean(difference_SE, ends=(-width, width), weights_E=weights_E)


def _crossed_mean(
    values_SE: Matrix, *, ends: tuple[float, float], weights_E: Vector | None
) -> MeanEstimate:
    """Estimate a mean over two crossed random factors.

    With x_se = μ + a_s + b_e + c_se, of uncorrelated terms with variances σa², σb², σc²,

        Var(mean) = σa²/S + σb²/E + σc²/(S·E)
        T_S = var(row means)/S       estimates  σa²/S + σc²/(S·E)
        T_E = var(column means)/E    estimates  σb²/E + σc²/(S·E)
        T_R = MS_residual/(S·E)      estimates  σc²/(S·E)

    with MS_residual from the two-way analysis of variance. T_S + T_E - T_R is an unbiased estimate
    of the variance. T_S and T_E are each a lower bound, so the estimate is at least the larger of
    them. Each T is approximately a multiple of χ² with S-1, E-1 and (S-1)(E-1) degrees of freedom;
    Satterthwaite's for V = T_S + T_E - T_R are

        V² / (T_S²/(S-1) + T_E²/(E-1) + T_R²/((S-1)(E-1)))

    `_Tails` says what the scale changes about T_E, and `_linear` what weights change.
    `tests/answers/test_statistics.py` and `benchmarks/losses.py` check the coverage by simulation.

    Source: A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), for the
    model and why resampling one factor is not enough; F. E. Satterthwaite, "An approximate
    distribution of estimates of variance components", Biometrics Bulletin 2 (1946).
    """
    x_SE = _linear(np.asarray(values_SE, dtype=np.float64), weights_E)
    seeds, examples = x_SE.shape
    if min(seeds, examples) < 2:
        mean, nan = float(x_SE.mean()) if x_SE.size else math.nan, math.nan
        return MeanEstimate(mean=mean, standard_error=nan, degrees_of_freedom=nan, skewness=nan)
    row_S, column_E = x_SE.mean(axis=1), x_SE.mean(axis=0)
    mean = float(row_S.mean())
    free = (seeds - 1) * (examples - 1)
    squares_S = float(np.sum((row_S - mean) ** 2))
    squares_E = float(np.sum((column_E - mean) ** 2))
    squares = float(np.sum((x_SE - mean) ** 2)) - examples * squares_S - seeds * squares_E
    residual = max(squares, 0.0) / free / (seeds * examples)
    by_seed = squares_S / (seeds - 1) / seeds
    tails = _Tails.of(column_E - mean, [end - mean for end in ends])
    by_example = squares_E / (examples - 1) / examples + tails.added / examples**2
    variance = max(by_seed + by_example - residual, by_seed, by_example)
    spread = by_seed**2 / (seeds - 1) + by_example**2 / tails.freedom + residual**2 / free
    return MeanEstimate(
        mean=mean,
        standard_error=math.sqrt(variance),
        degrees_of_freedom=variance**2 / spread if spread else free,
        skewness=tails.skewness * (by_example / (variance or 1)) ** 1.5 / math.sqrt(examples),
    )


def _linear(x_SE: Matrix, weights_E: Vector | None) -> npt.NDArray[np.float64]:
    """Return values whose plain mean has the value and the error of the weighted one.

    A weighted mean μ is a ratio of two sums. To first order in 1/E its error is that of the mean of

        z_se = μ + w_e / mean(w) · (x_se - μ)

    Source: W. G. Cochran, "Sampling techniques" (1977), chapter 6.
    """
    if weights_E is None or not x_SE.size:
        return x_SE.astype(np.float64)
    share_E = weights_E / weights_E.mean()
    return np.asarray(x_SE + (share_E - 1) * (x_SE - (x_SE * share_E).mean()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tails:
    """How the scale of the examples enters the interval of their mean.

    On a scale with ends, half an example at each end is added. Otherwise the interval would have no
    width if all predictions agreed. On a scale without ends, such as a loss, examples may have
    heavy tails: their variance has the degrees of freedom of their kurtosis, and the interval is
    corrected for their skewness.

    Source: A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24 (2005), for the half examples.
    """

    added: float
    """Added to the sum of squares of the examples."""
    freedom: float
    """Degrees of freedom of the variance over examples."""
    skewness: float

    @classmethod
    def of(cls, apart_E: Vector, ends: Sequence[float]) -> "_Tails":
        """Return them from the examples' distances from the mean, and those of the scale's ends.

        A variance has (E - 1) · 2 / (κ - 1) degrees of freedom if the kurtosis κ is above 3, that
        of a normal distribution.
        """
        examples = len(apart_E)
        if all(map(math.isfinite, ends)):
            added = sum(end**2 for end in ends) / 2
            return cls(added=added, freedom=examples - 1.0, skewness=0.0)
        square = float(np.mean(apart_E**2))
        if square == 0.0:
            return cls(added=0.0, freedom=examples - 1.0, skewness=0.0)
        kurtosis = float(np.mean(apart_E**4)) / square**2
        return cls(
            added=0.0,
            freedom=(examples - 1) / max(1.0, (kurtosis - 1) / 2),
            skewness=float(np.mean(apart_E**3)) / square**1.5,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The share of full fine-tuning's gain that an adapter keeps."""

    ratio: float
    """(a - c) / (f - c) of the mean scores; NaN if full fine-tuning gains nothing."""
    low: float
    """Lower end of its interval; -inf if that is unbounded, NaN if there is none."""
    high: float
    """Upper end; inf if the interval is unbounded."""

    @property
    def is_bounded(self) -> bool:
        """Whether the interval is bounded. It is not if f - c may be zero."""
        return math.isfinite(self.low) and math.isfinite(self.high)


_NO_RETENTION = Retention(ratio=math.nan, low=math.nan, high=math.nan)


def retention(
    adapter_SE: Matrix,
    full_SE: Matrix,
    *,
    chance: float | Vector,
    width: float = 1.0,
    weights_E: Vector | None = None,
    confidence: float = CONFIDENCE,
) -> Retention:
    """Return the retention of the gain, with its interval over seeds and test examples.

    The interval is Fieller's (`_fieller`) with the variances of `_crossed_mean` for u = a - c,
    v = f - c and u - v; the last one gives the covariance. The degrees of freedom are those of
    u - ρv at the estimated ρ.

    Args:
        adapter_SE: Scores of the adapter, paired with `full_SE` by seed and example.
        chance: Score without fine-tuning: a known chance level, or that of the base model on each
            example.
        width: Width of the score's scale.
        weights_E: Weights of the examples; None if they are equal.
    """
    u_SE = np.asarray(adapter_SE, dtype=np.float64) - chance
    v_SE = np.asarray(full_SE, dtype=np.float64) - chance
    if not u_SE.size:
        return _NO_RETENTION
    estimate = partial(paired_difference, width=width, weights_E=weights_E)
    u, v, apart = map(estimate, (u_SE, v_SE, u_SE - v_SE))
    s_uu, s_vv, s_dd = (each.standard_error**2 for each in (u, v, apart))
    ratio = u.mean / v.mean if v.mean > 0 else 0.0
    free = estimate(u_SE - ratio * v_SE).degrees_of_freedom
    return _fieller(
        (u.mean, v.mean),
        (s_uu, (s_uu + s_vv - s_dd) / 2, s_vv),
        quantile=_quantile(free, (1 + confidence) / 2),
    )


def retention_over_seeds(
    adapter_S: Vector, full_S: Vector, *, chance: float, confidence: float = CONFIDENCE
) -> Retention:
    """Return the retention corrected for chance, with its interval over seeds for this test set.

    Args:
        adapter_S: Scores of the adapter, paired with `full_S` by seed.
        chance: Score at chance level, treated as known.
    """
    u_S, v_S = adapter_S - chance, full_S - chance
    count = len(u_S)
    if not count:
        return _NO_RETENTION
    covariances = np.cov(u_S, v_S) / count if count > 1 else np.full((2, 2), math.nan)
    return _fieller(
        (float(u_S.mean()), float(v_S.mean())),
        (float(covariances[0, 0]), float(covariances[0, 1]), float(covariances[1, 1])),
        quantile=_quantile(count - 1, (1 + confidence) / 2),
    )


def _fieller(
    means: tuple[float, float], variances: tuple[float, float, float], *, quantile: float
) -> Retention:
    """Return the interval of the ratio ρ of two means u and v, given their s_uu, s_uv and s_vv.

    The interval holds every ρ for which a t test does not reject u - ρv = 0:

        (u - ρv)² ≤ t² (s_uu - 2ρ s_uv + ρ² s_vv)

    This is a quadratic inequality in ρ. Its solution is not an interval if v does not differ
    significantly from 0, or is negative; both cases are given as unbounded. The interval of the
    delta method is always bounded and would be wrong there.

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


def _quantile(degrees_of_freedom: float, probability: float) -> float:
    return float(stdtrit(degrees_of_freedom, probability))
