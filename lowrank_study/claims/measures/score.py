"""Claims on accuracy, measured from trained runs: paired by seed, at each setting's best rate."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lowrank_study.answers.statistics import retention_over_seeds
from lowrank_study.claims.measures.evidence import Evidence, part, tuned_runs
from lowrank_study.claims.measures.intervals import (
    FEWEST_SEEDS,
    over_seeds,
    over_settings,
    with_seeds,
)
from lowrank_study.claims.measures.outcome import (
    Interval,
    Lacking,
    Outcome,
    measure,
)


def by_seed(
    runs: pd.DataFrame,
    column: str,
    *,
    method: str,
    target: str | None = None,
    rank: int | None = None,
) -> "pd.Series[float]":
    """Give a column of the runs of one method by seed, over the data's seeds their mean.

    Raises:
        Lacking: No such runs, or they don't hold the column.
    """
    chosen = runs[runs["method"] == method]
    named = "full fine-tuning" if method == "full" else method
    if target is not None:
        chosen, named = chosen[chosen["target"] == target], f"{named} on {target}"
    if rank is not None:
        chosen, named = chosen[chosen["adapter_rank"] == rank], f"{named} at r = {rank}"
    values = chosen.groupby("seed")[column].mean().astype("float64").dropna()
    if values.empty:
        raise Lacking(f"runs of {named} with {column}")
    return values


def best_rank(runs: pd.DataFrame, *, target: str, ranks: Sequence[int]) -> int:
    """Give the rank of highest mean validation accuracy; the test split has no part in it.

    Raises:
        Lacking: None of the ranks was run.
    """
    chosen = runs[(runs["target"] == target) & runs["adapter_rank"].isin(list(ranks))]
    means = chosen.groupby("adapter_rank")["validation_score"].mean().dropna()
    if means.empty:
        raise Lacking(f"LoRA runs on {target} at r of {', '.join(map(str, ranks))}")
    return int(float(str(means.index[int(means.to_numpy().argmax())])))


@measure
def retention(evidence: Evidence, target: str, rank: int, above_chance: bool) -> Outcome:
    """Give what LoRA keeps of full fine-tuning's test accuracy, over the majority class or 0."""

    def interval(task: pd.DataFrame, confidence: float) -> Interval:
        full = by_seed(task, "test_score", method="full")
        lora = by_seed(task, "test_score", method="lora", target=target, rank=rank)
        chance = float(task["chance"].dropna().mean()) if above_chance else 0.0
        pairs = pd.concat([lora, full], axis=1).dropna().to_numpy(dtype=np.float64)
        if not len(pairs):
            raise Lacking("two such runs of the same seed")
        found = retention_over_seeds(*pairs.T, chance=chance, confidence=confidence)
        if math.isnan(found.ratio):
            raise Lacking("full fine-tuning that is above the commonest class")
        counts.add(len(pairs))
        bounded = len(pairs) >= FEWEST_SEEDS
        return Interval(
            value=found.ratio,
            low=found.low if bounded else -math.inf,
            high=found.high if bounded else math.inf,
            label="",
        )

    counts = set[int]()
    corrected = "above the majority class" if above_chance else "not corrected for chance"
    how = f"LoRA r = {rank} on {target} over full fine-tuning, {corrected}, paired by seed, Fieller"
    return with_seeds(over_settings(tuned_runs(evidence), interval, how=how), counts)


@measure
def lora_minus_full(
    evidence: Evidence, target: str, ranks: Sequence[int], column: str, task: str | None = None
) -> Outcome:
    """Give LoRA minus full fine-tuning in a column; of several ranks the best on validation.

    Of all tasks, or of one.
    """
    runs = tuned_runs(evidence)
    if task is not None:
        runs = part(runs[runs["task"] == task], f"trained runs on {task}")

    def quantity(setting: pd.DataFrame) -> "pd.Series[float]":
        rank = best_rank(setting, target=target, ranks=ranks)
        lora = by_seed(setting, column, method="lora", target=target, rank=rank)
        return lora - by_seed(setting, column, method="full")

    how = (
        f"{column} of LoRA on {target} minus full fine-tuning, paired by seed, "
        f"r of {', '.join(map(str, ranks))} by validation"
    )
    return over_seeds(runs, quantity, how=how)


@measure
def rank_difference(evidence: Evidence, target: str, higher: int, lower: int) -> Outcome:
    """Give the test accuracy at a higher rank minus that at a lower one."""

    def quantity(task: pd.DataFrame) -> "pd.Series[float]":
        high, low = (
            by_seed(task, "test_score", method="lora", target=target, rank=rank)
            for rank in (higher, lower)
        )
        return high - low

    how = f"test accuracy at r = {higher} minus r = {lower} on {target}, paired by seed"
    return over_seeds(tuned_runs(evidence), quantity, how=how)


@measure
def target_difference(
    evidence: Evidence, first: str, second: str, budget: float, slack: float
) -> Outcome:
    """Give the test accuracy of one target minus another's at equal parameters.

    Every pair of ranks counts whose adapters' sizes are in the ratio `budget` (first over
    second) up to a factor of 1 ± `slack`; a seed's value is the mean over those pairs.
    """

    def quantity(task: pd.DataFrame) -> "pd.Series[float]":
        ours, theirs = (_by_rank(task, name) for name in (first, second))
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
            by_seed(task, "test_score", method="lora", target=first, rank=a)
            - by_seed(task, "test_score", method="lora", target=second, rank=b)
            for a, b in pairs
        ]
        return pd.concat(differences, axis=1).dropna().mean(axis=1)

    compared: dict[str, set[str]] = {}
    found = over_seeds(tuned_runs(evidence), quantity, how="")
    pairs = "; ".join(
        ranks + (f" ({'; '.join(sorted(settings))})" if len(compared) > 1 else "")
        for ranks, settings in compared.items()
    )
    how = (
        f"test accuracy of {first} minus {second}, sizes in the ratio {budget:g} "
        f"± {100 * slack:.0f} %, paired by seed; the mean over ranks {pairs}"
    )
    return replace(found, how=how + found.how)


def _by_rank(task: pd.DataFrame, target: str) -> dict[int, float]:
    """Give the adapted parameters of each rank of a target."""
    chosen = task[task["target"] == target]
    sizes = chosen.groupby("adapter_rank")["adapted_parameters"].mean().dropna()
    if sizes.empty:
        raise Lacking(f"runs on {target} with their adapters' parameters")
    return {int(float(str(rank))): float(size) for rank, size in sizes.to_dict().items()}


@measure
def overfitting_slope(evidence: Evidence, target: str) -> Outcome:
    """Give how much the gap of train and test accuracy grows with each doubling of the rank."""

    def quantity(task: pd.DataFrame) -> "pd.Series[float]":
        lora = task[(task["method"] == "lora") & (task["target"] == target)]
        gap = (lora["train_score"] - lora["test_score"]).astype("float64")
        table = lora.assign(gap=gap).pivot_table(index="seed", columns="adapter_rank", values="gap")
        table = table.dropna()
        if table.shape[1] < 3 or table.empty:
            raise Lacking(f"runs on {target} at three ranks or more, of the same seeds")
        doublings = np.log2(table.columns.to_numpy(dtype=np.float64))
        centred = doublings - doublings.mean()
        slopes = table.to_numpy(dtype=np.float64) @ centred / (centred @ centred)
        return pd.Series(slopes, index=table.index)

    how = f"slope of train minus test accuracy on log2 r, {target}, a line a seed"
    return over_seeds(tuned_runs(evidence), quantity, how=how)


@measure
def gap_of_full_minus_lora(evidence: Evidence, target: str, rank: int) -> Outcome:
    """Give full fine-tuning's gap of train and test accuracy minus LoRA's."""

    def quantity(task: pd.DataFrame) -> "pd.Series[float]":
        gaps = [
            by_seed(task, "train_score", method=method, target=where, rank=r)
            - by_seed(task, "test_score", method=method, target=where, rank=r)
            for method, where, r in (("full", None, None), ("lora", target, rank))
        ]
        return gaps[0] - gaps[1]

    how = f"train minus test accuracy of full fine-tuning minus that of r = {rank} on {target}"
    return over_seeds(tuned_runs(evidence), quantity, how=how)


@measure
def truncated_minus_whole(evidence: Evidence, kept_rank: int) -> Outcome:
    """Give the test accuracy of a full update truncated to a rank, minus that of the whole one."""

    def quantity(setting: pd.DataFrame) -> "pd.Series[float]":
        by_rank = setting.pivot_table(index="seed", columns="kept_rank", values="test_score")
        highest = max(float(str(rank)) for rank in by_rank.columns)
        if kept_rank not in by_rank.columns or highest <= kept_rank:
            raise Lacking(f"truncations to rank {kept_rank} and to the whole update")
        return by_rank[kept_rank] - by_rank[highest]

    how = f"test accuracy of ΔW cut to rank {kept_rank} minus the highest rank kept"
    return over_seeds(_cuts(evidence), quantity, how=how)


@measure
def energy_kept(evidence: Evidence, kept_rank: int) -> Outcome:
    """Give the share of Σ‖ΔW‖² that a full update truncated to a rank keeps."""

    def quantity(setting: pd.DataFrame) -> "pd.Series[float]":
        chosen = setting[setting["kept_rank"] == kept_rank]
        if chosen.empty:
            raise Lacking(f"truncations to rank {kept_rank}")
        return chosen.groupby("seed")["energy_kept"].mean()

    how = f"energy of ΔW cut to rank {kept_rank} in every matrix, of the whole update's"
    return over_seeds(_cuts(evidence), quantity, how=how)


def _cuts(evidence: Evidence) -> pd.DataFrame:
    """Give the evaluations of updates that were cut to one rank in every matrix."""
    table = part(evidence.truncation, "full updates truncated to low rank: experiments/truncate.py")
    runs = part(evidence.runs, "trained runs: sweep=NAME")[["run_id", "seed", "setting"]]
    cuts = table[table["scope"] == "all"].merge(runs, on="run_id")
    return part(cuts, "full updates cut to a rank in every matrix: experiments/truncate.py")
