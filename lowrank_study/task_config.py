"""The settings under `task` → a `Task`, each checked before anything is read."""

from collections.abc import Sequence
from pathlib import Path

from lowrank_study.errors import InputError
from lowrank_study.fields import Fields
from lowrank_study.sources import read_source
from lowrank_study.spec import LocalPath, Task

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "\\t": "\t"}


def read_task(fields: Fields) -> Task:
    """Read a task; what needs its rows to be checked is checked where they are read.

    Raises
    ------
    InputError
        A value that can't be, naming it and the valid ones.
    """
    test = fields.optional_text("test")
    test_size = fields.optional_integer("test_size", at_least=1)
    if test is None and test_size is None:
        raise InputError("task.test_size=null: a number is needed where task.test is null (carved)")
    train, validation = fields.text("train"), fields.optional_text("validation")
    named = [file for file in (train, validation, test) if file]
    columns = fields.names("text_columns")
    label, group = fields.text("label_column"), fields.optional_text("group_column")
    _check_columns(columns, label, group)
    task = Task(
        name=fields.text("name"),
        source=read_source(fields, subset=fields.optional_text("subset"), named=named),
        train=train,
        validation=validation,
        test=test,
        text_columns=columns,
        label_column=label,
        labels=_labels(fields),
        group_column=group,
        train_size=fields.optional_integer("train_size", at_least=1),
        validation_size=fields.integer("validation_size", at_least=1),
        test_size=test_size,
        split_seed=fields.integer("split_seed", at_least=0),
        max_length=fields.integer("max_length", at_least=4),
        encoding=_encoding(fields.optional_text("encoding")),
        separator=_separator(fields.optional_text("separator")),
    )
    _check_files(task, named)
    return task


def _check_columns(columns: Sequence[str], label: str, group: str | None) -> None:
    if len(columns) not in (1, 2) or len(set(columns)) < len(columns):
        raise InputError(
            f"task.text_columns={list(columns)}: name one column, or two for pairs, none twice"
        )
    if label in columns:
        raise InputError(
            f"task.label_column={label!r} is one of task.text_columns={list(columns)}: the answer "
            "would be in the text; name another column"
        )
    if group == label:
        raise InputError(
            f"task.group_column={group!r} is task.label_column too: no class would stand in two "
            "splits; name another column, or null"
        )


def _check_files(task: Task, named: Sequence[str]) -> None:
    """Refuse files that are named inside a file, and a folder without a training file."""
    if not isinstance(task.source, LocalPath):
        return
    is_file = Path(task.source.path).is_file()
    if is_file and named:
        raise InputError(
            f"task.source={task.source.path} is a file, so that {named[0]!r} can't be in it: give "
            "the folder as task.source, or no task.train, task.validation and task.test"
        )
    if not is_file and not task.train:
        raise InputError(
            f"task.train='' names no file, but task.source={task.source.path} is a folder: "
            "name its training file with task.train=FILE"
        )


def _labels(fields: Fields) -> tuple[str, ...]:
    """Return the class names; YAML reads some words as booleans, and no column holds those."""
    value = fields.value("labels")
    for label in value if isinstance(value, Sequence) and not isinstance(value, str) else []:
        if label is None or isinstance(label, bool | float):
            raise InputError(
                f"task.labels: YAML reads {label!r} from a word without quotation marks (yes, no, "
                "on, off, true, false, null, 1.0): put them around each label, as in "
                """'task.labels=["yes","no"]'"""
            )
    labels = tuple(label.strip() for label in fields.names("labels"))
    if len(labels) == 1 or len(set(labels)) < len(labels):
        raise InputError(f"task.labels={list(labels)}: two labels or more are needed, none twice")
    return labels


def _encoding(name: str | None) -> str | None:
    if name is not None:
        try:
            "".encode(name)
        except (LookupError, UnicodeError) as error:
            raise InputError(
                f"task.encoding={name!r} is not known: valid are Python's names, such as utf-8, "
                "utf-16, cp1252, latin-1, cp1251, gb18030, shift_jis; null detects it"
            ) from error
    return name


def _separator(name: str | None) -> str | None:
    separator = SEPARATORS.get(name, name) if name is not None else None
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise InputError(
            f"task.separator={name!r}: valid are comma, semicolon, tab, pipe or any one character; "
            "null detects it"
        )
    return separator
