"""Read the settings under `task` into a `Task`, and check them before any data is read."""

from collections.abc import Sequence
from pathlib import Path

from lowrank_study.config.fields import Fields
from lowrank_study.config.sources import read_source
from lowrank_study.errors import InputError
from lowrank_study.spec import LocalPath, Task

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "\\t": "\t"}


def read_task(fields: Fields) -> Task:
    """Read a task; checks that need its rows are made where the rows are read.

    Raises
    ------
    InputError
        A value is invalid; the message gives it and the valid ones.
    """
    test = fields.optional_text("test")
    test_size = fields.optional_integer("test_size", at_least=1)
    if test is None and test_size is None:
        raise InputError("task.test_size=null: give a number, or a test file as task.test")
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
            f"task.text_columns={list(columns)}: give one column, or two different ones for pairs"
        )
    if label in columns:
        raise InputError(
            f"task.label_column={label!r} is one of task.text_columns={list(columns)}: the answer "
            "would be in the text; name another column"
        )
    if group == label:
        raise InputError(
            f"task.group_column={group!r} is also task.label_column: each class would be in one "
            "split only; name another column, or null"
        )


def _check_files(task: Task, named: Sequence[str]) -> None:
    """Refuse split files inside a single file, and a folder without a training file."""
    if not isinstance(task.source, LocalPath):
        return
    is_file = Path(task.source.path).is_file()
    if is_file and named:
        raise InputError(
            f"task.source={task.source.path} is a file and can't contain {named[0]!r}: give its "
            "folder as task.source, or leave out task.train, task.validation and task.test"
        )
    if not is_file and not task.train:
        raise InputError(
            f"task.train='' is empty, but task.source={task.source.path} is a folder: "
            "name its training file with task.train=FILE"
        )


def _labels(fields: Fields) -> tuple[str, ...]:
    """Return the class names; refuse words that YAML reads as booleans or numbers."""
    value = fields.value("labels")
    for label in value if isinstance(value, Sequence) and not isinstance(value, str) else []:
        if label is None or isinstance(label, bool | float):
            raise InputError(
                f"task.labels: YAML reads {label!r} from a word without quotation marks (yes, no, "
                "on, off, true, false, null, 1.0): put quotation marks around each label, as in "
                """'task.labels=["yes","no"]'"""
            )
    labels = tuple(label.strip() for label in fields.names("labels"))
    if len(labels) == 1 or len(set(labels)) < len(labels):
        raise InputError(f"task.labels={list(labels)}: give at least two labels, each once")
    return labels


def _encoding(name: str | None) -> str | None:
    if name is not None:
        try:
            "".encode(name)
        except (LookupError, UnicodeError) as error:
            raise InputError(
                f"task.encoding={name!r} is not a known encoding: valid are Python's names, such "
                "as utf-8, utf-16, cp1252, latin-1, cp1251, gb18030, shift_jis; null detects it"
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
