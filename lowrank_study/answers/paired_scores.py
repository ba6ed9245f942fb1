"""Which test examples runs got right, each adapter's paired with full fine-tuning's.

    >>> for pairs in paired_with_full(runs):
    ...     pairs.adapter_rank, pairs.difference_SE.mean()

A pair is an adapter's run and the run of full fine-tuning with its seed, on the same task and
model: they share the seed's data order and every test example. Shape suffixes: S seeds, E test
examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.answers.full_runs import chosen_full_runs
from lowrank_study.answers.functional_rank import scores_by_kept_rank
from lowrank_study.errors import InputError
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import HeadOnly, Lora, target_name

TRUNCATED = "truncation"
"""The method of what was not trained at a rank but cut to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRuns:
    """An adapter's configuration beside full fine-tuning, seed by seed."""

    task: str
    model: str
    method: str
    target: str
    adapter_rank: int
    seeds: tuple[int, ...]
    """Those with a pair: both runs are done and have kept their predictions."""
    lost: int
    """Runs of the configuration that diverged or failed."""
    adapter_SE: npt.NDArray[np.bool_]
    """Whether the adapter's run answered the example rightly."""
    full_SE: npt.NDArray[np.bool_]
    """Whether full fine-tuning's did."""
    chance: float
    """Share of the test split's commonest class; NaN without a pair."""

    @property
    def difference_SE(self) -> npt.NDArray[np.int8]:
        """The adapter's correctness less full fine-tuning's: -1, 0 or 1."""
        return self.adapter_SE.astype(np.int8) - self.full_SE.astype(np.int8)


def paired_with_full(runs: Sequence[TrainedRun]) -> list[PairedRuns]:
    """Pair every LoRA configuration of the runs with full fine-tuning, where that was run.

    The head alone is paired too, as an adapter of rank 0 and no target. A configuration without any
    pair is given too, with no seeds: it was tried, and can't be compared. Only the runs that are to
    be compared belong here: one learning rate for each configuration.

    Raises
    ------
    InputError
        Predictions can't be read, or two runs that would be paired have other test examples.
    """
    full: dict[tuple[str, str], list[TrainedRun]] = {}
    adapters: dict[tuple[str, str, str, str, int], list[TrainedRun]] = {}
    for run in runs:
        spec, method = run.spec, run.spec.method
        setting = (spec.task.name, spec.model.name)
        if spec.method_name == "full":
            full.setdefault(setting, []).append(run)
        elif isinstance(method, HeadOnly):
            adapters.setdefault((*setting, spec.method_name, "", 0), []).append(run)
        elif isinstance(method, Lora):
            key = (*setting, spec.method_name, target_name(method.target), method.rank)
            adapters.setdefault(key, []).append(run)
    # Full fine-tuning's are read once, though every configuration is paired with them.
    read = {setting: _predictions(mine) for setting, mine in full.items()}
    return [
        _pair(
            key,
            _predictions(adapters[key]),
            read[key[:2]],
            lost=sum(run.status != "done" for run in adapters[key]),
        )
        for key in sorted(adapters)
        if key[:2] in read
    ]


def truncated_with_full(runs: Sequence[TrainedRun], results: Path) -> list[PairedRuns]:
    """Pair every cut of full fine-tuning's update with the whole update, seed by seed.

    `adapter_rank` is then the rank that was kept of every matrix; the method is `TRUNCATED`.

    Parameters
    ----------
    runs
        At each configuration's chosen learning rate.
    results
        Where the evaluations of truncated updates are.
    """
    pairs = []
    for full in chosen_full_runs(runs):
        there = [run for run in full if truncation_file(results, run.spec.run_id).is_file()]
        by_rank = scores_by_kept_rank(there, results)
        for rank in sorted(by_rank)[:-1]:
            pairs.append(
                PairedRuns(
                    task=there[0].spec.task.name,
                    model=there[0].spec.model.name,
                    method=TRUNCATED,
                    target="",
                    adapter_rank=rank,
                    seeds=tuple(run.spec.seed for run in there),
                    lost=0,
                    adapter_SE=by_rank[rank],
                    full_SE=by_rank[max(by_rank)],
                    chance=float(there[0].record["test"]["majority_accuracy"]),
                )
            )
    return pairs


def _predictions(runs: Sequence[TrainedRun]) -> dict[int, tuple[TrainedRun, pd.DataFrame]]:
    """Return seed → run and its predictions, for the done runs that have any."""
    found = {}
    for run in runs:
        file = run.folder / "predictions.parquet"
        if run.status == "done" and file.is_file():
            run.check_files(file.name)
            try:
                found[run.spec.seed] = run, pd.read_parquet(file, columns=["label", "predicted"])
            except (OSError, ValueError) as error:
                raise InputError(
                    f"the predictions {file} can't be read ({error}): remove the run's folder "
                    f"and run it again"
                ) from error
    return found


def _pair(
    key: tuple[str, str, str, str, int],
    adapter: dict[int, tuple[TrainedRun, pd.DataFrame]],
    full: dict[int, tuple[TrainedRun, pd.DataFrame]],
    *,
    lost: int,
) -> PairedRuns:
    task, model, method, target, rank = key
    seeds = tuple(sorted(adapter.keys() & full.keys()))
    labels = full[seeds[0]][1]["label"] if seeds else pd.Series(dtype=int)
    for run, predictions in (of[seed] for seed in seeds for of in (full, adapter)):
        if not np.array_equal(predictions["label"], labels):
            raise InputError(
                f"runs {full[seeds[0]][0].spec.run_id!r} and {run.spec.run_id!r} were tested on "
                f"other examples: compare runs of one split only"
            )
    return PairedRuns(
        task=task,
        model=model,
        method=method,
        target=target,
        adapter_rank=rank,
        seeds=seeds,
        lost=lost,
        adapter_SE=_correct([adapter[seed][1] for seed in seeds], len(labels)),
        full_SE=_correct([full[seed][1] for seed in seeds], len(labels)),
        chance=float(labels.value_counts(normalize=True).max()),
    )


def _correct(predictions: Sequence[pd.DataFrame], examples: int) -> npt.NDArray[np.bool_]:
    rows = [(one["label"] == one["predicted"]).to_numpy(dtype=bool) for one in predictions]
    return np.array(rows, dtype=bool).reshape(len(rows), examples)
