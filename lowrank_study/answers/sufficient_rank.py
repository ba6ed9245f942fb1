"""The sufficient rank: the smallest rank that loses no more than a margin to full fine-tuning.

It lies between the lowest rank that is not shown inferior and the smallest that is shown
sufficient.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

import pandas as pd

from lowrank_study.answers.looks import Looks
from lowrank_study.answers.paired_scores import (
    TRUNCATED,
    PairedRuns,
    paired_with_full,
    truncated_with_full,
)
from lowrank_study.answers.rows import CONFIGURATION
from lowrank_study.answers.statistics import (
    CONFIDENCE,
    ERROR,
    Matrix,
    MeanEstimate,
    Vector,
    mean_score,
    paired_difference,
)
from lowrank_study.runs.store import TrainedRun
from lowrank_study.tasks.metric import ACCURACY, Margin, Metric

Decision = Literal["sufficient", "inferior", "open"]
Stop = Literal["decided", "unlikely to be decided", "out of reach", "no seeds left", ""]

FUTILE = 0.1
"""A rank gets no further seeds if its chance to be decided is lower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTest:
    """The test of one rank against the reference."""

    rank: int
    trained: int
    """Seeds that were trained, with those that have no pair."""
    seeds: int
    """Pairs of runs; with looks, those of the last look."""
    looks: int
    """Tests so far; 1 if seeds are not added."""
    difference: MeanEstimate
    """How much better the score is than that of the reference."""
    margin: float
    """The largest acceptable loss; estimated if it is a share of the reference's gain."""
    low: float
    """Lower one-sided 95 % limit of the difference; NaN with fewer than two seeds."""
    high: float
    """Upper one-sided 95 % limit; both limits together are the two-sided 90 % interval.

    The limits take in the uncertainty of the margin, so they are compared with its estimate.
    """
    decision: Decision
    """`open` if the sequences of tests show neither of the other two."""
    stop: Stop
    """Why the rank needs no further seeds; empty while it does, and if seeds are not added.

    `decided`: its own limits lie on one side of the margin. `unlikely to be decided`: see
    `Looks.chance`. `out of reach`: neither sequence of tests can get to it any more.
    """

    @property
    def is_sufficient(self) -> bool:
        """Whether it is shown by itself to lose less than the margin."""
        return self.low > -self.margin

    @property
    def is_inferior(self) -> bool:
        """Whether it is shown by itself to lose more than the margin."""
        return self.high < -self.margin


def rank_tests(
    differences: Mapping[int, Matrix],
    *,
    margin: float | str,
    gains: Mapping[int, Matrix] | None = None,
    weights: Mapping[int, Vector] | None = None,
    lost: Collection[int] = (),
    metric: Metric = ACCURACY,
    looks: Looks | None = None,
    trained: Mapping[int, int] | None = None,
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

    With looks, each limit is the tightest of all looks so far, which hold together at 95 %. A rank
    that passes its test waits for the ranks before it. A false claim needs the first false rank of
    a sequence to pass at some look, so the error rates stay the same.

    Args:
        differences: Rank → how much better the scores are than those of the reference, (seeds,
            examples), paired by both. The reference is full fine-tuning, or the update without
            truncation for the functional rank.
        margin: Largest acceptable loss of score (`Metric.read_margin`), set before the data are
            seen. A share m of the reference's gain is tested by the mean of difference + m · gain.
        gains: Rank → how much better the reference is than the baseline, (seeds, examples).
        weights: Rank → weights of the examples; None if they are equal.
        lost: Ranks with diverged or failed runs.
        metric: What the scores are.
        looks: When a rank is tested, if seeds are added; None tests once, with all seeds.
        trained: Rank → trained seeds, with those that have no pair; None if all have one.

    Source: W. Maurer, L. A. Hothorn and W. Lehmacher, "Multiple comparisons in drug clinical
    trials and preclinical assays: a-priori ordered hypotheses" (1995); C. Jennison and B. W.
    Turnbull, "Interim analyses: the repeated confidence interval approach", Journal of the Royal
    Statistical Society B 51 (1989); E. Glimm, W. Maurer and F. Bretz, "Hierarchical testing of
    multiple endpoints in group-sequential trials", Statistics in Medicine 29 (2010).
    """
    allowed, ranks = metric.read_margin(margin), sorted(differences)
    alone = partial(_alone, margin=allowed, width=metric.width, looks=looks)
    tests = [
        alone(
            rank,
            differences[rank],
            (gains or differences)[rank],
            None if weights is None else weights[rank],
            trained=len(differences[rank]) if trained is None else trained[rank],
        )
        for rank in ranks
    ]
    return _decided(tests, looks, lost=lost)


def _decided(
    tests: Sequence[RankTest], looks: Looks | None, *, lost: Collection[int]
) -> list[RankTest]:
    """Return the tests, in increasing order of rank, with the decisions of the two sequences."""
    inferior = _passed_in_sequence([test.is_inferior for test in tests])
    passed = [test.is_sufficient and test.rank not in lost for test in tests]
    first_sufficient = len(tests) - _passed_in_sequence(passed[::-1])
    stops: list[Stop] = [""] * len(tests)
    if looks is not None:
        stops = _stops(tests, looks, lost=lost)
    return [
        replace(test, decision=_decision(place, inferior, first_sufficient), stop=stops[place])
        for place, test in enumerate(tests)
    ]


def _alone(
    rank: int,
    difference_SE: Matrix,
    gain_SE: Matrix,
    weights_E: Vector | None,
    *,
    margin: Margin,
    width: float,
    looks: Looks | None,
    trained: int,
) -> RankTest:
    """Return the test of a rank by itself, with the tightest limits of all looks so far."""
    estimate = partial(paired_difference, width=width, weights_E=weights_E)
    seeds = (len(difference_SE),) if looks is None else looks.made(len(difference_SE))
    levels = (ERROR,) if looks is None else looks.levels(ERROR)[: len(seeds)]
    last = seeds[-1] if seeds else 0
    allowed = _allowed(margin, gain_SE[:last], estimate)
    lows, highs = [], []
    for count, level in zip(seeds, levels, strict=True):
        then = _allowed(margin, gain_SE[:count], estimate)
        x_SE = difference_SE[:count]
        if margin.share:
            x_SE = x_SE + (margin.share * gain_SE[:count] - then)
        low, high = estimate(x_SE).interval(1 - 2 * level)
        lows.append(low + (then - allowed))
        highs.append(high + (then - allowed))
    return RankTest(
        rank=rank,
        trained=trained,
        seeds=last,
        looks=len(seeds),
        difference=estimate(difference_SE[:last]),
        margin=allowed,
        low=max(lows, default=math.nan),
        high=min(highs, default=math.nan),
        decision="open",
        stop="",
    )


def _allowed(margin: Margin, gain_SE: Matrix, estimate: Callable[[Matrix], MeanEstimate]) -> float:
    """Return the largest acceptable loss in the unit of the score."""
    return margin.share * estimate(gain_SE).mean if margin.share else margin.points


def _stops(tests: Sequence[RankTest], looks: Looks, *, lost: Collection[int]) -> list[Stop]:
    """Return why each rank, in increasing order, needs no further seeds; see `RankTest.stop`."""
    stops = [_stop(test, looks) for test in tests]
    may_suffice, may_be_inferior = [], []
    for test, stop in zip(tests, stops, strict=True):
        may_suffice.append((test.is_sufficient or not stop) and test.rank not in lost)
        may_be_inferior.append(test.is_inferior or not stop)
    return [
        stop
        if stop or all(may_suffice[place:]) or all(may_be_inferior[: place + 1])
        else "out of reach"
        for place, stop in enumerate(stops)
    ]


def _stop(test: RankTest, looks: Looks) -> Stop:
    if test.is_sufficient or test.is_inferior:
        return "decided"
    if test.trained >= looks.seeds[-1]:
        return "no seeds left"
    distance = abs(test.difference.mean + test.margin) / test.difference.standard_error
    if looks.chance(distance, test.seeds, ERROR) < FUTILE:
        return "unlikely to be decided"
    return ""


def _passed_in_sequence(passed: Sequence[bool]) -> int:
    """Count the tests that pass before the first failure."""
    return passed.index(False) if False in passed else len(passed)


def _decision(place: int, inferior: int, first_sufficient: int) -> Decision:
    if place < inferior:
        return "inferior"
    return "sufficient" if place >= first_sufficient else "open"


COMPARISON_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target"], "text"),
    **dict.fromkeys(["adapter_rank", "seeds", "lost", "examples", "looks", "most_seeds"], "whole"),
    **dict.fromkeys(["score", "score_low_95", "score_high_95"], "score"),
    "margin_share": "share",
    **dict.fromkeys(["margin", "difference", "standard_error", "degrees_of_freedom"], "real"),
    **dict.fromkeys(["low_95", "high_95", "lower_limit", "upper_limit"], "real"),
    **dict.fromkeys(["decision", "stop"], "text"),
    "chance": "score",
    **dict.fromkeys(["retention", "retention_low_95", "retention_high_95"], "real"),
    "retention_bounded": "flag",
}


def against_full(
    runs: Sequence[TrainedRun],
    *,
    margin: float | str,
    results: Path | None = None,
    looks: Looks | None = None,
) -> pd.DataFrame:
    """Test every rank of every target for non-inferiority to full fine-tuning.

    Updates of full fine-tuning truncated to rank k are tested in the same way; their sufficient
    rank is the functional rank.

    Args:
        runs: Runs at each configuration's chosen learning rate, whatever their status.
        margin: Largest loss at which a rank suffices; see `Metric.read_margin`.
        results: Folder with the evaluations of truncated updates; `None` tests none of them.
        looks: When seeds were added; None if all seeds were planned at once.

    Returns:
        The columns `COMPARISON_COLUMNS`. `score` is the adapter's; differences and limits are in
        its unit, and positive where the adapter is better. Intervals are over seeds and test
        examples; an unbounded interval of the retention is NaN. The linear probe has rank 0. With
        looks, all intervals hold at the last look, whatever made the seeds stop.

    Raises:
        InputError: The margin is invalid (see `rank_tests`), predictions can't be read, or the test
            splits of the runs differ.
    """
    rows = []
    truncated = [] if results is None else truncated_with_full(runs, results)
    for pairs, test in tests_of([*paired_with_full(runs), *truncated], margin=margin, looks=looks):
        share = pairs.metric.read_margin(margin).share
        rows.append(_row(pairs.first(test.seeds), test, share, looks))
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def tests_of(
    pairs: Sequence[PairedRuns], *, margin: float | str, looks: Looks | None
) -> Iterator[tuple[PairedRuns, RankTest]]:
    """Yield the test of each configuration; those of one target must follow one another."""
    for _, group in groupby(pairs, key=lambda each: each.target):
        by_rank = {each.adapter_rank: each for each in group}
        tests = rank_tests(
            {rank: each.difference_SE for rank, each in by_rank.items()},
            margin=margin,
            gains={rank: each.gain_SE for rank, each in by_rank.items()},
            weights={rank: each.weights_E for rank, each in by_rank.items()},
            lost=[rank for rank, each in by_rank.items() if each.lost],
            metric=next(iter(by_rank.values())).metric,
            looks=looks,
            trained={rank: each.trained for rank, each in by_rank.items()},
        )
        yield from ((by_rank[test.rank], test) for test in tests)


def _row(pairs: PairedRuns, test: RankTest, share: float, looks: Looks | None) -> dict[str, object]:
    confidence = CONFIDENCE
    if looks is not None and test.looks:
        confidence = 1 - 2 * looks.levels((1 - CONFIDENCE) / 2)[test.looks - 1]
    low, high = test.difference.interval(confidence)
    metric = pairs.metric
    ends = metric.lowest, metric.highest
    score = mean_score(pairs.adapter_SE, ends=ends, weights_E=pairs.weights_E)
    score_low, score_high = score.interval(confidence)
    kept = pairs.retention(confidence)
    return {
        **dict(zip(CONFIGURATION, (*pairs.target, pairs.adapter_rank), strict=True)),
        "seeds": test.seeds,
        "looks": test.looks,
        "most_seeds": None if looks is None else looks.seeds[-1],
        "lost": pairs.lost,
        "examples": pairs.adapter_SE.shape[1],
        "score": score.mean,
        "score_low_95": score_low,
        "score_high_95": score_high,
        "margin_share": share,
        "margin": test.margin,
        "difference": test.difference.mean,
        "standard_error": test.difference.standard_error,
        "degrees_of_freedom": test.difference.degrees_of_freedom,
        "low_95": low,
        "high_95": high,
        "lower_limit": test.low,
        "upper_limit": test.high,
        "decision": test.decision,
        "stop": test.stop if pairs.target[2] != TRUNCATED else "",
        "chance": pairs.chance,
        "retention": kept.ratio,
        "retention_low_95": kept.low if kept.is_bounded else math.nan,
        "retention_high_95": kept.high if kept.is_bounded else math.nan,
        "retention_bounded": kept.is_bounded,
    }
