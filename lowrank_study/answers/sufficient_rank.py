"""Every rank against full fine-tuning, as a tidy table: one row a target and rank.

    >>> against_full(runs, margin=0.02)[["adapter_rank", "difference", "decision"]]

What the numbers mean is said in `answers/statistics.py`.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from lowrank_study.answers.paired_scores import PairedRuns, cut_beside_whole, paired_with_full
from lowrank_study.answers.statistics import RankTest, mean_score, retention, sufficient_rank
from lowrank_study.runs.store import TrainedRun

COMPARISON_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target"], "text"),
    **dict.fromkeys(["adapter_rank", "seeds", "lost", "examples"], "whole"),
    **dict.fromkeys(["score", "score_low_95", "score_high_95"], "share"),
    **dict.fromkeys(["margin", "difference", "standard_error", "degrees_of_freedom"], "real"),
    **dict.fromkeys(["low_95", "high_95", "lower_limit", "upper_limit"], "real"),
    "decision": "text",
    "chance": "share",
    **dict.fromkeys(["retention", "retention_low_95", "retention_high_95"], "real"),
    "retention_bounded": "flag",
}


def against_full(
    runs: Sequence[TrainedRun], *, margin: float, results: Path | None = None
) -> pd.DataFrame:
    """Test every rank of every target for non-inferiority to full fine-tuning.

    Cuts of full fine-tuning's own update are tested in the same way: their sufficient rank is the
    functional rank.

    Parameters
    ----------
    runs
        At each configuration's chosen learning rate, whatever became of them.
    margin
        Largest loss of accuracy, as a share of one, that still counts as none.
    results
        Where evaluations of truncated updates are; `None` tests none of these.

    Returns
    -------
    The columns `COMPARISON_COLUMNS`: `score` is the adapter's; differences are shares of one;
    intervals are over seeds and test examples; that of the retention is NaN where it is unbounded.
    The head alone, which has no ΔW, has rank 0.

    Raises
    ------
    InputError
        The margin is no share, predictions can't be read, or the runs' test splits differ.
    """
    rows = []
    cuts = [] if results is None else cut_beside_whole(runs, results)
    for _, group in groupby([*paired_with_full(runs), *cuts], key=_target):
        by_rank = {pairs.adapter_rank: pairs for pairs in group}
        found = sufficient_rank(
            {rank: pairs.difference_SE for rank, pairs in by_rank.items()},
            margin=margin,
            lost=[rank for rank, pairs in by_rank.items() if pairs.lost],
        )
        rows += [_row(by_rank[test.rank], test, margin) for test in found.tests]
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _target(pairs: PairedRuns) -> tuple[str, str, str, str]:
    return pairs.task, pairs.model, pairs.method, pairs.target


def _row(pairs: PairedRuns, test: RankTest, margin: float) -> dict[str, object]:
    low, high = test.difference.interval()
    score = mean_score(pairs.adapter_SE)
    score_low, score_high = score.interval()
    kept = retention(pairs.adapter_SE, pairs.full_SE, chance=pairs.chance)
    return {
        "task": pairs.task,
        "model": pairs.model,
        "method": pairs.method,
        "target": pairs.target,
        "adapter_rank": pairs.adapter_rank,
        "seeds": test.seeds,
        "lost": pairs.lost,
        "examples": pairs.adapter_SE.shape[1],
        "score": score.mean,
        "score_low_95": score_low,
        "score_high_95": score_high,
        "margin": margin,
        "difference": test.difference.mean,
        "standard_error": test.difference.standard_error,
        "degrees_of_freedom": test.difference.degrees_of_freedom,
        "low_95": low,
        "high_95": high,
        "lower_limit": test.low,
        "upper_limit": test.high,
        "decision": test.decision,
        "chance": pairs.chance,
        "retention": kept.ratio,
        "retention_low_95": kept.low if kept.is_bounded else math.nan,
        "retention_high_95": kept.high if kept.is_bounded else math.nan,
        "retention_bounded": kept.is_bounded,
    }
