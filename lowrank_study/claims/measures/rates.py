"""Claims on learning rates, measured from tuning runs over a grid.

A best rate is an interval. It covers all rates that are not worse than the best one by more than
the paired interval over seeds (95 % for the whole grid), and half a grid step on either side. The
interval is open where it reaches an end of the grid.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lowrank_study.claims.measures.evidence import Evidence, part
from lowrank_study.claims.measures.intervals import (
    over_settings,
    shared_confidence,
    student_interval,
)
from lowrank_study.claims.measures.outcome import Interval, Lacking, Outcome, measure

TIED = "including tied rates and half a grid step"
NEEDS = "tuning runs over a grid of learning rates: a sweep with tuning=grid"


def best_rate(runs: pd.DataFrame, *, confidence: float, label: str) -> Interval:
    """Return the best rate of one configuration's tuning runs, as an interval.

    Rates with a lost run do not count. Two rates are compared over the seeds that both have.
    """
    lost = runs.loc[runs["status"] != "done", "learning_rate"]
    kept = runs[~runs["learning_rate"].isin(lost)]
    table = kept.pivot_table(index="seed", columns="learning_rate", values="validation_score")
    table = table.sort_index(axis=1)
    grid = table.columns.to_numpy(dtype=np.float64)
    if grid.size < 3:
        raise Lacking(f"three or more learning rates of {label} without a lost run")
    best = int(table.mean().to_numpy().argmax())
    each = shared_confidence(confidence, grid.size - 1)
    tied = [best]
    for other in range(grid.size):
        behind = (table.iloc[:, best] - table.iloc[:, other]).dropna()
        if student_interval(behind, confidence=each).low <= 0.0:
            tied.append(other)
    first, last = min(tied), max(tied)
    low = 0.0 if first == 0 else math.sqrt(grid[first - 1] * grid[first])
    high = math.inf if last == grid.size - 1 else math.sqrt(grid[last] * grid[last + 1])
    return Interval(value=float(grid[best]), low=float(low), high=float(high), label=label)


def of_rule(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Return the LoRA runs of a scaling rule.

    `alpha_over_rank` and `alpha_over_sqrt_rank` take the one α that was trained at the most ranks.
    `twice_rank` takes α = 2r under α/r.
    """
    lora = runs[runs["method"] == "lora"].astype({"adapter_rank": "float64", "alpha": "float64"})
    rank = lora["adapter_rank"]
    divisor = rank**0.5 if rule == "alpha_over_sqrt_rank" else rank
    chosen = lora[np.isclose(lora["scaling"].astype("float64"), lora["alpha"] / divisor)]
    if rule == "twice_rank":
        chosen = chosen[np.isclose(chosen["alpha"], 2 * chosen["adapter_rank"])]
    elif not chosen.empty:
        ranks = chosen.groupby("alpha")["adapter_rank"].nunique()
        chosen = chosen[chosen["alpha"] == ranks.idxmax()]
    if chosen.empty:
        raise Lacking(f"tuning runs of LoRA under the rule {rule}")
    return chosen


def _ratio(above: Interval, below: Interval) -> Interval:
    """Return the ratio of two intervals of positive numbers, with open ends as 0 and ∞."""
    return Interval(
        value=above.value / below.value,
        low=0.0 if math.isinf(below.high) else above.low / below.high,
        high=math.inf if below.low == 0.0 else above.high / below.low,
        label="",
    )


@measure
def best_rate_ratio(
    evidence: Evidence, target: str, rank: int, rule: str, steps: tuple[int, int | None]
) -> Outcome:
    """Return LoRA's best rate over full fine-tuning's, in runs with a number of steps."""

    def interval(runs: pd.DataFrame, confidence: float) -> Interval:
        each = shared_confidence(confidence, 2)
        lora = of_rule(runs, rule)
        lora = lora[(lora["target"] == target) & (lora["adapter_rank"] == rank)]
        ours = best_rate(lora, confidence=each, label=f"LoRA r = {rank} on {target}")
        full = runs[runs["method"] == "full"]
        return _ratio(ours, best_rate(full, confidence=each, label="full fine-tuning"))

    fewest, most = steps
    tried = part(evidence.rates, NEEDS)
    asked = f"{fewest} steps or more" if most is None else f"{fewest} to {most} steps"
    tried = tried[tried["steps"].between(fewest, math.inf if most is None else most)]
    tried = part(tried, f"tuning runs of {asked}")
    how = (
        f"best learning rate on validation of LoRA on {target} (r = {rank}, {rule}) over full "
        f"fine-tuning's, {TIED}"
    )
    return over_settings(tried, interval, how=how)


@measure
def best_rate_drift(evidence: Evidence, target: str, rule: str, ranks: Sequence[int]) -> Outcome:
    """Return the highest best rate over the lowest across ranks; 1 means no drift."""
    tried = set[int]()

    def interval(runs: pd.DataFrame, confidence: float) -> Interval:
        chosen = of_rule(runs, rule)
        chosen = chosen[(chosen["target"] == target) & chosen["adapter_rank"].isin(list(ranks))]
        by_rank = {int(float(str(rank))): rows for rank, rows in chosen.groupby("adapter_rank")}
        if len(by_rank) < 2:
            raise Lacking(f"tuning runs on {target} under {rule} at two ranks or more")
        each = shared_confidence(confidence, len(by_rank))
        found = [best_rate(rows, confidence=each, label=f"r = {r}") for r, rows in by_rank.items()]
        tried.update(by_rank)
        highest, lowest = (
            Interval(
                value=pick(best.value for best in found),
                low=pick(best.low for best in found),
                high=pick(best.high for best in found),
                label="",
            )
            for pick in (max, min)
        )
        drift = _ratio(highest, lowest)
        return replace(drift, low=max(1.0, drift.low))

    found = over_settings(part(evidence.rates, NEEDS), interval, how=TIED)
    how = f"highest best learning rate over the lowest, LoRA on {target} ({rule}), r = "
    how += _listed(tried)
    if untried := set(ranks) - tried:
        how += f" (without {_listed(untried)})"
    return replace(found, how=f"{how}, {found.how}")


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
