"""Labels are compared without white space; other columns are refused or reported."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lowrank_study import assets
from lowrank_study.config.run import compose
from lowrank_study.data.splits import SplitRows
from lowrank_study.errors import InputError
from lowrank_study.tasks import Task


def split(folder: Path, values: list[object], **changes: Any) -> SplitRows:
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(values)]
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return task_of(path, **changes).split_rows()


@functools.cache
def configured() -> Task:
    """Return the default settings; composing them takes longer than splitting."""
    return compose("task=file", f"task.source={__file__}").task


def task_of(source: Path, **changes: Any) -> Task:
    """Return a task with 10 rows for validation and 20 for test, unless given otherwise."""
    sizes = {"validation_size": 10, "test_size": 20}
    changes = {**sizes, "source": assets.local(str(source)), **changes}
    return dataclasses.replace(configured(), **changes)


def warnings_of(rows: SplitRows) -> str:
    return "\n".join(rows.account.warnings)


def test_white_space_around_labels_makes_no_classes(tmp_path: Path) -> None:
    rows = split(tmp_path, ["neg", "neg ", "pos", " pos"] * 25)
    assert rows.labels == ("neg", "pos")
    assert "50 labels had white space around them" in warnings_of(rows)
    assert split(tmp_path, ["neg", "neg ", "pos"] * 30, labels=("neg", "pos")).labels == (
        "neg",
        "pos",
    )


@pytest.mark.parametrize(
    "alike", [("Neg", "neg"), ("very bad", "very  bad"), ("café", "cafe\u0301"), ("1", "1.0")]
)
def test_labels_that_look_alike_give_a_warning(alike: tuple[str, str], tmp_path: Path) -> None:
    rows = split(tmp_path, [*alike, "pos"] * 40)
    assert len(rows.labels) == 3
    assert "are separate classes, but differ only in case" in warnings_of(rows)
    assert all(repr(name) in warnings_of(rows) for name in alike)


def test_a_label_like_a_missing_value_gives_a_warning(tmp_path: Path) -> None:
    assert "'NaN' is a class" in warnings_of(split(tmp_path, ["NaN", "pos", "neg"] * 40))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1], ("0", "1")),
        ([0, 1, 1.0], ("0", "1")),
        ([0.0, 1.0], ("0.0", "1.0")),
        ([True, False], ("False", "True")),
    ],
)
def test_numbers_and_booleans_are_class_names(
    labels: list[object], names: tuple[str, ...], tmp_path: Path
) -> None:
    assert split(tmp_path, labels * 50).labels == names


def test_rows_without_a_label_are_left_out_by_name(tmp_path: Path) -> None:
    rows = split(tmp_path, [0, 1, 0, 1, None] * 20)
    assert rows.labels == ("0", "1")
    [sentence] = [part.sentence for part in rows.account.left_out]
    assert sentence == (
        "left out: 20 of 100 rows of a.jsonl (20 %): 'label' is empty (first in row 5)"
    )


def test_rows_excluded_by_task_labels_do_not_count_as_left_out(tmp_path: Path) -> None:
    rows = split(tmp_path, ["a", "b", "c", None] * 40, labels=("a", "b"))
    assert rows.account.left_out == ()
    assert sum(map(len, rows.frames.values())) == 80


def test_a_column_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no rows: left out: 100 of 100 rows .*'label' is empty"):
        split(tmp_path, [None] * 100)


@pytest.mark.parametrize(
    "labels",
    [
        [n * 0.37 for n in range(300)],  # a score
        [n % 12 + 0.5 for n in range(300)],
        [n * 7 for n in range(221)],  # prices
    ],
)
def test_the_target_of_a_regression_is_refused(labels: list[object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"target of a regression: .*bins.*task\.labels"):
        split(tmp_path, labels)


def test_many_numbered_classes_are_not_taken_for_a_regression(tmp_path: Path) -> None:
    assert len(split(tmp_path, [n % 77 for n in range(1000)]).labels) == 77
    stars = [1.0, 1.5, 2.0, 2.5, 3.0]
    assert len(split(tmp_path, [stars[n % 5] for n in range(100)]).labels) == 5


def test_unique_labels_are_refused_and_rare_ones_give_a_warning(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"have a label that no other row has.*task\.labels"):
        split(tmp_path, [f"id {n}" for n in range(100)])
    rows = split(
        tmp_path,
        [f"rare {n}" if n < 80 else f"c{n % 2}" for n in range(2000)],
        test_size=100,
    )
    assert "classes have one training row each" in warnings_of(rows)


def test_texts_that_are_numbers_give_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pd.DataFrame({"text": range(100), "label": ["a", "b"] * 50}).to_csv(path, index=False)
    rows = task_of(path).split_rows()
    assert "'text' of task.text_columns contains only numbers" in warnings_of(rows)
