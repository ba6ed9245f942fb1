"""Turn the rows of a file into texts, class names and groups; count the empty ones."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowrank_study.data.reading import Rows, as_texts
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut, in_words
from lowrank_study.spec import Task

_MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "?"}
_MOST_FRACTIONS = 10
"""Most distinct fractional numbers that are still class names (versions, half stars)."""
_MOST_NUMBERS = 50
_ROWS_OF_A_CLASS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The rows of one split that are used."""

    frame: pd.DataFrame
    """Columns `text`, `text_pair` (pairs only), `label` (a class name), `group` and `key`: equal
    texts have equal keys."""
    left_out: list[LeftOut]
    warnings: list[str]


def normal_form(text: str) -> str:
    """Return a text in a form without case, extra white space and Unicode variants."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def select(task: Task, split: str, rows: Rows) -> Selected:
    """Select the columns and labels of a split that the task needs.

    Raises
    ------
    InputError
        No row is left, a label in task.labels has no row, or a value is not a text.
    """
    whole = rows.frame
    columns = {name: as_texts(whole[name], name, rows.of) for name in task.text_columns}
    raw = as_texts(_whole_numbers(whole[task.label_column]), task.label_column, rows.of)
    label = pd.Series([v and (v.strip() or None) for v in raw], raw.index, object)
    if task.group_column:
        columns[task.group_column] = as_texts(whole[task.group_column], task.group_column, rows.of)
    if task.labels:
        _check_asked(task, split, label)
        asked = label.isin(task.labels)
    else:
        asked = pd.Series(True, index=label.index)
        columns[task.label_column] = label
    kept, left_out = _filled(columns, asked, rows.of)
    if not kept.any():
        told = "; ".join(in_words(left_out)) or "the file has no rows"
        raise InputError(f"the {split} split of {task.name!r} has no rows: {told}")
    texts = [columns[name][kept] for name in task.text_columns]
    frame = pd.DataFrame({"text": texts[0], "label": label[kept]})
    if len(texts) == 2:
        frame["text_pair"] = texts[1]
    frame["group"] = columns[task.group_column][kept] if task.group_column else frame.index
    frame["key"] = ["\0".join(map(normal_form, row)) for row in zip(*texts, strict=True)]
    stripped = int((raw[kept] != label[kept]).sum())
    warnings = [f"{rows.of}: {stripped:,} labels had white space around them"] if stripped else []
    warnings += _odd_texts(task, rows, kept)
    return Selected(frame=frame.reset_index(drop=True), left_out=left_out, warnings=warnings)


def _whole_numbers(column: pd.Series) -> pd.Series:
    """Write 1.0 as 1 in a column that contains both kinds, as some JSON writers mix them."""
    kinds = {type(value) for value in column if not _is_none(value)}
    is_mixed = kinds <= {int, float, np.int64, np.float64} and len(kinds) > 1
    if is_mixed and all(_is_none(value) or float(value).is_integer() for value in column):
        return pd.Series([None if _is_none(v) else int(v) for v in column], column.index, object)
    return column


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _check_asked(task: Task, split: str, label: pd.Series) -> None:
    if absent := [name for name in task.labels if not (label == name).any()]:
        there = sorted(label.dropna().unique())
        raise InputError(
            f"task.labels: no {split} row has the label {absent[0]!r}; "
            f"{task.label_column!r} holds {', '.join(there[:20]) or 'nothing'}"
            f"{' …' if len(there) > 20 else ''}"
        )


def _filled(
    columns: dict[str, pd.Series], asked: pd.Series, of: str
) -> tuple[pd.Series, list[LeftOut]]:
    """Return which rows are used, and which of the requested rows are left out."""
    kept, left_out = asked.copy(), []
    for name, column in columns.items():
        empty = kept & np.array([not (value and value.strip()) for value in column])
        if empty.any():
            first = int(np.flatnonzero(empty.to_numpy())[0]) + 1
            part = LeftOut(
                count=int(empty.sum()),
                total=int(asked.sum()),
                unit="rows",
                of=of,
                why=f"{name!r} is empty (first in row {first:,})",
            )
            left_out.append(part)
            kept &= ~empty
    return kept, left_out


def _odd_texts(task: Task, rows: Rows, kept: pd.Series) -> list[str]:
    """Warn if a column of texts contains only numbers."""
    odd = []
    for name in task.text_columns:
        values = rows.frame[name][kept]
        if all(
            isinstance(v, (int, float, np.number)) or _number(str(v)) is not None for v in values
        ):
            odd.append(f"{rows.of}: {name!r} of task.text_columns contains only numbers")
    return odd


def class_names(task: Task, train: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes in order: `task.labels`, or the labels of the training rows, sorted.

    Raises
    ------
    InputError
        There is only one class, or the labels look like the target of a regression.
    """
    labels = task.labels or tuple(sorted(train["label"].unique()))
    if len(labels) < 2:
        raise InputError(
            f"task.label_column={task.label_column!r}: the training rows have "
            f"{len(labels)} label, {list(labels)}, but a classifier needs at least two"
        )
    if not task.labels:
        _refuse_regression(task, labels, len(train))
    return labels


def _refuse_regression(task: Task, labels: Sequence[str], rows: int) -> None:
    numbers = [_number(label) for label in labels]
    if any(number is None for number in numbers):
        return
    values = [number for number in numbers if number is not None]
    fractions = sum(not value.is_integer() for value in values)
    is_thin = len(values) > _MOST_NUMBERS and rows < _ROWS_OF_A_CLASS * len(values)
    if fractions > _MOST_FRACTIONS or is_thin:
        raise InputError(
            f"task.label_column={task.label_column!r} looks like the target of a regression: "
            f"{len(values)} different numbers in {rows:,} rows, from {min(values):g} to "
            f"{max(values):g}. A classifier needs classes: put the numbers into a few bins in a "
            "new column, or list them in task.labels if they are names of classes"
        )


def _number(text: str) -> float | None:
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text):
        return None
    return float(text)


def odd_labels(labels: Iterable[str]) -> list[str]:
    """Warn about classes that look alike, or have the name of a missing value."""
    forms: dict[str | float, list[str]] = defaultdict(list)
    for label in labels:
        number = _number(label)
        forms[normal_form(label) if number is None else number].append(label)
    alike = [names for names in forms.values() if len(names) > 1]
    told = []
    if alike:
        more = f" (and {len(alike) - 1} more such sets)" if len(alike) > 1 else ""
        told.append(
            f"{' and '.join(map(repr, alike[0]))}{more} are separate classes, but differ only "
            "in case, spacing or spelling: make them equal in the file if they are the same class"
        )
    missing = [name for names in forms.values() for name in names if name.lower() in _MISSING]
    if missing:
        told.append(f"{missing[0]!r} is a class: empty the cell if it is a missing value")
    return told
