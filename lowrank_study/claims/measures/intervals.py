"""Intervals over seeds, paired by seed, for one setting (a task, a model, how long) or several.

    over_seeds(runs, lambda setting: lora_of(setting) - full_of(setting), how="...")

Student's t over seeds. With k settings each interval is at 1 - .05 / k, so that all of them cover
together at 95 % (Bonferroni). Under three seeds an interval is unbounded and decides nothing.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lowrank_study.answers.statistics import CONFIDENCE, interval_of_mean
from lowrank_study.claims.measures.outcome import (
    Interval,
    Lacking,
    Measured,
)

FEWEST_SEEDS = 3


def student_interval(values: npt.ArrayLike, *, confidence: float, label: str) -> Interval:
    """Give the mean of independent values with Student's interval.

    Unbounded for fewer than `FEWEST_SEEDS` values.
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if found.size < FEWEST_SEEDS:
        return Interval(value=mean, low=-math.inf, high=math.inf, label=label)
    low, high = interval_of_mean(found, confidence)
    return Interval(value=mean, low=low, high=high, label=label)


def median_interval(values: npt.ArrayLike, *, label: str) -> Interval:
    """Give the median with the order statistics that hold it at 95 %, whatever the distribution."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    size = ordered.size
    # The largest k with P(fewer than k of n below the median) <= 2.5 %.
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, size, 0.5))
    low, high = (-math.inf, math.inf) if k == 0 else (ordered[k - 1], ordered[size - k])
    return Interval(value=float(np.median(ordered)), low=float(low), high=float(high), label=label)


def over_settings(
    runs: pd.DataFrame, interval: Callable[[pd.DataFrame, float], Interval], *, how: str
) -> Measured:
    """Give a number of each setting with its interval.

    Args:
        runs: With a column `setting`.
        interval: Is given the rows of one setting and a confidence; raises `Lacking` for what is
            not there.
        how: How it was measured, in one sentence.

    Returns:
        An interval a setting.

    Raises:
        Lacking: No setting has what it takes.
    """
    able: dict[str, pd.DataFrame] = {}
    reasons: list[str] = []
    for setting, rows in runs.groupby("setting"):
        try:
            interval(rows, CONFIDENCE)
            able[str(setting)] = rows
        except Lacking as error:
            reasons.append(str(error))
    if not able:
        raise Lacking(reasons[0])
    confidence = shared_confidence(CONFIDENCE, len(able))
    return Measured(
        values=tuple(
            replace(interval(rows, confidence), label=setting) for setting, rows in able.items()
        ),
        how=f"{how}; {100 * confidence:.3g} % interval",
    )


def over_seeds(
    runs: pd.DataFrame, quantity: Callable[[pd.DataFrame], "pd.Series[float]"], *, how: str
) -> Measured:
    """Give the mean over seeds of a quantity of each setting; see `over_settings`.

    Args:
        runs: With a column `setting`.
        quantity: Returns a value a seed; raises `Lacking` for what is not there.
        how: How it was measured, in one sentence.
    """
    counts = set[int]()

    def interval(rows: pd.DataFrame, confidence: float) -> Interval:
        values = quantity(rows).dropna()
        if values.empty:
            raise Lacking("two such runs of the same seed")
        counts.add(len(values))
        return student_interval(values, confidence=confidence, label="")

    return with_seeds(over_settings(runs, interval, how=how), counts)


def with_seeds(outcome: Measured, counts: set[int]) -> Measured:
    """Add how many seeds an outcome is over."""
    fewest, most = min(counts), max(counts)
    counted = f"{fewest} seeds" if fewest == most else f"{fewest} to {most} seeds"
    return replace(outcome, how=f"{outcome.how} over {counted}")


def shared_confidence(confidence: float, intervals: int) -> float:
    """Give the confidence of each of several intervals that are to hold together (Bonferroni)."""
    return 1 - (1 - confidence) / intervals
