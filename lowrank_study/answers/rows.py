"""Group the rows of a table by keys that may be NA, and summarise each group.

A *configuration* is a method with its target and adapter rank in one setting (a task with a
base model).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.answers.roles import role_order

Vector = npt.NDArray[np.float64]

SETTING = ["task", "model"]
CONFIGURATION = ["task", "model", "method", "target", "adapter_rank"]
TUNING = ["alpha", "scaling_rule", "learning_rate"]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as mappings from column to value."""
    names = [str(name) for name in frame.columns]
    return [dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def places_of(
    frame: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.intp]]]:
    """Yield each combination of key values with the positions of its rows; see `groups`."""
    places: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(frame[keys].itertuples(index=False, name=None)):
        places.setdefault(key_of(row), []).append(place)
    for key in sorted(
        places, key=lambda key: [_order(*pair) for pair in zip(keys, key, strict=True)]
    ):
        yield dict(zip(keys, key, strict=True)), np.array(places[key])


def groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each combination of key values with its rows, in order; NA becomes None.

    Full fine-tuning comes before adapters, roles are in the order of a layer, and matrices outside
    the layers come last.
    """
    for key, places in places_of(frame, keys):
        yield key, frame.iloc[places]


def key_of(row: tuple[object, ...]) -> tuple[object, ...]:
    """Return the values of a row, with None for NA so that they compare."""
    return tuple(None if value is pd.NA or value != value else value for value in row)


def _order(column: str, value: object) -> tuple[int, float, str]:
    """Return the sort key of a column's value: None comes first, but last among layers."""
    if column == "role":
        place, name = role_order(str(value))
        return place, 0.0, name
    if value is None:
        return (3 if column == "layer" else 0), 0.0, ""
    if isinstance(value, int | float | np.number):
        return 1, float(value), ""
    return (0 if value == "full" else 2), 0.0, str(value)


def mean_of(column: "pd.Series[Any]") -> float:
    """Return the mean of the known values, NaN if there are none."""
    values = column.dropna().to_numpy(dtype=np.float64)
    return float(values.mean()) if len(values) else math.nan


def median_of(column: "pd.Series[Any]") -> float:
    """Return the median of the known values, NaN if there are none."""
    return middle_of(column.dropna().to_numpy(dtype=np.float64))


def middle_of(values: Vector) -> float:
    """Return the median of the values that are not NaN, NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def extreme_of(column: "pd.Series[Any]", *, largest: bool) -> float:
    """Return the largest or smallest known value, NaN if there are none."""
    values = column.dropna().to_numpy(dtype=np.float64)
    if not len(values):
        return math.nan
    return float(values.max() if largest else values.min())


def over_full(table: pd.DataFrame, column: str) -> "pd.Series[float]":
    """Divide a column by its value for full fine-tuning in the same setting; NaN if none or 0."""
    full = table.loc[table["method"] == "full"].set_index(SETTING)[column].rename("of_full")
    return table[column] / table.join(full, on=SETTING)["of_full"].replace(0, math.nan)


def whole(value: float) -> int | None:
    """Round to a whole number; NaN becomes None."""
    return None if math.isnan(value) else round(value)


def shared_value(column: npt.NDArray[Any]) -> int | None:
    """Return the value that all entries share, or None if they differ."""
    values = {str(value) for value in column if not pd.isna(value)}
    return int(values.pop()) if len(values) == 1 else None
