"""Intervals over seeds, paired by seed, for each setting (a task, a model and how it is trained).

    over_seeds(runs, lambda setting: lora_of(setting) - full_of(setting), how="...")

Student's t over seeds. With k settings each interval is at 1 - 0.05 / k, so together they cover at
95 % (Bonferroni). With fewer than three seeds an interval is unbounded and decides nothing.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lowrank_study.answers.statistics import CONFIDENCE, interval_of_mean
from lowrank_study.claims.measures.outcome import Interval, Lacking, Measured

FEWEST_SEEDS = 3


def student_interval(values: npt.ArrayLike, *, confidence: float) -> Interval:
    """Return the mean of independent values with Student's t interval."""
    found = np.asarray(values, dtype=np.float64)
    low, high = -math.inf, math.inf
    if found.size >= FEWEST_SEEDS:
        low, high = interval_of_mean(found, confidence)
    return Interval(value=float(found.mean()), low=low, high=high, label="")


def median_interval(values: npt.ArrayLike) -> Interval:
    """Return the median with its 95 % interval of order statistics, for any distribution."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    size = ordered.size
    # The largest k with P(fewer than k of n below the median) <= 2.5 %.
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, size, 0.5))
    low, high = (-math.inf, math.inf) if k == 0 else (ordered[k - 1], ordered[size - k])
    return Interval(value=float(np.median(ordered)), low=float(low), high=float(high), label="")


def over_settings(
    runs: pd.DataFrame,
    interval: Callable[[pd.DataFrame, float], Interval],
    *,
    how: str,
    seeds: Collection[int] = (),
) -> Measured:
    """Return one interval for each setting that has the runs it takes.

    Args:
        runs: Table with a column `setting`.
        interval: Gets the rows of one setting and a confidence; may raise `Lacking`.
        how: How the value was measured.
        seeds: Filled by `interval` with the number of seeds, for the text; may stay empty.
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
    values = [replace(interval(rows, confidence), label=name) for name, rows in able.items()]
    how = f"{how}; {100 * confidence:.3g} % interval"
    if seeds:
        fewest, most = min(seeds), max(seeds)
        how += f" over {fewest} seeds" if fewest == most else f" over {fewest} to {most} seeds"
    return Measured(values=tuple(values), how=how)


def over_seeds(
    runs: pd.DataFrame, quantity: Callable[[pd.DataFrame], "pd.Series[float]"], *, how: str
) -> Measured:
    """Return the mean over seeds of a quantity that has one value for each seed of a setting."""
    seeds = set[int]()

    def interval(rows: pd.DataFrame, confidence: float) -> Interval:
        values = quantity(rows).dropna()
        if values.empty:
            raise Lacking("two such runs of the same seed")
        seeds.add(len(values))
        return student_interval(values, confidence=confidence)

    return over_settings(runs, interval, how=how, seeds=seeds)


def shared_confidence(confidence: float, intervals: int) -> float:
    """Return the confidence of each of several intervals that hold together (Bonferroni)."""
    return 1 - (1 - confidence) / intervals
