"""Claims on learning rates, measured from tuning runs over a grid.

A best rate is an interval: from the lowest to the highest rate that is not worse than the best
one by more than its paired interval over seeds (95 % for the whole grid), and half a step of the
grid further on either side. Where that reaches an end of the grid, the interval is open there.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lowrank_study.study.accuracy import CONFIDENCE
from lowrank_study.study.claims.measures.accuracy import unless_lacking
from lowrank_study.study.claims.measures.evidence import Evidence, part
from lowrank_study.study.claims.measures.intervals import student_interval
from lowrank_study.study.claims.measures.outcome import (
    Interval,
    Lacking,
    Measured,
    Outcome,
    Unmeasured,
    measure,
)

NEEDS = "tuning runs over a grid of rates: a sweep with tuning=grid"


def tuning_runs(evidence: Evidence) -> pd.DataFrame:
    """Give the tuning runs, with their task and model."""
    rates = part(evidence.rates, NEEDS)
    return rates.assign(setting=rates["task"] + ", " + rates["model"])


def best_rate(runs: pd.DataFrame, *, label: str) -> Interval:
    """Give the best rate of one setting's tuning runs, as an interval.

    A rate that lost a run is left out. Two rates are compared over the seeds that both had.

    Raises:
        Lacking: Under three rates.
    """
    lost = runs.loc[runs["status"] != "done", "learning_rate"]
    kept = runs[~runs["learning_rate"].isin(lost)]
    table = kept.pivot_table(index="seed", columns="learning_rate", values="validation_accuracy")
    table = table.sort_index(axis=1)
    grid = table.columns.to_numpy(dtype=np.float64)
    if grid.size < 3:
        raise Lacking(f"three rates or more for {label} at which no run was lost")
    best = int(table.mean().to_numpy().argmax())
    confidence = 1 - (1 - CONFIDENCE) / (grid.size - 1)
    tied = [best]
    for other in range(grid.size):
        behind = (table.iloc[:, best] - table.iloc[:, other]).dropna()
        if student_interval(behind, confidence=confidence, label="").low <= 0.0:
            tied.append(other)
    first, last = min(tied), max(tied)
    low = 0.0 if first == 0 else math.sqrt(grid[first - 1] * grid[first])
    high = math.inf if last == grid.size - 1 else math.sqrt(grid[last] * grid[last + 1])
    return Interval(value=float(grid[best]), low=float(low), high=float(high), label=label)


def of_rule(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Give the LoRA runs of a scaling rule.

    `alpha_over_rank` and `alpha_over_sqrt_rank` are those with the one α that was run at the
    most ranks; `twice_rank` are those with α = 2r under α/r.

    Raises:
        Lacking: No such runs.
    """
    lora = runs[runs["method"] == "lora"]
    rank, alpha, scaling = (
        lora[name].astype("float64") for name in ("adapter_rank", "alpha", "scaling")
    )
    divisor = rank**0.5 if rule == "alpha_over_sqrt_rank" else rank
    chosen = lora[np.isclose(scaling, alpha / divisor)]
    if rule == "twice_rank":
        chosen = chosen[np.isclose(chosen["alpha"], 2 * chosen["adapter_rank"].astype("float64"))]
    elif not chosen.empty:
        ranks = chosen.groupby("alpha")["adapter_rank"].nunique()
        chosen = chosen[chosen["alpha"] == ranks.idxmax()]
    if chosen.empty:
        raise Lacking(f"tuning runs of LoRA under the rule {rule}")
    return chosen


@measure
@unless_lacking
def best_rate_ratio(evidence: Evidence, target: str, rank: int, rule: str) -> Outcome:
    """Give LoRA's best rate over full fine-tuning's, a value a task."""
    values, reasons = [], []
    for setting, runs in tuning_runs(evidence).groupby("setting"):
        try:
            lora = of_rule(runs, rule)
            lora = lora[(lora["target"] == target) & (lora["adapter_rank"] == rank)]
            ours = best_rate(lora, label=f"LoRA r = {rank} on {target}")
            full = best_rate(runs[runs["method"] == "full"], label="full fine-tuning")
        except Lacking as error:
            reasons.append(str(error))
            continue
        values.append(_over(ours, full, str(setting)))
    if not values:
        return Unmeasured(why=f"needs {reasons[0]}", testable=True)
    how = f"best rate on validation of r = {rank} on {target} ({rule}) over full fine-tuning's"
    return Measured(values=tuple(values), how=f"{how}; tied rates and half a grid step included")


def _over(first: Interval, second: Interval, label: str) -> Interval:
    low = 0.0 if math.isinf(second.high) else first.low / second.high
    high = math.inf if second.low == 0.0 else first.high / second.low
    return Interval(value=first.value / second.value, low=low, high=high, label=label)


@measure
@unless_lacking
def best_rate_drift(evidence: Evidence, target: str, rule: str, ranks: Sequence[int]) -> Outcome:
    """Give the highest best rate over the lowest across ranks, a value a task: 1 for no drift."""
    values, reasons = [], []
    for setting, runs in tuning_runs(evidence).groupby("setting"):
        try:
            chosen = of_rule(runs, rule)
            chosen = chosen[(chosen["target"] == target) & chosen["adapter_rank"].isin(list(ranks))]
            found = [
                best_rate(at_rank, label=f"r = {rank}")
                for rank, at_rank in chosen.groupby("adapter_rank")
            ]
            if len(found) < 2:
                raise Lacking(f"tuning runs on {target} under {rule} at two ranks or more")
        except Lacking as error:
            reasons.append(str(error))
            continue
        low = max(best.low for best in found) / min(best.high for best in found)
        lowest = min(best.low for best in found)
        values.append(
            Interval(
                value=max(best.value for best in found) / min(best.value for best in found),
                low=max(1.0, low),
                high=math.inf if lowest == 0.0 else max(best.high for best in found) / lowest,
                label=str(setting),
            )
        )
    if not values:
        return Unmeasured(why=f"needs {reasons[0]}", testable=True)
    how = (
        f"highest best rate over the lowest, r of {', '.join(map(str, ranks))} on {target}, {rule}"
    )
    return Measured(values=tuple(values), how=f"{how}; tied rates and half a grid step included")
