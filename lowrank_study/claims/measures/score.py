"""Claims on scores of trained runs, paired by seed, each method at its best learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from lowrank_study.answers.statistics import retention_over_seeds
from lowrank_study.claims.measures.evidence import Evidence, part, tuned_runs
from lowrank_study.claims.measures.intervals import FEWEST_SEEDS, over_seeds, over_settings
from lowrank_study.claims.measures.outcome import Interval, Lacking, Outcome, measure
from lowrank_study.errors import InputError

Side = Literal["full"] | Mapping[str, Any]
"""Full fine-tuning, or LoRA on a `target` at the best of some `ranks` on validation."""

FULL = "full fine-tuning"
COLUMNS = {"test_score": "test accuracy", "overfitting": "train minus test accuracy"}


def _runs(evidence: Evidence) -> pd.DataFrame:
    runs = tuned_runs(evidence)
    scores = runs[["train_score", "test_score"]].astype("float64")
    return runs.assign(overfitting=scores["train_score"] - scores["test_score"])


def by_seed(
    runs: pd.DataFrame, column: str, target: str | None = None, rank: int | None = None
) -> "pd.Series[float]":
    """Return a column by seed, averaged over data seeds; full fine-tuning has no target."""
    method, named = ("lora", f"lora on {target} at r = {rank}") if target else ("full", FULL)
    chosen = runs[runs["method"] == method]
    if target:
        chosen = chosen[(chosen["target"] == target) & (chosen["adapter_rank"] == rank)]
    values = chosen.groupby("seed")[column].mean().astype("float64").dropna()
    if values.empty:
        raise Lacking(f"runs of {named} with {column}")
    return values


def best_rank(runs: pd.DataFrame, *, target: str, ranks: Sequence[int]) -> int:
    """Return the rank with the highest mean validation score."""
    chosen = runs[(runs["target"] == target) & runs["adapter_rank"].isin(list(ranks))]
    means = chosen.groupby("adapter_rank")["validation_score"].mean().dropna()
    if means.empty:
        raise Lacking(f"LoRA runs on {target} at r = {' or '.join(map(str, ranks))}")
    return int(float(str(means.index[int(means.to_numpy().argmax())])))


def _of_side(runs: pd.DataFrame, column: str, side: Side) -> "pd.Series[float]":
    if isinstance(side, str):
        return by_seed(runs, column)
    target, ranks = side["target"], side["ranks"]
    return by_seed(runs, column, target, best_rank(runs, target=target, ranks=ranks))


def _name_of(side: Side) -> str:
    if isinstance(side, str):
        return FULL
    ranks = " or ".join(map(str, side["ranks"]))
    chosen = ", chosen on validation" if len(side["ranks"]) > 1 else ""
    return f"LoRA on {side['target']} (r = {ranks}{chosen})"


@measure
def score_difference(
    evidence: Evidence, first: Side, second: Side, of: str = "test_score", task: str | None = None
) -> Outcome:
    """Return one side's score minus another's, on all tasks or on one."""
    if of not in COLUMNS:
        raise InputError(f"of={of!r}: valid are {', '.join(COLUMNS)}")
    runs = _runs(evidence)
    if task is not None:
        runs = part(runs[runs["task"] == task], f"trained runs on {task}")
    how = f"{COLUMNS[of]} of {_name_of(first)} minus {_name_of(second)}, paired by seed"
    return over_seeds(
        runs, lambda rows: _of_side(rows, of, first) - _of_side(rows, of, second), how=how
    )


@measure
def retention(evidence: Evidence, target: str, rank: int, above_chance: bool) -> Outcome:
    """Return LoRA's test score over full fine-tuning's, above the majority class or above 0."""
    seeds = set[int]()

    def interval(task: pd.DataFrame, confidence: float) -> Interval:
        sides = [by_seed(task, "test_score", target, rank), by_seed(task, "test_score")]
        pairs = pd.concat(sides, axis=1).dropna().to_numpy(dtype=np.float64)
        if not len(pairs):
            raise Lacking("two such runs of the same seed")
        chance = float(task["chance"].dropna().mean()) if above_chance else 0.0
        found = retention_over_seeds(*pairs.T, chance=chance, confidence=confidence)
        if math.isnan(found.ratio):
            raise Lacking("full fine-tuning above the majority class")
        seeds.add(len(pairs))
        low, high = -math.inf, math.inf
        if len(pairs) >= FEWEST_SEEDS:
            low, high = found.low, found.high
        return Interval(value=found.ratio, low=low, high=high, label="")

    corrected = "above the majority class" if above_chance else "not corrected for chance"
    how = (
        f"test accuracy of LoRA on {target} (r = {rank}) over full fine-tuning, {corrected}, "
        "paired by seed, Fieller interval"
    )
    return over_settings(tuned_runs(evidence), interval, how=how, seeds=seeds)


@measure
def target_difference(
    evidence: Evidence, first: str, second: str, budget: float, slack: float
) -> Outcome:
    """Return the test score on one target minus the score on another at equal parameters.

    A pair of ranks counts if the adapters' sizes have the ratio `budget` (first over second) up to
    a factor of 1 ± `slack`. A seed's value is the mean over these pairs.
    """
    compared: dict[str, set[str]] = {}

    def quantity(task: pd.DataFrame) -> "pd.Series[float]":
        ours, theirs = (_sizes(task, name) for name in (first, second))
        pairs = [
            (a, b)
            for a, size in ours.items()
            for b, other in theirs.items()
            if abs(size / (budget * other) - 1) <= slack
        ]
        if not pairs:
            raise Lacking(f"runs on {first} and {second} with sizes in the ratio {budget:g}")
        ranks = ", ".join(f"{a} and {b}" for a, b in sorted(pairs))
        compared.setdefault(ranks, set()).update(map(str, task["setting"]))
        differences = [
            by_seed(task, "test_score", first, a) - by_seed(task, "test_score", second, b)
            for a, b in pairs
        ]
        return pd.concat(differences, axis=1).dropna().mean(axis=1)

    found = over_seeds(tuned_runs(evidence), quantity, how="")
    pairs = "; ".join(
        ranks + (f" ({'; '.join(sorted(settings))})" if len(compared) > 1 else "")
        for ranks, settings in compared.items()
    )
    how = (
        f"test accuracy of LoRA on {first} minus {second}, paired by seed, at parameters in the "
        f"ratio {budget:g} ± {100 * slack:.0f} %: mean over ranks {pairs}"
    )
    return replace(found, how=how + found.how)


def _sizes(task: pd.DataFrame, target: str) -> dict[int, float]:
    """Return the adapted parameters at each rank of a target."""
    chosen = task[task["target"] == target]
    sizes = chosen.groupby("adapter_rank")["adapted_parameters"].mean().dropna()
    if sizes.empty:
        raise Lacking(f"runs on {target} with a count of adapted parameters")
    return {int(float(str(rank))): float(size) for rank, size in sizes.to_dict().items()}


@measure
def overfitting_slope(evidence: Evidence, target: str) -> Outcome:
    """Return the growth of train minus test score with each doubling of the rank."""

    def quantity(task: pd.DataFrame) -> "pd.Series[float]":
        lora = task[(task["method"] == "lora") & (task["target"] == target)]
        table = lora.pivot_table(index="seed", columns="adapter_rank", values="overfitting")
        table = table.dropna()
        if table.shape[1] < 3 or table.empty:
            raise Lacking(f"runs on {target} at three ranks or more, of the same seeds")
        doublings = np.log2(table.columns.to_numpy(dtype=np.float64))
        centred = doublings - doublings.mean()
        slopes = table.to_numpy(dtype=np.float64) @ centred / (centred @ centred)
        return pd.Series(slopes, index=table.index)

    how = f"slope of train minus test accuracy on log2 r, LoRA on {target}, one line for each seed"
    return over_seeds(_runs(evidence), quantity, how=how)


@measure
def truncated_update(
    evidence: Evidence, kept_rank: int, of: Literal["test_score", "energy_kept"]
) -> Outcome:
    """Return the loss of test score, or the share of energy, of a truncated full update."""
    how = {
        "test_score": f"test accuracy of ΔW truncated to rank {kept_rank} minus the highest rank",
        "energy_kept": f"energy of ΔW truncated to rank {kept_rank} over that of the whole ΔW",
    }
    if of not in how:
        raise InputError(f"of={of!r}: valid are {', '.join(how)}")
    needs = "full updates truncated in every matrix: experiments/truncate.py"
    table = part(evidence.truncation, needs)
    runs = part(evidence.runs, "trained runs: sweep=NAME")[["run_id", "seed", "setting"]]
    truncated = part(table[table["scope"] == "all"].merge(runs, on="run_id"), needs)

    def quantity(setting: pd.DataFrame) -> "pd.Series[float]":
        by_rank = setting.pivot_table(index="seed", columns="kept_rank", values=of)
        whole = max(float(str(rank)) for rank in by_rank.columns)
        if kept_rank not in by_rank.columns:
            raise Lacking(f"updates truncated to rank {kept_rank}")
        if of == "energy_kept":
            return by_rank[kept_rank]
        if whole <= kept_rank:
            raise Lacking(f"updates truncated to rank {kept_rank} and to a higher rank")
        return by_rank[kept_rank] - by_rank[whole]

    return over_seeds(truncated, quantity, how=how[of])
