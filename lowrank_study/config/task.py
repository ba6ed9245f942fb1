"""Read the settings under `task` into a `Task`, and check them before any data is read."""

from collections.abc import Sequence
from pathlib import Path

from lowrank_study.config.fields import Fields
from lowrank_study.config.sources import read_source
from lowrank_study.errors import InputError
from lowrank_study.spec import LocalPath
from lowrank_study.tasks import Task, task_named, task_names

_FIRST_KIND = "classification"
"""The kind of a task whose YAML names none, as in older versions."""
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "\\t": "\t"}


def read_task(fields: Fields) -> Task:
    """Read a task; checks that need its rows are made where the rows are read."""
    kind = fields.one_of("kind", task_names()) if "kind" in fields.settings else _FIRST_KIND
    test = fields.optional_text("test")
    test_size = fields.optional_integer("test_size", at_least=1)
    if test is None and test_size is None:
        raise InputError("task.test_size=null: give a number, or a test file as task.test")
    train, validation = fields.text("train"), fields.optional_text("validation")
    validation_size = fields.optional_integer("validation_size", at_least=1)
    if validation is None and validation_size is None:
        raise InputError(
            "task.validation_size=null: give a number, or a validation file as task.validation"
        )
    named = [file for file in (train, validation, test) if file]
    shared = {
        "name": fields.text("name"),
        "source": read_source(fields, subset=fields.optional_text("subset"), named=named),
        "train": train,
        "validation": validation,
        "test": test,
        "group_column": fields.optional_text("group_column"),
        "train_size": fields.optional_integer("train_size", at_least=1),
        "validation_size": validation_size,
        "test_size": test_size,
        "split_seed": fields.integer("split_seed", at_least=0),
        "max_length": fields.integer("max_length", at_least=4),
        "encoding": _encoding(fields.optional_text("encoding")),
        "separator": _separator(fields.optional_text("separator")),
        "test_set_column": fields.optional_text("test_set_column"),
    }
    task = task_named(kind).from_fields(fields, shared)
    _check_files(task, named)
    return task


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
            + (", or its texts by a pattern, as in 'task.train=**/*.txt'" * task.reads_files)
        )


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
