"""Scores of test examples, paired between an adapter and full fine-tuning.

A pair is a run of an adapter and the run of full fine-tuning with the same task, model and seed.
Both have the same data order and test examples. Shape suffixes: S seeds, E test examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.answers.full_runs import chosen_full_runs
from lowrank_study.answers.functional_rank import scores_by_kept_rank, whole_update
from lowrank_study.answers.statistics import CONFIDENCE, Retention, retention
from lowrank_study.answers.tables import read_table
from lowrank_study.errors import InputError
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.tasks import Scored
from lowrank_study.tasks.metric import Metric

TRUNCATED = "truncation"
"""The method of updates that were truncated to a rank instead of trained at it."""

Configuration = tuple[str, str, str, str, int]
"""Task, model, method, target and rank; 0 is the rank of the linear probe."""
Predictions = dict[int, tuple[TrainedRun, pd.DataFrame]]
"""Seed → run and its predictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRuns:
    """An adapter's configuration paired with full fine-tuning, seed by seed."""

    target: tuple[str, str, str, str]
    """Task, model, method and target."""
    adapter_rank: int
    seeds: tuple[int, ...]
    """Seeds of the pairs, rising. Both runs of a pair are done and have predictions."""
    trained: int
    """Number of the adapter's runs, whatever their status."""
    lost: int
    """Number of the adapter's runs that diverged or failed."""
    metric: Metric
    adapter_SE: npt.NDArray[np.float64]
    """Scores of the adapter's runs."""
    full_SE: npt.NDArray[np.float64]
    """Scores of full fine-tuning."""
    base_E: npt.NDArray[np.float64]
    """Scores without fine-tuning: chance, or those of the base model."""
    weights_E: npt.NDArray[np.float64]
    """Weights of the test examples in a score."""
    test_set_E: npt.NDArray[np.object_]
    """Names of the examples' test sets; empty names if there is one set."""

    @property
    def difference_SE(self) -> npt.NDArray[np.float64]:
        """How much better the adapter's scores are than those of full fine-tuning."""
        return self._sign * (self.adapter_SE - self.full_SE)

    @property
    def gain_SE(self) -> npt.NDArray[np.float64]:
        """How much better the scores of full fine-tuning are than those without it."""
        return self._sign * (self.full_SE - self.base_E)

    @property
    def chance(self) -> float:
        """Score without fine-tuning; NaN without a pair."""
        if not self.seeds:
            return math.nan
        first = float(self.base_E[0])  # exact if all examples have the same chance level
        return first + float(np.average(self.base_E - first, weights=self.weights_E))

    def first(self, count: int) -> "PairedRuns":
        """Return the first pairs only."""
        return replace(
            self,
            seeds=self.seeds[:count],
            adapter_SE=self.adapter_SE[:count],
            full_SE=self.full_SE[:count],
        )

    def in_test_set(self, name: str) -> "PairedRuns":
        """Return the scores of the examples of one test set only."""
        keep_E = self.test_set_E == name
        return replace(
            self,
            adapter_SE=self.adapter_SE[:, keep_E],
            full_SE=self.full_SE[:, keep_E],
            base_E=self.base_E[keep_E],
            weights_E=self.weights_E[keep_E],
            test_set_E=self.test_set_E[keep_E],
        )

    def retention(self, confidence: float = CONFIDENCE) -> Retention:
        """Return the share of full fine-tuning's gain that the adapter keeps."""
        sign = self._sign
        return retention(
            sign * self.adapter_SE,
            sign * self.full_SE,
            chance=sign * self.base_E,
            width=self.metric.width,
            weights_E=self.weights_E,
            confidence=confidence,
        )

    @property
    def _sign(self) -> float:
        return 1.0 if self.metric.higher_is_better else -1.0


def paired_with_full(
    runs: Sequence[TrainedRun], *, scored: Scored | None = None
) -> list[PairedRuns]:
    """Pair every LoRA configuration and the linear probe with full fine-tuning.

    The linear probe counts as an adapter of rank 0 without a target. A configuration without pairs
    is included, with no seeds. A task and model without full fine-tuning is left out.

    Args:
        runs: Runs at one learning rate per configuration.
        scored: How their predictions are scored; None for the primary metric of each task.

    Raises:
        InputError: Predictions can't be read, or paired runs have different test examples.
    """
    full: dict[tuple[str, str], list[TrainedRun]] = {}
    adapters: dict[Configuration, list[TrainedRun]] = {}
    for run in runs:
        if is_reference(run.spec):
            full.setdefault(configuration_of(run.spec)[:2], []).append(run)
        elif is_compared(run.spec):
            adapters.setdefault(configuration_of(run.spec), []).append(run)
    # Read predictions of full fine-tuning once for all configurations.
    read = {setting: _predictions(mine, scored) for setting, mine in full.items()}
    return [
        _pair(
            key,
            _predictions(adapters[key], scored),
            read[key[:2]],
            trained=len(adapters[key]),
            lost=sum(run.status != "done" for run in adapters[key]),
            scored=scored or adapters[key][0].spec.task,
        )
        for key in sorted(adapters)
        if key[:2] in read
    ]


def is_reference(spec: RunSpec) -> bool:
    """Tell whether a run is one of full fine-tuning."""
    return spec.method.is_reference


def is_compared(spec: RunSpec) -> bool:
    """Tell whether a run is compared with full fine-tuning."""
    method = spec.method
    return not is_reference(spec) and (method.is_baseline or method.adapter_rank is not None)


def configuration_of(spec: RunSpec) -> Configuration:
    """Return what the runs share that are one side of the pairs."""
    method = spec.method
    return (
        *(spec.task.name, spec.model.name),
        *(method.label, method.target_label or "", method.adapter_rank or 0),
    )


def truncated_with_full(runs: Sequence[TrainedRun], results: Path) -> list[PairedRuns]:
    """Pair every truncated update of full fine-tuning with the whole update, seed by seed.

    `adapter_rank` is the kept rank of every matrix; the method is `TRUNCATED`.
    """
    pairs = []
    for full in chosen_full_runs(runs):
        there = [run for run in full if truncation_file(results, run.spec.run_id).is_file()]
        by_rank, task = scores_by_kept_rank(there, results), full[0].spec.task
        for rank in sorted(by_rank)[:-1]:
            examples = whole_update(there[0], results)
            pairs.append(
                PairedRuns(
                    target=(there[0].spec.task.name, there[0].spec.model.name, TRUNCATED, ""),
                    adapter_rank=rank,
                    seeds=tuple(run.spec.seed for run in there),
                    trained=len(there),
                    lost=0,
                    metric=task.metric,
                    adapter_SE=by_rank[rank],
                    full_SE=by_rank[max(by_rank)],
                    base_E=task.baseline_scores(examples),
                    weights_E=task.weights(examples),
                    test_set_E=np.full(len(examples), "", dtype=object),
                )
            )
    return pairs


def _predictions(runs: Sequence[TrainedRun], scored: Scored | None) -> Predictions:
    """Read the scored predictions of the done runs that have some."""
    found = {}
    for run in runs:
        file = run.folder / "predictions.parquet"
        if run.status == "done" and file.is_file():
            run.check_files(file.name)
            remedy = "delete the folder of this run and rerun its sweep"
            how = scored or run.spec.task
            columns = dict.fromkeys(["label", *how.score_columns])
            if run.spec.task.test_set_column:
                columns |= {"test_set": None}
            if is_reference(run.spec) and how.metric.needs_base:
                columns |= dict.fromkeys(how.base_columns())
            table = read_table(file, remedy=remedy, columns=list(columns))
            found[run.spec.seed] = run, how.scored_rows(table)
    return found


def _pair(
    key: Configuration,
    adapter: Predictions,
    full: Predictions,
    *,
    trained: int,
    lost: int,
    scored: Scored,
) -> PairedRuns:
    seeds = tuple(sorted(adapter.keys() & full.keys()))
    base_E = weights_E = np.empty(0)
    test_set_E = np.empty(0, dtype=object)
    if seeds:
        first, examples = full[seeds[0]]
        base_E, weights_E = scored.baseline_scores(examples), scored.weights(examples)
        test_set_E = examples.get("test_set", pd.Series("", index=examples.index)).to_numpy(object)
    for run, predictions in (of[seed] for seed in seeds for of in (full, adapter)):
        same = np.array_equal(predictions["label"], examples["label"])
        if not (same and np.array_equal(scored.weights(predictions), weights_E)):
            raise InputError(
                f"runs {first.spec.run_id!r} and {run.spec.run_id!r} were tested on different "
                "examples: compare runs with the same test split"
            )
    adapter_SE, full_SE = (
        np.array([scored.scores(of[seed][1]) for seed in seeds], dtype=np.float64)
        for of in (adapter, full)
    )
    return PairedRuns(
        target=key[:4],
        adapter_rank=key[4],
        seeds=seeds,
        trained=trained,
        lost=lost,
        metric=scored.metric,
        adapter_SE=adapter_SE.reshape(len(seeds), len(base_E)),
        full_SE=full_SE.reshape(len(seeds), len(base_E)),
        base_E=base_E,
        weights_E=weights_E,
        test_set_E=test_set_E,
    )
