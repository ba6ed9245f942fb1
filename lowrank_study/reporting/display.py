"""How values are written for people: one table record, and one format per kind of number.

A `Table` is a data frame with the columns that are worth showing. It becomes CSV (every column,
exact), HTML and LaTeX (the shown columns, rounded):

    >>> written(0.78213, "decimal"), written(294912, "count"), written(float("nan"), "decimal")
    ('0.782', '294,912', '–')

Names come from untrusted files, so `printable` escapes their control and direction characters
before they reach an output.
"""

import csv
import functools
import io
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from lowrank_study.methods import method_named, method_names
from lowrank_study.tasks.metric import Metric

Kind = Literal[
    "text", "count", "rank", "decimal", "points", "percent", "ratio", "rate", "bytes", "seconds"
]
"""How a column is written. `points` is a difference of two shares times 100, and `percent` a share
in per cent."""

MISSING = "–"
NARROW_SPACE = "\u202f"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Column:
    """One shown column; its arguments are positional, so that each column is one line."""

    name: str
    """its name in the frame and in the CSV file"""
    label: str
    """its heading"""
    kind: Kind
    """how its values are written"""
    meaning: str
    """what it is, in one phrase"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A tidy frame and its shown columns."""

    name: str
    """the stem of its files"""
    title: str
    """its heading"""
    note: str
    """what a row is and how its numbers were made"""
    frame: pd.DataFrame
    """every column, exact"""
    columns: tuple[Column, ...]
    """the columns that are shown, in order"""

    def rows(self, most: int) -> list[tuple[object, ...]]:
        """Return the first rows, at most this many, with the shown columns."""
        shown = self.frame[[column.name for column in self.columns]].head(most)
        return list(shown.itertuples(index=False, name=None))


def printable(text: object) -> str:
    r"""Return a name as one visible line.

    Control, format (zero-width, right-to-left marks), surrogate and line-separating
    characters become their escapes:

        >>> printable("a\x00b\u202ec")
        'a\\x00b\\u202ec'
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(
        character
        if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
        else character.encode("unicode_escape").decode("ascii")
        for character in line
    )


def is_missing(value: object) -> bool:
    """Tell whether a cell is empty: None, NA, NaT or NaN."""
    return value is None or value is pd.NA or value is pd.NaT or value != value


def span(low: str, high: str) -> str:
    """Write a range, or one value if both ends print alike."""
    return low if low == high else f"{low} to {high}"


def written(value: object, kind: Kind) -> str:
    """Write one value of a table; a missing or infinite value becomes a dash."""
    if is_missing(value):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if kind == "text":
        return printable(value) or MISSING
    number = float(str(value))
    if not math.isfinite(number):
        return MISSING
    match kind:
        case "count":
            return f"{number:,.0f}"
        case "rank":
            return f"{number:,.0f}" if number == round(number) else f"{number:,.1f}"
        case "decimal":
            return f"{number:.3f}"
        case "points":
            return f"{100 * number:.2f}"
        case "percent":
            return percent(number)
        case "ratio":
            return f"{significant(number, 2 if abs(number) < 1 else 3)}\u00d7"
        case "rate":
            return re.sub(r"e([-+])0", r"e\1", f"{number:.3g}")
        case "bytes":
            return in_bytes(number)
        case "seconds":
            return f"{significant(number, 3)}{NARROW_SPACE}s"


def significant(number: float, digits: int) -> str:
    """Write a number with this many significant digits, never in scientific notation."""
    if number == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{places}f}"


def percent(share: float) -> str:
    """Write a share between 0 and 1 as a percentage with at most three significant digits.

    A share below 1e-9 is a rounding error of a difference and is written as zero.
    """
    value = 100 * round(share, 9)
    text = f"{value:.0f}" if abs(value) >= 99.95 else significant(value, 2 if value < 10 else 3)
    return f"{text}{NARROW_SPACE}%"


def in_bytes(size: float) -> str:
    """Write a size in decimal units: kB = 1,000 bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            return f"{significant(size / scale, 3)}{NARROW_SPACE}{unit}"
    return f"{size:.0f}{NARROW_SPACE}B"


def points(difference: float, metric: Metric) -> str:
    """Write a difference of two scores with its unit."""
    return f"{in_points(difference, metric)} {metric.points}"


def in_points(difference: float, metric: Metric, *, sign: Literal["", "+"] = "") -> str:
    """Write a difference of two scores in the metric's unit; "+" writes the sign of all numbers."""
    digits = 1 if metric.points_per_unit == 100 else 3
    return f"{metric.points_per_unit * difference:{sign}.{digits}f}"


@functools.cache
def _written_methods() -> dict[str, str]:
    methods = [method_named(name) for name in method_names()]
    return {name: text for method in methods for name, text in method.written_names.items()}


def method_name(method: str) -> str:
    """Return a method's name for prose: PEFT's kinds in PEFT's spelling, with their options."""
    name, *options = method.split(" ", 1)
    head = _written_methods().get(name, printable(name).upper())
    return " ".join([head, *map(printable, options)])


def method_label(method: str) -> str:
    """Return a method's name for a tick of an axis."""
    return "probe" if method == "head" else printable(method)


def adapter_name(method: str, target: str) -> str:
    """Return a method with what it adapts: LoRA on attention_qv."""
    return f"{method_name(method)} on {printable(target)}" if target else method_name(method)


def rank_list(ranks: Sequence[int], tried: Sequence[int]) -> str:
    """Write rising ranks, as a range if no rank that was tried is skipped.

    >>> rank_list([8], [4, 8]), rank_list([2, 4, 8], [1, 2, 4, 8]), rank_list([1, 4], [1, 2, 4])
    ('rank 8', 'ranks 2 to 8', 'ranks 1 and 4')
    """
    first = list(tried).index(ranks[0])
    if len(ranks) > 2 and list(ranks) == list(tried[first : first + len(ranks)]):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {enumeration([str(rank) for rank in ranks])}"


def capitalised(text: str) -> str:
    """Return a sentence with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def enumeration(items: list[str]) -> str:
    """Join words for prose: a, b and c."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun: 1 run, 2 runs."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def csv_text(frame: pd.DataFrame) -> str:
    """Write a frame as CSV that no spreadsheet runs as a formula.

    Text that starts with one of ``= + - @``, tab or carriage return gets an apostrophe in front.
    Numbers are exact: the shortest text that reads back as the same float.
    """
    guarded = {
        name: frame[name].map(_guarded) if _holds_text(frame[name]) else frame[name]
        for name in frame.columns
    }
    buffer = io.StringIO()
    pd.DataFrame(guarded, index=frame.index).rename(columns=_guarded).to_csv(
        buffer, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL
    )
    return buffer.getvalue()


def _holds_text(column: "pd.Series[Any]") -> bool:
    return not (
        pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype)
    )


def _guarded(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = f"'{value}" if value.startswith(FORMULA_STARTS) else value
    return printable(text)
