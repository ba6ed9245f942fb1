"""A run that is trained once reports each test set and all of them together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.config.run import compose
from lowrank_study.data.splits import Split, load_splits
from lowrank_study.errors import InputError
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.language_modelling import LanguageModelling
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import Tracker


def rows(count: int, start: int = 0) -> pd.DataFrame:
    """Return rows of two test sets, which alternate."""
    texts = [f"word{n % 40} word{n // 40} {'good' if n % 2 else 'bad'}" for n in range(count)]
    return pd.DataFrame(
        {
            "text": [f"{text} word{start}" for text in texts],
            "label": ["up" if n % 2 else "down" for n in range(count)],
            "set": ["far" if n % 3 else "near" for n in range(count)],
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows(60).to_csv(tmp_path / "train.csv", index=False)
    rows(30, start=1).to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


def overrides(folder: Path, model: Path, task: str, family: str, *more: str) -> list[str]:
    return [
        f"task={task}",
        f"task.source={folder}",
        "task.train=train.csv",
        "task.test=test.csv",
        "task.validation_size=10",
        "task.test_set_column=set",
        f"model={family}",
        f"model.source={model}",
        "method.target=all_linear",
        "trainer.precision=fp32",
        *more,
    ]


@pytest.mark.parametrize(("task", "family"), [("file", "bert"), ("texts", "llama")])
def test_each_set_is_scored_alone(
    task: str,
    family: str,
    folder: Path,
    tiny_model: Callable[[str], Path],
    tiny_causal_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = tiny_model(family) if task == "file" else tiny_causal_model(family)
    windows = ["task.max_length=4"] if task == "texts" else []
    spec = compose(*overrides(folder, model, task, family, *windows))
    splits = load_splits(spec.task, model)
    assert splits.test_sets == {"near": 10, "far": 20}
    from_cache = load_splits(spec.task, model)
    assert (from_cache.test_sets, from_cache.sha256) == (splits.test_sets, splits.sha256)
    result = fit(spec, checkpoint_folder=tmp_path / "run", tracker=Tracker())
    assert result.test is not None
    columns = pd.DataFrame(result.test.columns)
    assert list(columns["test_set"]) == ["near"] * 10 + ["far"] * 20
    metric = spec.task.metric.name
    assert set(result.record["test_sets"]) == {"near", "far"}
    for name, of_set in result.record["test_sets"].items():
        mine = columns[columns["test_set"] == name].drop(columns="test_set")
        arrays = {key: column.to_numpy() for key, column in mine.items()}
        assert of_set == Predictions(task=spec.task, columns=arrays).metrics()
        scores, weights = spec.task.scores(mine), spec.task.weights(mine)
        assert of_set[metric] == pytest.approx(np.average(scores, weights=weights), rel=1e-12)
    assert result.record["test"] == result.test.metrics()


def test_texts_keep_their_set(folder: Path, tiny_causal_model: Callable[..., Path]) -> None:
    model = tiny_causal_model("llama")
    spec = compose(*overrides(folder, model, "texts", "llama", "task.max_length=4"))
    assert isinstance(spec.task, LanguageModelling)
    split = load_splits(spec.task, model).test
    whole = compose(
        *overrides(
            folder, model, "texts", "llama", "task.max_length=4", "task.test_set_column=null"
        )
    )
    other = load_splits(whole.task, model)
    assert not other.test_sets
    assert len(split) > 30  # documents are cut into windows
    assert list(np.unique(split.labels)) == list(range(30))
    order = [n for n in range(30) if n % 3 == 0] + [n for n in range(30) if n % 3]

    def documents(each: Split) -> list[list[list[int]]]:
        found: dict[int, list[list[int]]] = {}
        for index, label in enumerate(each.labels):
            found.setdefault(int(label), []).append(each.tokens(index).tolist())
        return [found[label] for label in sorted(found)]

    expected = documents(other.test)
    assert documents(split) == [expected[n] for n in order]
    assert split.text_bytes.sum() == other.test.text_bytes.sum()
    assert split.scored.sum() == other.test.scored.sum()


def test_a_missing_column_and_a_missing_value(
    folder: Path, tiny_model: Callable[[str], Path]
) -> None:
    options = overrides(folder, tiny_model("bert"), "file", "bert")
    with pytest.raises(InputError, match=r"task.test_set_column='kind' is not a column of train"):
        compose(*options, "task.test_set_column=kind").task.split_rows()
    frame = rows(30, start=1)
    frame.loc[4, "set"] = ""
    frame.to_csv(folder / "test.csv", index=False)
    account = compose(*options).task.split_rows().account
    assert account.lines[0] == (
        "left out: 1 of 30 rows of test.csv (3.3 %): 'set' is empty (first in row 5)"
    )


def test_only_a_named_column_changes_the_run_id(
    folder: Path, tiny_model: Callable[[str], Path]
) -> None:
    options = overrides(folder, tiny_model("bert"), "file", "bert")
    assert compose(*options).run_id != compose(*options, "task.test_set_column=null").run_id
