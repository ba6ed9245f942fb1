"""Claims on learning rates, measured from tuning runs over a grid.

A best rate is an interval: from the lowest to the highest rate that is not worse than the best
one by more than its paired interval over seeds (95 % for the whole grid), and half a step of the
grid further on either side. Where that reaches an end of the grid, the interval is open there.
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
from lowrank_study.claims.measures.outcome import (
    Interval,
    Lacking,
    Outcome,
    measure,
)

TIED = "tied rates and half a grid step included"
NEEDS = "tuning runs over a grid of rates: a sweep with tuning=grid"


def best_rate(runs: pd.DataFrame, *, confidence: float, label: str) -> Interval:
    """Give the best rate of one configuration's tuning runs, as an interval.

    A rate that lost a run is left out. Two rates are compared over the seeds that both had.

    Raises:
        Lacking: Under three rates.
    """
    lost = runs.loc[runs["status"] != "done", "learning_rate"]
    kept = runs[~runs["learning_rate"].isin(lost)]
    table = kept.pivot_table(index="seed", columns="learning_rate", values="validation_score")
    table = table.sort_index(axis=1)
    grid = table.columns.to_numpy(dtype=np.float64)
    if grid.size < 3:
        raise Lacking(f"three rates or more for {label} at which no run was lost")
    best = int(table.mean().to_numpy().argmax())
    each = shared_confidence(confidence, grid.size - 1)
    tied = [best]
    for other in range(grid.size):
        behind = (table.iloc[:, best] - table.iloc[:, other]).dropna()
        if student_interval(behind, confidence=each, label="").low <= 0.0:
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
def best_rate_ratio(
    evidence: Evidence, target: str, rank: int, rule: str, steps: tuple[int, int | None]
) -> Outcome:
    """Give LoRA's best rate over full fine-tuning's, of runs of so many steps."""

    def interval(runs: pd.DataFrame, confidence: float) -> Interval:
        each = shared_confidence(confidence, 2)
        lora = of_rule(runs, rule)
        lora = lora[(lora["target"] == target) & (lora["adapter_rank"] == rank)]
        ours = best_rate(lora, confidence=each, label=f"LoRA r = {rank} on {target}")
        full = runs[runs["method"] == "full"]
        theirs = best_rate(full, confidence=each, label="full fine-tuning")
        return Interval(
            value=ours.value / theirs.value,
            low=0.0 if math.isinf(theirs.high) else ours.low / theirs.high,
            high=math.inf if theirs.low == 0.0 else ours.high / theirs.low,
            label="",
        )

    fewest, most = steps
    tried = part(evidence.rates, NEEDS)
    asked = f"{fewest} steps or more" if most is None else f"{fewest} to {most} steps"
    tried = tried[tried["steps"].between(fewest, math.inf if most is None else most)]
    tried = part(tried, f"tuning runs of {asked}")
    how = f"best rate on validation of r = {rank} on {target} ({rule}) over full fine-tuning's"
    return over_settings(tried, interval, how=f"{how}; {TIED}")


@measure
def best_rate_drift(evidence: Evidence, target: str, rule: str, ranks: Sequence[int]) -> Outcome:
    """Give the highest best rate over the lowest across ranks: 1 for no drift."""

    def interval(runs: pd.DataFrame, confidence: float) -> Interval:
        chosen = of_rule(runs, rule)
        chosen = chosen[(chosen["target"] == target) & chosen["adapter_rank"].isin(list(ranks))]
        by_rank = {int(float(str(rank))): rows for rank, rows in chosen.groupby("adapter_rank")}
        if len(by_rank) < 2:
            raise Lacking(f"tuning runs on {target} under {rule} at two ranks or more")
        each = shared_confidence(confidence, len(by_rank))
        found = [
            best_rate(rows, confidence=each, label=f"r = {rank}") for rank, rows in by_rank.items()
        ]
        tried.update(by_rank)
        lowest = min(best.low for best in found)
        return Interval(
            value=max(best.value for best in found) / min(best.value for best in found),
            low=max(1.0, max(best.low for best in found) / min(best.high for best in found)),
            high=math.inf if lowest == 0.0 else max(best.high for best in found) / lowest,
            label="",
        )

    tried = set[int]()
    found = over_settings(part(evidence.rates, NEEDS), interval, how=TIED)
    how = f"highest best rate over the lowest, r of {_listed(tried)} on {target}, {rule}"
    if untried := set(ranks) - tried:
        how += f" (not of {_listed(untried)})"
    return replace(found, how=f"{how}; {found.how}")


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
