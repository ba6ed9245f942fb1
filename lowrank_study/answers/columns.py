"""Columns of tidy tables: each table declares its columns and their kinds once.

    RATES = {"run_id": "text", "seed": "whole", "learning_rate": "real"}
    typed_table(frame, RATES, "rates")      # a typed copy, or an InputError

The kinds are `text`, `whole` (nullable integers), `real`, `score` (a number within the limits of
the task's metric), `share` (a number from 0 to 1) and `flag`.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lowrank_study.errors import InputError


def typed_table(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    """Return a copy of a table with each column converted to its kind."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(
            f"the {name} table lacks the column(s) {', '.join(missing)}. It needs "
            f"{', '.join(columns)}"
        )
    table = frame.reset_index(drop=True).copy()
    for column, kind in columns.items():
        try:
            table[column] = _as_kind(table[column], kind)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the column {column} of the {name} table does not hold {_KINDS[kind]}: {error}"
            ) from error
    return table


_KINDS = {
    "text": "text",
    "whole": "whole numbers",
    "real": "numbers",
    "score": "numbers",
    "share": "numbers",
    "flag": "true or false",
}


def _as_kind(column: "pd.Series[Any]", kind: str) -> "pd.Series[Any]":
    match kind:
        case "text":
            return column.astype(object).where(column.notna(), None).map(_text).astype(object)
        case "whole":
            return pd.to_numeric(column).astype("Int64")
        case "flag":
            return column.astype("boolean").fillna(False).astype(bool)
        case _:
            return pd.to_numeric(column).astype("Float64").astype(float)


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)
