"""Scores of each test set against full fine-tuning, by the primary metric and by a second one.

    for scores in scores_of_sets(runs):
        scores.metric.label, scores.table

The second metric of a language model is the score of its generated answers. Its differences are
paired by seed and problem as those of the primary metric are; no rank is tested by it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowrank_study.answers.paired_scores import (
    Configuration,
    PairedRuns,
    configuration_of,
    is_reference,
    paired_with_full,
)
from lowrank_study.answers.rows import CONFIGURATION
from lowrank_study.answers.statistics import interval_of_mean, paired_difference
from lowrank_study.runs.store import TrainedRun
from lowrank_study.tasks import Scored, Task
from lowrank_study.tasks.metric import Metric

SET_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target"], "text"),
    "adapter_rank": "whole",
    "test_set": "text",
    "n": "whole",
    **dict.fromkeys(["mean", "sd", "low_95", "high_95", "base", "cut_off"], "real"),
    **dict.fromkeys(["pairs", "examples"], "whole"),
    **dict.fromkeys(["difference", "difference_low_95", "difference_high_95"], "real"),
    **dict.fromkeys(["gain", "gain_low_95", "gain_high_95"], "real"),
}
"""`mean`, `sd` and their interval are over the n done runs; `base` is the score without
fine-tuning; `cut_off` is the share of answers that the limit of tokens ended.

The difference from full fine-tuning is positive where the adapter is better, the gain of full
fine-tuning where it is better than without. Their intervals are over the seeds of the pairs and the
test examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetScores:
    """The scores of test sets by one metric."""

    metric: Metric
    table: pd.DataFrame
    """One row per configuration and test set; see `SET_COLUMNS`."""


def scores_of_sets(runs: Sequence[TrainedRun]) -> tuple[SetScores, ...]:
    """Return the scores of each test set, first by the primary metric.

    Without named test sets there are only scores by a second metric, those of the whole test split;
    the name of the set is then empty.

    Args:
        runs: Runs at one learning rate per configuration, whatever their status.

    Raises:
        InputError: Predictions can't be read, or paired runs have different test examples.
    """
    settings: dict[tuple[str, str], list[TrainedRun]] = {}
    for run in runs:
        settings.setdefault((run.spec.task.name, run.spec.model.name), []).append(run)
    rows: dict[Metric, list[Mapping[str, object]]] = {}
    for mine in settings.values():
        task = mine[0].spec.task
        how: list[Scored] = [task] if task.test_set_column else []
        if task.second_scores is not None:
            how.append(task.second_scores)
        for scored in how:
            rows.setdefault(scored.metric, []).extend(_rows(mine, scored))
    return tuple(
        SetScores(metric=metric, table=pd.DataFrame(found, columns=list(SET_COLUMNS)))
        for metric, found in rows.items()
        if found
    )


def _rows(runs: Sequence[TrainedRun], scored: Scored) -> Iterator[Mapping[str, object]]:
    """Yield the rows of one task and model."""
    pairs = {
        (*each.target, each.adapter_rank): each for each in paired_with_full(runs, scored=scored)
    }
    configurations: dict[Configuration, list[TrainedRun]] = {}
    order = sorted(runs, key=lambda run: (not is_reference(run.spec), configuration_of(run.spec)))
    for run in order:
        if run.status == "done" and _sets(run, "test"):
            configurations.setdefault(configuration_of(run.spec), []).append(run)
    base = next((sets for run in runs if (sets := _sets(run, "base"))), {})
    names = dict.fromkeys(name for run in runs for name in _sets(run, "test"))
    for name in names:
        for key, mine in configurations.items():
            of_set = [_sets(run, "test")[name] for run in mine]
            yield {
                **dict(zip(CONFIGURATION, key, strict=True)),
                "adapter_rank": mine[0].spec.method.adapter_rank,
                "test_set": name,
                "cut_off": math.nan if isinstance(scored, Task) else _cut_off(of_set),
                **_over_seeds(of_set, base.get(name, {}), scored.metric),
                **_difference(pairs.get(key), name),
            }


def _over_seeds(
    tests: Sequence[Mapping[str, float]], base: Mapping[str, float], metric: Metric
) -> dict[str, float]:
    """Return the mean score over runs, from their metrics on one test set."""
    scores = np.array([test[metric.name] for test in tests])
    low, high = interval_of_mean(scores)
    return {
        "n": len(scores),
        "mean": float(scores.mean()),
        "sd": float(scores.std(ddof=1)) if len(scores) > 1 else math.nan,
        "low_95": low,
        "high_95": high,
        "base": metric.baseline_level({"base": base, "test": tests[0]}),
    }


def _cut_off(tests: Sequence[Mapping[str, float]]) -> float:
    """Return the share of answers that the limit of tokens ended."""
    return sum(test["answers_cut_off"] for test in tests) / sum(test["answers"] for test in tests)


def _difference(pairs: PairedRuns | None, name: str) -> dict[str, float]:
    """Compare an adapter with full fine-tuning on one test set, and that with no fine-tuning."""
    if pairs is None:
        return {}
    if not pairs.seeds:
        return {"pairs": 0}
    mine = pairs.in_test_set(name)
    found: dict[str, float] = {"pairs": len(mine.seeds), "examples": len(mine.base_E)}
    for column, values_SE in (("difference", mine.difference_SE), ("gain", mine.gain_SE)):
        estimate = paired_difference(values_SE, width=mine.metric.width, weights_E=mine.weights_E)
        low, high = estimate.interval()
        found |= {column: estimate.mean, f"{column}_low_95": low, f"{column}_high_95": high}
    return found


def _sets(run: TrainedRun, of: str) -> Mapping[str, Mapping[str, float]]:
    """Return the metrics of each test set, or of the test split as a set without a name."""
    whole = run.record.get(of)
    sets: Mapping[str, Mapping[str, float]] = run.record.get(f"{of}_sets") or {}
    return sets or ({"": whole} if whole else {})
