"""Class labels: read them from a column, name the classes, refuse those that can't be learnt."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from lowrank_study.data.reading import Rows, as_texts
from lowrank_study.data.selection import as_number, normal_form
from lowrank_study.errors import InputError
from lowrank_study.left_out import LARGEST_SHARE

_MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "?"}
_MOST_FRACTIONS = 10
"""Most distinct fractional numbers that are still class names (versions, half stars)."""
_MOST_NUMBERS = 50
_ROWS_OF_A_CLASS = 5
_MANY_CLASSES = 50
_SHOWN_CLASSES = 8
_FEW_ROWS = 2


def read_labels(rows: Rows, column: str) -> tuple[pd.Series, pd.Series]:
    """Return the label of each row without surrounding white space, and which rows had some."""
    raw = as_texts(_whole_numbers(rows.frame[column]), column, rows.of)
    labels = pd.Series([text and (text.strip() or None) for text in raw], raw.index, object)
    return labels, raw != labels


def _whole_numbers(column: pd.Series) -> pd.Series:
    """Write 1.0 as 1 in a column that contains both, as some JSON writers mix them."""
    kinds = {type(value) for value in column if not _is_none(value)}
    is_mixed = kinds <= {int, float, np.int64, np.float64} and len(kinds) > 1
    if is_mixed and all(_is_none(value) or float(value).is_integer() for value in column):
        return pd.Series([None if _is_none(v) else int(v) for v in column], column.index, object)
    return column


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def check_present(asked: Sequence[str], labels: pd.Series, *, split: str, column: str) -> None:
    """Refuse names in `task.labels` that no row of a split has."""
    if absent := [name for name in asked if not (labels == name).any()]:
        there = sorted(labels.dropna().unique())
        raise InputError(
            f"task.labels: no {split} row has the label {absent[0]!r}; "
            f"{column!r} contains {', '.join(there[:20]) or 'nothing'}"
            f"{' …' if len(there) > 20 else ''}"
        )


def class_names(column: str, asked: tuple[str, ...], train: pd.Series) -> tuple[str, ...]:
    """Return the classes in order: those asked for, or the labels of the training rows, sorted.

    Raises:
        InputError: There is only one class, or the labels look like the target of a regression.
    """
    labels = asked or tuple(sorted(train.unique()))
    if len(labels) < 2:
        raise InputError(
            f"task.label_column={column!r}: the training rows have "
            f"{len(labels)} label, {list(labels)}, but a classifier needs at least two"
        )
    if not asked:
        _refuse_regression(column, labels, len(train))
    return labels


def _refuse_regression(column: str, labels: Sequence[str], rows: int) -> None:
    values = [number for number in map(as_number, labels) if number is not None]
    if len(values) < len(labels):
        return
    fractions = sum(not value.is_integer() for value in values)
    is_thin = len(values) > _MOST_NUMBERS and rows < _ROWS_OF_A_CLASS * len(values)
    if fractions > _MOST_FRACTIONS or is_thin:
        raise InputError(
            f"task.label_column={column!r} looks like the target of a regression: "
            f"{len(values)} different numbers in {rows:,} rows, from {min(values):g} to "
            f"{max(values):g}. A classifier needs classes: put the numbers into a few bins in a "
            "new column, or list them in task.labels if they are names of classes"
        )


def odd_labels(labels: Iterable[str]) -> list[str]:
    """Warn about classes that look alike, or have the name of a missing value."""
    forms: dict[str | float, list[str]] = defaultdict(list)
    for label in labels:
        number = as_number(label)
        forms[normal_form(label) if number is None else number].append(label)
    alike = [names for names in forms.values() if len(names) > 1]
    warnings = []
    if alike:
        more = f" (and {len(alike) - 1} more such sets)" if len(alike) > 1 else ""
        warnings.append(
            f"{' and '.join(map(repr, alike[0]))}{more} are separate classes, but differ only "
            "in case, spacing or spelling: make them equal in the file if they are the same class"
        )
    missing = [name for names in forms.values() for name in names if name.lower() in _MISSING]
    if missing:
        warnings.append(f"{missing[0]!r} is a class: empty the cell if it is a missing value")
    return warnings


def class_counts(labels: Iterable[str]) -> str:
    """Return how many rows each class has, in words."""
    counts = Counter(labels)
    if len(counts) <= _SHOWN_CLASSES:
        return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    shown = [f"{name} {count:,}" for name, count in counts.most_common(_SHOWN_CLASSES)]
    return f"{', '.join(shown)} … {len(counts)} classes, the smallest with {min(counts.values()):,}"


def require_two_classes(task_name: str, train: pd.Series) -> None:
    """Refuse a training split with one class."""
    if train.nunique() < 2:
        raise InputError(
            f"the training split of {task_name!r} has {len(train):,} rows of one class, "
            f"{train.iloc[0]!r}: a classifier needs at least two classes; give more rows of "
            "others, set a larger task.train_size, or another task.split_seed"
        )


def check_classes(column: str, labels: Mapping[str, pd.Series]) -> list[str]:
    """Return warnings about classes with few training rows.

    Raises:
        InputError: Most labels occur once, or too many rows have a class without training rows.
    """
    counts = Counter(labels["train"])
    once, rows = sum(count == 1 for count in counts.values()), len(labels["train"])
    if once > rows / 2:
        raise InputError(
            f"task.label_column={column!r}: {once:,} of {rows:,} training rows "
            "have a label that no other row has, so nothing can be learnt: name the column of the "
            "classes, or list those to keep in task.labels"
        )
    warnings = [
        _unseen(name, labels[name], of_split)
        for name in ("validation", "test")
        if len(of_split := labels[name][~labels[name].isin(list(counts))])
    ]
    if once > _MANY_CLASSES:
        warnings.append(f"{once} of {len(counts)} classes have one training row each")
    return warnings


def _unseen(split: str, labels: pd.Series, unseen: pd.Series) -> str:
    """Warn about rows whose class has no training row; refuse more than a few of them."""
    share = len(unseen) / len(labels)
    warning = (
        f"{len(unseen):,} of {len(labels):,} {split} rows ({100 * share:.3g} %) have a class "
        f"without training rows, such as {unseen.iloc[0]!r}, and can't be predicted"
    )
    if share > LARGEST_SHARE and len(unseen) > _FEW_ROWS:
        raise InputError(
            f"{warning}: give more rows, set a larger task.train_size, list the classes to keep "
            "in task.labels, or choose another task.group_column or task.split_seed"
        )
    return warning
