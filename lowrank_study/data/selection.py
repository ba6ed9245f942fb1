"""Select the rows of a file that have all their texts, and count the others."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lowrank_study.data.reading import Rows, as_texts
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut, in_words

if TYPE_CHECKING:
    from lowrank_study.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The rows of one split that are used."""

    frame: pd.DataFrame
    """Columns `text`, `text_pair` (pairs only), `group`, `test_set` (where there are several), and
    `key`, which is equal for equal texts; the index is that of the rows read."""
    left_out: list[LeftOut]
    warnings: list[str]


def normal_form(text: str) -> str:
    """Return a text without case, extra white space and Unicode variants."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def as_number(text: str) -> float | None:
    """Return the number that a text is; `None` for other texts."""
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text):
        return None
    return float(text)


def select(
    task: "Task",
    split: str,
    rows: Rows,
    *,
    text_columns: Sequence[str],
    required: Mapping[str, pd.Series],
    wanted: pd.Series,
) -> Selected:
    """Select the wanted rows that have no empty cell.

    Args:
        text_columns: One column, or two for pairs.
        required: Further columns that must not be empty, as texts.
        wanted: Which rows the task asks for.

    Raises:
        InputError: No row is left, or a value is not a text.
    """
    columns = {name: as_texts(rows.frame[name], name, rows.of) for name in text_columns}
    if task.group_column:
        columns[task.group_column] = as_texts(
            rows.frame[task.group_column], task.group_column, rows.of
        )
    if task.test_set_column:
        columns[task.test_set_column] = as_texts(
            rows.frame[task.test_set_column], task.test_set_column, rows.of
        )
    kept, left_out = _filled({**columns, **required}, wanted, rows.of)
    if not kept.any():
        reason = "; ".join(in_words(left_out)) or "the file has no rows"
        raise InputError(f"the {split} split of {task.name!r} has no rows: {reason}")
    texts = [columns[name][kept] for name in text_columns]
    frame = pd.DataFrame({"text": texts[0]})
    if len(texts) == 2:
        frame["text_pair"] = texts[1]
    frame["group"] = columns[task.group_column][kept] if task.group_column else frame.index
    if task.test_set_column:
        frame["test_set"] = columns[task.test_set_column][kept]
    frame["key"] = ["\0".join(map(normal_form, row)) for row in zip(*texts, strict=True)]
    warnings = [
        f"{rows.of}: {name!r} of task.text_columns contains only numbers"
        for name in text_columns
        if all(_is_number(value) for value in rows.frame[name][kept])
    ]
    return Selected(frame=frame, left_out=[*rows.left_out, *left_out], warnings=warnings)


def _filled(
    columns: Mapping[str, pd.Series], wanted: pd.Series, of: str
) -> tuple[pd.Series, list[LeftOut]]:
    """Return which rows are used, and which of the wanted rows are left out."""
    kept, left_out = wanted.copy(), []
    for name, column in columns.items():
        empty = kept & np.array([not (value and value.strip()) for value in column])
        if empty.any():
            first = int(np.flatnonzero(empty.to_numpy())[0]) + 1
            part = LeftOut(
                count=int(empty.sum()),
                total=int(wanted.sum()),
                unit="rows",
                of=of,
                why=f"{name!r} is empty (first in row {first:,})",
            )
            left_out.append(part)
            kept &= ~empty
    return kept, left_out


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) or as_number(str(value)) is not None
