"""Test sets and generated answers are compared with full fine-tuning, paired as the loss is."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.paired_scores import paired_with_full
from lowrank_study.answers.statistics import paired_difference
from lowrank_study.answers.tables import runs_table
from lowrank_study.answers.test_sets import SET_COLUMNS, SetScores, scores_of_sets
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.scoring import ANSWER_SCORE, EXACT_MATCH, F1, metric_of
from tests.conftest import WORDS

Overrides = Callable[..., list[str]]
SIZES = {"far": 30, "near": 20}
TOKENS = np.arange(50) % 7 + 1
ANSWERED = np.arange(50) % 2 == 0


def spec_of(causal_overrides: Overrides, path: Path, *more: str) -> RunSpec:
    """Return a LoRA run that answers prompts."""
    rows = [
        {"prompt": f"{WORDS[n % 40]} {WORDS[n // 40]}", "response": WORDS[n % 3], "kind": kind}
        for n, kind in enumerate(["far", "near", "far"] * 20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return compose(
        *(text for text in causal_overrides() if not text.startswith("task")),
        "task=generation",
        f"task.source={path}",
        "task.prompt_template='{prompt} good '",
        "task.validation_size=6",
        "task.test_size=12",
        "task.max_length=32",
        "task.max_new_tokens=4",
        "method.target=all_linear",
        *more,
    )


def at_rank(lora: RunSpec, rank: int | None, seed: int = 0) -> RunSpec:
    """Return the run at another rank; None stands for full fine-tuning."""
    full = FullFineTuning(learning_rate=1e-3)
    method = full if rank is None else replace(lora.method, rank=rank)
    return replace(lora, method=method, seed=seed, data_seed=seed)


class Runs:
    """Ended runs in a folder with made-up losses and answers."""

    def __init__(self, folder: Path, lora: RunSpec) -> None:
        self.folder, self.lora = folder, lora
        self.made: list[TrainedRun] = []
        self.rng = np.random.default_rng(0)
        self.hard_E = self.rng.random(50)
        self.base = self._predictions(4.0, 0.0, ANSWERED)

    def add(
        self, rank: int | None, loss: float, right: float, *, answered: np.ndarray = ANSWERED
    ) -> None:
        """Add a run with about this loss a token and this share of right answers."""
        seed = sum(run.spec.method.adapter_rank == rank for run in self.made)
        spec = at_rank(self.lora, rank, seed)
        test = self._predictions(loss, right, answered)
        record = {"test": test.metrics(), "base": self.base.metrics()}
        for name, made in (("test_sets", test), ("base_sets", self.base)):
            record[name] = {of: part.metrics() for of, part in made.in_sets(SIZES).items()}
        columns = dict(test.with_sets(SIZES).columns)
        if rank is None:
            columns |= {f"base_{name}": values for name, values in self.base.columns.items()}
        folder = self.folder / spec.run_id
        folder.mkdir()
        pd.DataFrame(columns).to_parquet(folder / "predictions.parquet")
        self.made.append(TrainedRun(spec=spec, status="done", record=record, folder=folder))

    def _predictions(self, loss: float, right: float, answered: np.ndarray) -> Predictions:
        scores = (self.hard_E + 0.2 * self.rng.random(50) < 1.2 * right).astype(float)
        columns = {
            "label": np.arange(50),
            "loss": TOKENS * (loss + 0.3 * self.hard_E + 0.1 * self.rng.random(50)),
            "tokens": TOKENS,
            "bytes": TOKENS * 4,
            "answer_score": np.where(answered, scores, np.nan),
            "answer_cut_off": answered & (np.arange(50) % 10 == 0),
        }
        return Predictions(task=self.lora.task, columns=columns)

    def answers(self, rank: int | None, name: str) -> np.ndarray:
        """Return the scores of the answers of one test set, (seeds, answers)."""
        mine = [run for run in self.made if run.spec.method.adapter_rank == rank]
        read = [pd.read_parquet(run.folder / "predictions.parquet") for run in mine]
        return np.array([r.loc[r["test_set"] == name, "answer_score"].dropna() for r in read])


@pytest.fixture
def runs(causal_overrides: Overrides, tmp_path: Path) -> Runs:
    spec = spec_of(causal_overrides, tmp_path / "rows.jsonl", "task.test_set_column=kind")
    made = Runs(tmp_path, spec)
    for _ in range(3):
        made.add(4, 2.1, 0.7)
        made.add(1, 3.0, 0.1)
        made.add(None, 2.0, 0.8)
    return made


def one_row(scores: SetScores, rank: int | None, test_set: str) -> dict[str, Any]:
    table = scores.table
    same = table["adapter_rank"].isna() if rank is None else table["adapter_rank"] == rank
    [row] = table[same & (table["test_set"] == test_set)].to_dict("records")
    return row


def check_against_records(runs: Sequence[TrainedRun]) -> tuple[SetScores, ...]:
    """Compare means, differences and gains with the means that the records have."""
    found = scores_of_sets(runs)
    table = runs_table(runs)
    ranks = table["adapter_rank"].astype(float).fillna(0)
    [base, *_] = [run.record["base_sets"] for run in runs if "base_sets" in run.record]
    columns = ("test_score", "answer_score_test")
    for scores, column in zip(found, columns, strict=True):
        assert list(scores.table.columns) == list(SET_COLUMNS)
        metric = scores.metric
        sign = metric.worth(1.0)
        for name in base:
            mean = table.groupby(ranks)[f"{column}_{name}"].mean()
            full = one_row(scores, None, name)
            assert full["mean"] == pytest.approx(mean[0.0], rel=1e-12)
            assert np.isnan(full["difference"])
            for rank in (int(rank) for rank in set(ranks) - {0.0}):
                row = one_row(scores, rank, name)
                assert row["mean"] == pytest.approx(mean[rank], rel=1e-12)
                assert row["base"] == base[name][metric.name]
                assert row["difference"] == pytest.approx(sign * (mean[rank] - mean[0.0]))
                assert row["gain"] == pytest.approx(sign * (mean[0.0] - row["base"]))
    return found


def test_means_and_differences_are_those_of_the_records(runs: Runs) -> None:
    loss, answers = check_against_records(runs.made)
    assert (loss.metric, answers.metric) == (runs.lora.task.metric, EXACT_MATCH)
    for scores in (loss, answers):
        assert scores.table["test_set"].tolist() == ["far"] * 3 + ["near"] * 3
        assert scores.table["adapter_rank"].fillna(0).tolist() == [0, 1, 4] * 2
        assert set(scores.table["n"]) == {3}
    assert [one_row(scores, 1, "far")["examples"] for scores in (loss, answers)] == [30, 15]
    assert one_row(answers, 1, "far")["cut_off"] == pytest.approx(3 / 15)


def test_intervals_tell_a_far_rank_from_a_near_one(runs: Runs) -> None:
    loss, answers = scores_of_sets(runs.made)
    for scores in (loss, answers):
        assert one_row(scores, 1, "far")["difference_high_95"] < 0
        assert one_row(scores, 1, "far")["gain_low_95"] > 0
    near = one_row(answers, 4, "near")
    assert near["difference_low_95"] < 0 < near["difference_high_95"]


def test_answers_are_paired_by_seed_and_problem(runs: Runs) -> None:
    row = one_row(scores_of_sets(runs.made)[1], 4, "far")
    difference_SE = runs.answers(4, "far") - runs.answers(None, "far")
    low, high = paired_difference(difference_SE).interval()
    assert (row["difference_low_95"], row["difference_high_95"]) == (low, high)
    shuffled = np.random.default_rng(0).permuted(runs.answers(4, "far"), axis=1)
    apart = paired_difference(shuffled - runs.answers(None, "far")).interval()
    assert high - low < apart[1] - apart[0], "pairing must narrow the interval"


def test_the_primary_metric_reads_every_example(runs: Runs) -> None:
    by_loss = paired_with_full(runs.made)
    by_answers = paired_with_full(runs.made, scored=runs.lora.task.second_scores)
    assert {pairs.metric.name for pairs in by_loss} == {"nats_per_token"}
    assert {pairs.adapter_SE.shape for pairs in by_loss} == {(3, 50)}
    assert {pairs.adapter_SE.shape for pairs in by_answers} == {(3, 25)}
    parts = [by_loss[0].in_test_set(name) for name in SIZES]
    assert [len(part.weights_E) for part in parts] == [*SIZES.values()]
    assert sum(part.full_SE.sum() for part in parts) == pytest.approx(by_loss[0].full_SE.sum())


def test_runs_that_answered_other_problems_are_refused(runs: Runs) -> None:
    runs.add(4, 2.1, 0.5, answered=~ANSWERED)
    runs.add(None, 2.0, 0.6)
    with pytest.raises(InputError, match="tested on different examples"):
        scores_of_sets(runs.made)
    assert len(paired_with_full(runs.made)) == 2


def test_a_configuration_without_pairs_keeps_its_mean(runs: Runs) -> None:
    few = [run for run in runs.made if run.spec.seed == 0 or run.spec.method.adapter_rank != 1]
    [only] = [run for run in few if run.spec.method.adapter_rank == 1]
    (only.folder / "predictions.parquet").unlink()
    row = one_row(scores_of_sets(few)[0], 1, "near")
    assert (row["n"], row["pairs"]) == (1, 0)
    assert row["mean"] == only.record["test_sets"]["near"]["nats_per_token"]
    assert np.isnan([row["sd"], row["low_95"], row["difference"], row["gain"]]).all()


def test_trained_runs_are_compared(causal_overrides: Overrides, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    options = ["task.test_set_column=kind", "task.scorer=f1", "task.generated_examples=2"]
    lora = spec_of(causal_overrides, path, *options, "trainer.epochs=1")
    specs = [at_rank(lora, rank) for rank in (None, 1)]
    loss, answers = check_against_records(
        sweep(specs, name="s", results=tmp_path, launcher="inline")
    )
    assert answers.metric == F1
    assert one_row(answers, 1, "near")["examples"] == 2
    assert one_row(loss, 1, "near")["examples"] > 2


def test_without_test_sets_only_answers_are_compared(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    made = Runs(tmp_path, spec_of(causal_overrides, tmp_path / "rows.jsonl"))
    for rank in (None, 1):
        made.add(rank, 2.0, 0.5)
    runs = [
        replace(run, record={of: run.record[of] for of in ("test", "base")}) for run in made.made
    ]
    lost = replace(runs[1], spec=at_rank(made.lora, 2), status="diverged", record={})
    [scores] = scores_of_sets([*runs, lost])
    assert scores.metric == EXACT_MATCH
    assert scores.table["test_set"].tolist() == ["", ""]
    assert one_row(scores, 1, "")["mean"] == runs[1].record["test"]["exact_match"]


def test_other_tasks_have_nothing_to_compare(causal_overrides: Overrides, tmp_path: Path) -> None:
    for spec in (compose(), compose(*causal_overrides())):
        run = TrainedRun(spec=spec, status="failed", record={}, folder=tmp_path)
        assert scores_of_sets([run]) == ()


@pytest.mark.parametrize(
    ("scorer", "metric"),
    [
        ("final_number", EXACT_MATCH),
        ("exact_match", EXACT_MATCH),
        ("f1", F1),
        ("math:dist", ANSWER_SCORE),
    ],
)
def test_a_scorer_has_its_metric(scorer: str, metric: Any) -> None:
    assert metric_of(scorer) == metric
    assert metric.needs_base
    assert metric.higher_is_better
