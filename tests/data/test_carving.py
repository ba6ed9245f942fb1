"""Carved splits share no text and no group and hold two classes; oddities are reported."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lowrank_study import assets
from lowrank_study.config.run import compose
from lowrank_study.data.splits import SplitRows
from lowrank_study.errors import InputError
from lowrank_study.tasks import Task


@functools.cache
def configured() -> Task:
    """Return the default settings; composing them takes longer than splitting."""
    return compose("task=file", f"task.source={__file__}").task


def task_of(source: Path, **changes: Any) -> Task:
    """Return a task with 10 rows for validation and 20 for test, unless given otherwise."""
    sizes = {"validation_size": 10, "test_size": 20}
    task = dataclasses.replace(configured(), **{**sizes, **changes})
    return dataclasses.replace(task, source=assets.local(str(source), task.files))


def split(folder: Path, frame: pd.DataFrame, **changes: Any) -> SplitRows:
    frame.to_csv(folder / "a.csv", index=False)
    return task_of(folder / "a.csv", **changes).split_rows()


def given(folder: Path, train: pd.DataFrame, test: pd.DataFrame, **changes: Any) -> SplitRows:
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    return task_of(folder, train="train.csv", test="test.csv", **changes).split_rows()


def table(rows: int, classes: int = 2) -> pd.DataFrame:
    texts = [f"text {n}" for n in range(rows)]
    return pd.DataFrame({"text": texts, "label": [f"c{n % classes}" for n in range(rows)]})


def texts_of(rows: SplitRows) -> dict[str, set[str]]:
    return {
        name: {" ".join(text.casefold().split()) for text in frame["text"]}
        for name, frame in rows.frames.items()
    }


def warnings_of(rows: SplitRows) -> str:
    return "\n".join(rows.account.warnings)


def test_equal_texts_stay_in_one_split_if_each_occurs_five_times(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "text": [f"text {n // 5}" for n in range(300)],
            "label": np.repeat(generator.choice(["up", "down"], 60), 5),
        }
    )
    rows = split(tmp_path, frame, test_size=60)
    sets = texts_of(rows)
    assert not sets["train"] & sets["test"]
    assert not sets["train"] & sets["validation"]
    assert not sets["validation"] & sets["test"]
    assert {name: len(f) for name, f in rows.frames.items()} == {
        "train": 230,
        "validation": 10,
        "test": 60,
    }
    assert (
        "300 of the 300 rows of the training file share 60 texts; each text stays in one carved"
        in warnings_of(rows)
    )


def test_texts_that_differ_in_case_spacing_or_unicode_form_are_equal(tmp_path: Path) -> None:
    frame = table(120)
    variants = ["Café {}", "cafe\u0301 {}", "CAFÉ  {}", " café {} "]
    frame["text"] = [variants[n % 4].format(n // 4) for n in range(120)]
    sets = {
        name: {re.sub(r"\D", "", text) for text in frame["text"]}
        for name, frame in split(tmp_path, frame).frames.items()
    }
    assert not sets["train"] & (sets["test"] | sets["validation"])


def test_pairs_are_equal_if_both_texts_are(tmp_path: Path) -> None:
    frame = table(100).assign(text="one and the same", other=[f"other {n}" for n in range(100)])
    rows = split(tmp_path, frame, text_columns=("text", "other"))
    assert len(rows.frames["train"]) == 70
    assert not rows.account.warnings


def test_groups_and_equal_texts_are_kept_together(tmp_path: Path) -> None:
    frame = table(120).assign(film=[f"film {n // 3}" for n in range(120)])
    frame.loc[2::6, "text"] = frame.loc[3::6, "text"].to_numpy()  # each links two films
    rows = split(tmp_path, frame, group_column="film")
    sets = texts_of(rows)
    films = {name: set(f["group"]) for name, f in rows.frames.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not sets[one] & sets[other]
        assert not films[one] & films[other]


def test_groups_that_differ_only_in_spelling_are_equal(tmp_path: Path) -> None:
    frame = table(120).assign(film=[f"{'Film' if n % 2 else ' film'} {n // 4}" for n in range(120)])
    frames = split(tmp_path, frame, group_column="film").frames
    sets = {n: {t.strip().casefold() for t in f["group"]} for n, f in frames.items()}
    assert not sets["train"] & sets["test"]


def test_an_unused_row_replaces_a_text_of_the_test_split(tmp_path: Path) -> None:
    """Other rows keep the splits of earlier versions, which did not look for equal texts."""
    frame = table(400)
    before = split(tmp_path, frame, train_size=100)
    twin = frame["text"] == before.frames["train"]["text"].iloc[0]
    frame.loc[twin, "text"] = before.frames["test"]["text"].iloc[0]
    after = split(tmp_path, frame, train_size=100)
    for name in ("validation", "test"):
        assert before.frames[name]["text"].tolist() == after.frames[name]["text"].tolist()
    gone = texts_of(before)["train"] - texts_of(after)["train"]
    assert gone == {before.frames["train"]["text"].iloc[0]}
    assert len(after.frames["train"]) == 100


def test_a_text_that_most_rows_share_is_trained_on(tmp_path: Path) -> None:
    frame = table(200)
    frame.loc[:119, "text"] = "the same"
    frames = split(tmp_path, frame).frames
    assert len(frames["train"]) == 170
    assert "the same" in set(frames["train"]["text"])


def test_test_texts_in_the_training_file_are_counted(tmp_path: Path) -> None:
    test = table(40)
    test["text"] = [f"Text  {n}" if n < 4 else f"other {n}" for n in range(40)]
    rows = given(tmp_path, table(100), test, validation_size=2, test_size=None)
    trained = texts_of(rows)["train"] & texts_of(rows)["test"]
    told = rf"{len(trained)} of 40 test texts \(.* %\) are also in the training split"
    assert len(trained) >= 2
    assert re.search(told, warnings_of(rows))


def test_equal_texts_with_several_labels_are_counted(tmp_path: Path) -> None:
    frame = table(100)
    frame.loc[1, "text"] = frame.loc[0, "text"]
    assert re.search(
        "share 1 texts.*; 1 of these texts have several labels", warnings_of(split(tmp_path, frame))
    )


def test_a_group_column_with_too_few_values_is_refused(tmp_path: Path) -> None:
    for values in (1, 2):
        frame = table(100).assign(site=[f"site {n % values}" for n in range(100)])
        with pytest.raises(InputError, match=rf"group_column='site' has {values} value.*3 splits"):
            split(tmp_path, frame, group_column="site")


def test_rows_left_by_carving_are_reported(tmp_path: Path) -> None:
    lines = split(tmp_path, table(100)).account.lines
    assert lines[0] == "a.csv: 100 rows read, UTF-8, separated by commas"
    assert [re.sub(r"\d+(?=[,)])", "N", line) for line in lines[1:]] == [
        "train: 70 rows (c0 N, c1 N)",
        "validation: 10 rows (c0 N, c1 N)",
        "test: 20 rows (c0 N, c1 N)",
    ]


def test_carving_that_leaves_too_few_training_rows_is_refused(tmp_path: Path) -> None:
    defaults = {"validation_size": 500, "test_size": 1000}
    with pytest.raises(InputError, match=r"1,510 rows.*leave 10 for training.*test_size=302"):
        split(tmp_path, table(1510), **defaults)
    few = split(tmp_path, table(1510), **defaults, train_size=10)
    assert len(few.frames["train"]) == 10


def test_sizes_that_cannot_be_met_give_a_warning(tmp_path: Path) -> None:
    rows = given(
        tmp_path,
        table(100),
        table(40).assign(text=[f"t{n}" for n in range(40)]),
        train_size=500,
        test_size=50,
    )
    assert "task.train_size=500, but there are only 90 rows" in warnings_of(rows)
    assert "task.test_size=50, but there are only 40 rows" in warnings_of(rows)


def test_a_training_split_of_one_class_is_refused(tmp_path: Path) -> None:
    frame = table(100).assign(label="c0", group=[f"g{n // 10}" for n in range(100)])
    frame.loc[:9, "label"] = "c1"
    told = []
    for seed in range(20):
        try:
            rows = split(tmp_path, frame, group_column="group", split_seed=seed)
            told.append(f"{rows.frames['train']['label'].nunique()} classes")
        except InputError as error:
            told.append(str(error))
    assert all(line == "2 classes" or "rows of one class, 'c0'" in line for line in told)
    assert len(set(told)) > 1


def test_test_rows_of_classes_without_training_rows(tmp_path: Path) -> None:
    rare = table(200)
    rare.loc[0, "label"] = "rare"
    told = [warnings_of(split(tmp_path, rare, split_seed=seed)) for seed in range(12)]
    assert any(
        "of 20 test rows (5 %) have a class without training rows, such as 'rare'" in t
        for t in told
    )
    groups = table(100, 5).assign(group=[f"g{n % 5}" for n in range(100)])
    with pytest.raises(InputError, match=r"rows \(.* %\) have a class without training rows"):
        split(tmp_path, groups, group_column="group")


@pytest.mark.slow
def test_the_pinned_tasks_drop_training_rows_that_occur_in_test(real_cache: None) -> None:
    for task in ("rotten_tomatoes", "newsgroups", "reuters_r8", "reuters_r52"):
        rows = compose(f"task={task}").task.split_rows()
        sets = texts_of(rows)
        assert not sets["train"] & sets["validation"]
        if task == "rotten_tomatoes":
            assert not sets["train"] & sets["test"]
        assert rows.account.left_out == ()
