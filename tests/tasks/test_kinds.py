"""A new kind of task is one module: training, tuning and tables follow its metric."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lowrank_study.tasks
from lowrank_study.answers.tables import runs_table
from lowrank_study.config.run import compose
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec, from_mapping, to_mapping
from lowrank_study.sweeps.trials import worth
from lowrank_study.tasks import Task, task_named, task_names
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
        chance_name=None,
        baseline="the base model",
        chance="before fine-tuning",
    )

    @staticmethod
    def metrics(predictions):
        loss = float(predictions.losses.mean())
        return {"perplexity": float(np.exp(loss)), "loss": loss}
'''


@pytest.fixture
def perplexity(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunSpec]:
    """Return a run of a new kind of task, made by adding a module to `tasks/`."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "perplexity.py").write_text(PERPLEXITY)
    paths = [*lowrank_study.tasks.__path__, str(tmp_path / "plugins")]
    monkeypatch.setattr(lowrank_study.tasks, "__path__", paths)
    yield compose(*tiny_overrides, "task.kind=perplexity", "method.rank=2")
    del sys.modules["lowrank_study.tasks.perplexity"]


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


def test_the_base_model_is_scored_from_its_own_columns(perplexity: RunSpec) -> None:
    kind = type(perplexity.task)
    right = pd.DataFrame({"label": [0, 1, 1], "predicted": [0, 1, 1]})
    unmeasured = Task.baseline_scores.__func__(kind, right)  # type: ignore[attr-defined]
    assert np.isnan(unmeasured).all()
    wrong = right.assign(base_predicted=[0, 0, 1])
    base = Task.baseline_scores.__func__(kind, wrong)  # type: ignore[attr-defined]
    assert base.tolist() == [1, 0, 1]
