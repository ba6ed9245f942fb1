"""A task's settings are checked before anything is read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.fields import Fields
from lowrank_study.config.task import read_task
from lowrank_study.errors import InputError
from lowrank_study.spec import LocalPath
from lowrank_study.tasks.classification import Classification


def read(folder: Path, written: str = "", **changes: Any) -> Classification:
    settings = yaml.safe_load((CONF_FOLDER / "task" / "file.yaml").read_text())
    path = folder / "a.csv"
    path.write_text("text,label\na,b\n")
    settings |= {"source": str(path)} | (yaml.safe_load(written) or {}) | changes
    task = read_task(Fields("task.", settings))
    assert isinstance(task, Classification)
    return task


@pytest.mark.parametrize("words", ["no, yes", "true, false", "on, off", "null, a", "1.0, 2.0"])
def test_labels_that_yaml_reads_as_other_things_are_refused(words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.labels: YAML reads .*quotation marks"):
        read(tmp_path, f"labels: [{words}]")
    quoted = ", ".join(f'"{word}"' for word in words.split(", "))
    assert read(tmp_path, f"labels: [{quoted}]").labels == tuple(words.split(", "))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a"]}, "at least two labels"),
        ({"labels": ["a", "a "]}, "each once"),
        ({"text_columns": ["text", "text"]}, "two different ones"),
        ({"label_column": "text"}, "'text' is one of task.text_columns.*in the text"),
        ({"group_column": "label"}, "'label' is also task.label_column"),
        ({"encoding": "utf8-with-hats"}, "'utf8-with-hats' is not a known encoding.*cp1252"),
        ({"separator": "::"}, "'::': valid are comma, semicolon, tab, pipe or any one"),
        ({"separator": '"'}, "valid are comma"),
        ({"train": "train.csv"}, "is a file and can't contain 'train.csv'"),
        ({"test": "test.csv"}, "is a file and can't contain 'test.csv'"),
    ],
)
def test_invalid_settings_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, **changes)


def test_a_folder_needs_the_names_of_its_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.train='' is empty.*is a folder"):
        read(tmp_path, source=str(tmp_path))
    with pytest.raises(InputError, match=r"no file 'b\.csv' in .*its files: a\.csv"):
        read(tmp_path, source=str(tmp_path), train="b.csv")
    assert isinstance(read(tmp_path, source=str(tmp_path), train="a.csv").source, LocalPath)


@pytest.mark.parametrize(
    ("name", "separator"),
    [("tab", "\t"), ("\\t", "\t"), ("semicolon", ";"), (";", ";"), (None, None)],
)
def test_separators_by_name_and_by_themselves(
    name: str | None, separator: str | None, tmp_path: Path
) -> None:
    assert read(tmp_path, separator=name).separator == separator
