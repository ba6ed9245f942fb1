"""Intervals over seeds, paired by seed, for one task or for several at once.

    over_tasks(runs, lambda task: lora_of(task) - full_of(task), how="...")

Student's t over seeds. With k tasks each interval is at 1 - .05 / k, so that all of them cover
together at 95 % (Bonferroni). Under three seeds an interval is unbounded and decides nothing.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lowrank_study.study.accuracy import CONFIDENCE, interval_of_mean
from lowrank_study.study.claims.measures.outcome import (
    Interval,
    Lacking,
    Measured,
    Outcome,
    Unmeasured,
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
    while k > 0 and stats.binom.cdf(k - 1, size, 0.5) > (1 - CONFIDENCE) / 2:
        k -= 1
    low, high = (-math.inf, math.inf) if k == 0 else (ordered[k - 1], ordered[size - k])
    return Interval(value=float(np.median(ordered)), low=float(low), high=float(high), label=label)


def over_tasks(
    runs: pd.DataFrame, quantity: Callable[[pd.DataFrame], "pd.Series[float]"], *, how: str
) -> Outcome:
    """Give a quantity of each task with its interval over seeds.

    Args:
        runs: With a column `setting`; `quantity` is given the rows of one at a time.
        quantity: Returns a value a seed; raises `Lacking` for what is not there.
        how: How it was measured, in one sentence; the seeds are added.

    Returns:
        An interval a task; nothing measured if no task has what it takes.
    """
    found: dict[str, pd.Series[float]] = {}
    reasons: list[str] = []
    for setting, rows in runs.groupby("setting"):
        try:
            values = quantity(rows).dropna()
            if values.empty:
                raise Lacking("two such runs of the same seed")
            found[str(setting)] = values
        except Lacking as error:
            reasons.append(str(error))
    if not found:
        return Unmeasured(why=f"needs {reasons[0]}", testable=True)
    confidence = 1 - (1 - CONFIDENCE) / len(found)
    seeds = sorted({len(values) for values in found.values()})
    counted = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return Measured(
        values=tuple(
            student_interval(values, confidence=confidence, label=setting)
            for setting, values in found.items()
        ),
        how=f"{how}; {100 * confidence:.3g} % interval over {counted}",
    )
