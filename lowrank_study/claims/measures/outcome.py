"""Outcome of measuring a claim: numbers with intervals, a word, or why nothing was measured.

A measure is a registered function, which claims in `conf/claim/` call by its name:

    @measure
    def matched_maps(architecture: str, names: Sequence[str]) -> Outcome: ...

A measure that needs trained runs also takes `evidence`, and raises `Lacking` if the runs are
absent. Values are in base units (bytes, fractions, parameters); the claim's unit scales them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One measured number with its bounds; they are equal if the number is computed exactly."""

    value: float
    low: float
    high: float
    label: str
    """Its task or setting, if there are several; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Measured numbers."""

    values: tuple[Interval, ...]
    """One for each published value in order, or one for each task."""
    how: str
    """How the numbers were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """An observed word, or yes or no."""

    value: str | bool
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """The reason why nothing was measured."""

    why: str


Outcome = Measured | Observed | Unmeasured


class Lacking(Exception):
    """The evidence lacks runs or columns that a measure needs; the text names them."""


Arguments = ParamSpec("Arguments")
CLAIM_MEASURES: dict[str, Callable[..., Outcome]] = {}
"""Measures by name."""


def measure(function: Callable[Arguments, Outcome]) -> Callable[Arguments, Outcome]:
    """Register a measure under its function's name, and turn `Lacking` into its outcome."""

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Outcome:
        try:
            return function(*args, **kwargs)
        except Lacking as error:
            return Unmeasured(why=f"this check needs {error}")

    assert function.__name__ not in CLAIM_MEASURES, function.__name__
    CLAIM_MEASURES[function.__name__] = guarded
    return guarded


def exactly(value: float, label: str = "") -> Interval:
    """Return a computed number as an interval of width zero."""
    return Interval(value=value, low=value, high=value, label=label)


def computed(values: float | Sequence[float], how: str) -> Measured:
    """Return one or several computed numbers as an outcome."""
    listed = [values] if isinstance(values, (int, float)) else list(values)
    return Measured(values=tuple(exactly(float(value)) for value in listed), how=how)


def ranging(values: Sequence[float], how: str) -> Measured:
    """Return the range over settings that a claim leaves open, as one interval."""
    low, high = float(min(values)), float(max(values))
    middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
    return Measured(values=(Interval(value=middle, low=low, high=high, label=""),), how=how)


@measure
def not_tested(why: str) -> Outcome:
    """Measure nothing, for the reason that the claim gives."""
    return Unmeasured(why=why)
