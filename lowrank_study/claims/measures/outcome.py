"""What measuring a claim gives: numbers with their intervals, a word, or why there is nothing.

A measure is a function registered by its name, which claims in `conf/claim/` call it by:

    @measure
    def reduction(architecture: str, target: str, rank: int) -> Outcome: ...

One that needs trained runs takes an `evidence` as well, and raises `Lacking` for what that does not
hold. Values are in base units (bytes, shares
of one, parameters); a claim's unit scales them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One measured number and where it can be: a point where it is computed exactly."""

    value: float
    low: float
    high: float
    label: str
    """What it is of, where there are several: a task, a setting; `""` for the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured."""

    values: tuple[Interval, ...]
    """In the order of the published ones; or one per task, each held against the same."""
    how: str
    """How it was measured, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A word or a yes and no instead of numbers."""

    value: str | bool
    how: str
    """How it was found out, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """Nothing was measured."""

    why: str
    """What would be needed, or why this suite can't test it."""


Outcome = Measured | Observed | Unmeasured


class Lacking(Exception):
    """The evidence does not hold what a measure needs; its text says what that is."""


Arguments = ParamSpec("Arguments")
CLAIM_MEASURES: dict[str, Callable[..., Outcome]] = {}
"""Measures by the name that claims call them by."""


def measure(function: Callable[Arguments, Outcome]) -> Callable[Arguments, Outcome]:
    """Register a measure under its function's name; what it lacks becomes its outcome."""

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Outcome:
        try:
            return function(*args, **kwargs)
        except Lacking as error:
            return Unmeasured(why=f"needs {error}")

    assert function.__name__ not in CLAIM_MEASURES, function.__name__
    CLAIM_MEASURES[function.__name__] = guarded
    return guarded


def exactly(value: float, label: str = "") -> Interval:
    """Give a computed number as an interval of no width."""
    return Interval(value=value, low=value, high=value, label=label)


def computed(values: float | Sequence[float], how: str) -> Measured:
    """Give one or several computed numbers as an outcome."""
    listed = [values] if isinstance(values, (int, float)) else list(values)
    return Measured(values=tuple(exactly(float(value)) for value in listed), how=how)


def ranging(values: Sequence[float], how: str) -> Measured:
    """Give the range of settings that a claim leaves open as one interval."""
    low, high = float(min(values)), float(max(values))
    middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
    return Measured(values=(Interval(value=middle, low=low, high=high, label=""),), how=how)


@measure
def not_tested(why: str) -> Outcome:
    """Measure nothing: no runs here can tell, and the claim says why."""
    return Unmeasured(why=why)
