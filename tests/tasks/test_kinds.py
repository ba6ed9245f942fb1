"""A new kind of task is one module: training, tuning and tables follow its metric."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lowrank_study.tasks
from lowrank_study.answers.functional_rank import truncation_table
from lowrank_study.answers.paired_scores import paired_with_full
from lowrank_study.answers.sufficient_rank import against_full
from lowrank_study.answers.tables import runs_table
from lowrank_study.answers.truncated_runs import TruncateRequest, truncate_sweep
from lowrank_study.config.run import compose
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec, from_mapping, to_mapping
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.sweeps.trials import worth
from lowrank_study.tasks import task_named, task_names
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import Tracker

PERPLEXITY = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank_study.tasks.classification import Classification
from lowrank_study.tasks.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity(Classification):
    """Classification by its perplexity, which is better the lower it is."""

    metric: ClassVar[Metric] = Metric(
        name="perplexity",
        label="perplexity",
        higher_is_better=False,
        lowest=1.0,
        highest=float("inf"),
        is_binary=False,
        points="points of perplexity",
        points_per_unit=1,
        margin="10%",
        chance_name=None,
        baseline="the base model",
        chance="before fine-tuning",
    )

    @staticmethod
    def metrics(predictions):
        loss = float(predictions.losses.mean())
        return {"perplexity": float(np.exp(loss)), "loss": loss}
'''

NATS = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank_study.tasks import Task
from lowrank_study.tasks.classification import Classification
from lowrank_study.tasks.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Nats(Classification):
    '''Classification by its loss; texts of class 1 count twice.'''

    score_columns: ClassVar[tuple[str, ...]] = ("label", "loss")
    metric: ClassVar[Metric] = Metric(
        name="nats",
        label="loss",
        higher_is_better=False,
        lowest=0.0,
        highest=float("inf"),
        is_binary=False,
        points="nats",
        points_per_unit=1,
        margin="10%",
        chance_name=None,
        baseline="the base model",
        chance="before fine-tuning",
    )

    @staticmethod
    def metrics(predictions):
        loss = np.average(predictions.losses, weights=1 + predictions.labels)
        return {"nats": float(loss), "loss": float(predictions.losses.mean())}

    @staticmethod
    def scores(predictions):
        return predictions["loss"].to_numpy()

    @staticmethod
    def weights(predictions):
        return 1.0 + predictions["label"].to_numpy()

    baseline_scores = classmethod(Task.baseline_scores.__func__)
"""


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add two kinds of task, by adding modules to `tasks/`."""
    (tmp_path / "plugins").mkdir()
    for name, code in (("perplexity", PERPLEXITY), ("nats", NATS)):
        (tmp_path / "plugins" / f"{name}.py").write_text(code)
    paths = [*lowrank_study.tasks.__path__, str(tmp_path / "plugins")]
    monkeypatch.setattr(lowrank_study.tasks, "__path__", paths)
    yield
    for name in ("perplexity", "nats"):
        sys.modules.pop(f"lowrank_study.tasks.{name}", None)


@pytest.fixture
def perplexity(kinds: None, tiny_overrides: list[str]) -> RunSpec:
    return compose(*tiny_overrides, "task.kind=perplexity", "method.rank=2")


@pytest.fixture
def nats(kinds: None, tiny_overrides: list[str]) -> RunSpec:
    return compose(*tiny_overrides, "task.kind=nats", "method.rank=2")


def test_every_module_holds_one_kind() -> None:
    assert "classification" in task_names()
    assert {task_named(name).metric.name for name in task_names()} >= {"accuracy"}


def test_a_stored_run_keeps_its_kind(perplexity: RunSpec) -> None:
    mapping = json.loads(json.dumps(to_mapping(perplexity)))
    assert mapping["task"]["kind"] == "Perplexity"
    assert from_mapping(mapping) == perplexity
    del mapping["task"]["kind"]
    assert type(from_mapping(mapping).task) is task_named("classification")
    assert from_mapping(mapping).run_id != perplexity.run_id


def test_training_and_tables_follow_the_metric(perplexity: RunSpec, tmp_path: Path) -> None:
    result = fit(perplexity, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    assert result.test is not None
    run = TrainedRun(spec=perplexity, status="done", record=result.record, folder=tmp_path)
    [row] = runs_table([run]).to_dict("records")
    assert row["test_score"] == pytest.approx(np.exp(result.test.losses.mean()))
    assert pd.isna(row["chance"])


def test_the_best_rate_has_the_lowest_perplexity(perplexity: RunSpec) -> None:
    runs = [
        TrainedRun(
            spec=perplexity,
            status="done",
            record={"validation": {"perplexity": score, "loss": 1.0}},
            folder=Path(),
        )
        for score in (1.5, 1.2, 1.9)
    ]
    assert max(runs, key=lambda run: worth([run])) is runs[1]


def test_an_unmeasured_base_model_has_no_score(nats: RunSpec) -> None:
    table = pd.DataFrame({"label": [0, 1], "loss": [0.5, 0.7]})
    assert np.isnan(nats.task.baseline_scores(table)).all()
    assert nats.task.baseline_scores(table.assign(base_loss=[1.0, 2.0])).tolist() == [1.0, 2.0]


def test_a_loss_is_compared_with_that_of_the_base_model(nats: RunSpec, tmp_path: Path) -> None:
    rate = {"learning_rate": 1e-3}
    methods = (FullFineTuning(**rate), replace(nats.method, learning_rate=3e-3))
    specs = [replace(nats, method=each, seed=seed) for each in methods for seed in range(2)]
    runs = sweep(specs, name="s", results=tmp_path, launcher="inline")
    [pairs] = paired_with_full(runs)
    full, lora = runs[0], runs[2]
    assert full.record["base"]["nats"] > full.record["test"]["nats"]
    assert "base" not in lora.record
    assert pairs.chance == pytest.approx(full.record["base"]["nats"], rel=1e-12)
    assert np.average(pairs.adapter_SE, axis=1, weights=pairs.weights_E) == pytest.approx(
        [run.record["test"]["nats"] for run in runs[2:]], rel=1e-12
    )
    [row] = against_full(runs, margin="auto").to_dict("records")
    assert row["margin_share"] == 0.1
    scores = [
        np.mean([run.record["test"]["nats"] for run in mine]) for mine in (runs[:2], runs[2:])
    ]
    gain = full.record["base"]["nats"] - scores[0]
    assert row["margin"] == pytest.approx(0.1 * gain)
    assert row["difference"] == pytest.approx(scores[0] - scores[1])
    assert row["retention"] == pytest.approx((full.record["base"]["nats"] - scores[1]) / gain)
    assert row["chance"] == pytest.approx(full.record["base"]["nats"])
    table = runs_table(runs)
    measured = [run.record["base"]["nats"] for run in runs[:2]]
    assert table["chance"].tolist() == pytest.approx([*measured, *measured[:1] * 2])


def test_truncated_updates_are_compared_by_loss(nats: RunSpec, tmp_path: Path) -> None:
    full = replace(nats, method=FullFineTuning(learning_rate=1e-3))
    specs = [replace(full, seed=seed) for seed in range(2)]
    runs = sweep(specs, name="s", results=tmp_path, launcher="inline")
    truncate_sweep(
        TruncateRequest(
            sweep="s",
            results=tmp_path,
            device="cpu",
            workers=1,
            launcher="inline",
            scopes=("all",),
            ranks=(0,),
            seeds_of_parts=None,
        )
    )
    [row] = against_full(runs, margin="auto", results=tmp_path).to_dict("records")
    [record, _] = [run.record for run in runs]
    assert (row["method"], row["adapter_rank"]) == ("truncation", 0)
    assert row["chance"] == pytest.approx(record["base"]["nats"])
    table = truncation_table(runs, tmp_path)
    whole = table[table["kept_rank"] > 0].set_index("run_id")["test_score"]
    assert whole[runs[0].spec.run_id] == pytest.approx(record["test"]["nats"])
    nothing = table[table["kept_rank"] == 0]["test_score"].mean()
    assert row["difference"] == pytest.approx(whole.mean() - nothing)
