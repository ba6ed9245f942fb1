"""The sufficient rank: the smallest rank that loses no more than a margin to full fine-tuning.

It lies between the lowest rank that is not shown inferior and the smallest that is shown
sufficient.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import pandas as pd

from lowrank_study.answers.paired_scores import PairedRuns, paired_with_full, truncated_with_full
from lowrank_study.answers.rows import CONFIGURATION
from lowrank_study.answers.statistics import (
    ERROR,
    Matrix,
    MeanEstimate,
    mean_score,
    paired_difference,
)
from lowrank_study.errors import InputError
from lowrank_study.runs.store import TrainedRun
from lowrank_study.tasks.metric import ACCURACY, Metric

Decision = Literal["sufficient", "inferior", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTest:
    """The test of one rank against the reference."""

    rank: int
    seeds: int
    """Pairs of runs."""
    difference: MeanEstimate
    """How much better the score is than that of the reference."""
    low: float
    """Lower one-sided 95 % limit of the difference; NaN with fewer than two seeds."""
    high: float
    """Upper one-sided 95 % limit; both limits together are the two-sided 90 % interval."""
    decision: Decision
    """`open` if the sequences of tests show neither of the other two."""


def rank_tests(
    differences: Mapping[int, Matrix],
    *,
    margin: float,
    lost: Collection[int] = (),
    metric: Metric = ACCURACY,
) -> list[RankTest]:
    """Test which ranks are non-inferior to the reference, in increasing order of rank.

    A rank is *sufficient* if the lower one-sided 95 % limit of its `paired_difference` is above
    -margin, and *inferior* if the upper limit is below -margin. Sufficient ranks are tested from
    the highest down and inferior ones from the lowest up; each sequence ends at the first failure.
    Such a fixed sequence needs no correction for multiple tests: each bound has a 5 % error rate,
    and both hold together at least 90 % of the time (assuming normal seeds). The result covers
    only the ranks that were tried. Six seeds often miss a failure that occurs once in ten runs.

    A rank with fewer than two seeds fails both tests. A rank with lost runs is never sufficient,
    because the remaining seeds are a biased sample.

    Args:
        differences: Rank → how much better the scores are than those of the reference, (seeds,
            examples), paired by both. The reference is full fine-tuning, or the update without
            truncation for the functional rank.
        margin: Largest acceptable loss of score; set before the data are seen.
        lost: Ranks with diverged or failed runs.
        metric: What the scores are.

    Source: W. Maurer, L. A. Hothorn and W. Lehmacher, "Multiple comparisons in drug clinical
    trials and preclinical assays: a-priori ordered hypotheses" (1995).
    """
    if not 0 < margin < metric.width:
        raise InputError(
            f"margin={margin!r}: give a share between 0 and 1, such as 0.02"
            if metric.width == 1
            else f"margin={margin!r}: give a number of {metric.points} above 0"
        )
    ranks = sorted(differences)
    estimates = [paired_difference(differences[rank], width=metric.width) for rank in ranks]
    limits = [estimate.interval(1 - 2 * ERROR) for estimate in estimates]
    inferior = _passed_in_sequence([high < -margin for _, high in limits])
    passed = [low > -margin and r not in lost for r, (low, _) in zip(ranks, limits, strict=True)]
    first_sufficient = len(ranks) - _passed_in_sequence(passed[::-1])
    return [
        RankTest(
            rank=rank,
            seeds=len(differences[rank]),
            difference=estimates[place],
            low=limits[place][0],
            high=limits[place][1],
            decision=_decision(place, inferior, first_sufficient),
        )
        for place, rank in enumerate(ranks)
    ]


def _passed_in_sequence(passed: Sequence[bool]) -> int:
    """Count the tests that pass before the first failure."""
    return passed.index(False) if False in passed else len(passed)


def _decision(place: int, inferior: int, first_sufficient: int) -> Decision:
    if place < inferior:
        return "inferior"
    return "sufficient" if place >= first_sufficient else "open"


COMPARISON_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target"], "text"),
    **dict.fromkeys(["adapter_rank", "seeds", "lost", "examples"], "whole"),
    **dict.fromkeys(["score", "score_low_95", "score_high_95"], "score"),
    **dict.fromkeys(["margin", "difference", "standard_error", "degrees_of_freedom"], "real"),
    **dict.fromkeys(["low_95", "high_95", "lower_limit", "upper_limit"], "real"),
    "decision": "text",
    "chance": "score",
    **dict.fromkeys(["retention", "retention_low_95", "retention_high_95"], "real"),
    "retention_bounded": "flag",
}


def against_full(
    runs: Sequence[TrainedRun], *, margin: float, results: Path | None = None
) -> pd.DataFrame:
    """Test every rank of every target for non-inferiority to full fine-tuning.

    Updates of full fine-tuning truncated to rank k are tested in the same way; their sufficient
    rank is the functional rank.

    Args:
        runs: Runs at each configuration's chosen learning rate, whatever their status.
        results: Folder with the evaluations of truncated updates; `None` tests none of them.

    Returns:
        The columns `COMPARISON_COLUMNS`. `score` is the adapter's; differences and limits are in
        its unit, and positive where the adapter is better. Intervals are over seeds and test
        examples; an unbounded interval of the retention is NaN. The linear probe has rank 0.

    Raises:
        InputError: The margin is invalid (see `rank_tests`), predictions can't be read, or the test
            splits of the runs differ.
    """
    rows = []
    truncated = [] if results is None else truncated_with_full(runs, results)
    for _, group in groupby([*paired_with_full(runs), *truncated], key=lambda pairs: pairs.target):
        by_rank = {pairs.adapter_rank: pairs for pairs in group}
        tests = rank_tests(
            {rank: pairs.difference_SE for rank, pairs in by_rank.items()},
            margin=margin,
            lost=[rank for rank, pairs in by_rank.items() if pairs.lost],
            metric=next(iter(by_rank.values())).metric,
        )
        rows += [_row(by_rank[test.rank], test, margin) for test in tests]
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _row(pairs: PairedRuns, test: RankTest, margin: float) -> dict[str, object]:
    low, high = test.difference.interval()
    metric = pairs.metric
    score = mean_score(pairs.adapter_SE, ends=(metric.lowest, metric.highest))
    score_low, score_high = score.interval()
    kept = pairs.retention
    return {
        **dict(zip(CONFIGURATION, (*pairs.target, pairs.adapter_rank), strict=True)),
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
