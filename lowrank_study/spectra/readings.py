"""A number and its status: whether it may be reported, or rounding decides it.

A number below the rounding floor comes from rounding errors. A `Reading` therefore holds the
number and its status, and its `value` is None unless the number is resolved.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lowrank_study.spectra.spectrum import Spectrum, Values

Status = Literal["resolved", "not resolvable", "undefined", "not computed"]

TOLERATED_CHANGE = 0.1
"""A measure of the whole spectrum is resolved if dropping the values below the rounding floor
changes it by no more than this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One measure of one matrix."""

    value: float | None
    """The number if it is resolved, else None."""
    status: Status
    """"not resolvable": rounding decides the number. "undefined": 0/0, or too few values.
    "not computed": an incomplete spectrum leaves it open, or the matrix is too large."""
    as_read: float | None
    """The result of the formula whatever its status; None if it has none."""


def resolved(value: float) -> Reading:
    """Return a resolved reading, or an undefined one for NaN."""
    number = float(value)
    if math.isnan(number):
        return Reading(value=None, status="undefined", as_read=None)
    return Reading(value=number, status="resolved", as_read=number)


def without_value(status: Status, as_read: float | None = None) -> Reading:
    """Return a reading that is not resolved, with the result of the formula if there is one."""
    number = None if as_read is None or math.isnan(as_read) else float(as_read)
    return Reading(value=None, status=status, as_read=number)


def always(_: Spectrum, __: float) -> bool:
    """Accept norms, floors and chance levels: rounding does not decide them."""
    return True


def decided_elsewhere(_: Spectrum, __: float) -> bool:
    """Mark measures whose status is decided by the code that computes them."""
    raise AssertionError("this measure is not a function of one spectrum")


def counts_above_floor(s: Spectrum, value: float) -> bool:
    """Accept a count if every counted value is above the rounding floor."""
    if s.is_zero:
        return True
    if math.isnan(s.rounding_edge):
        return False
    return value == 0 or bool(s.singular_values[int(value) - 1] > s.rounding_edge)


def has_values_above_floor(s: Spectrum, value: float) -> bool:
    """Accept a count if some value is above the rounding floor."""
    return s.is_zero or (value > 0 and s.above_floor.size > 0)


def barely_changes_above_floor(
    formula: Callable[[Values], float],
) -> Callable[[Spectrum, float], bool]:
    """Return the rule for measures of all values: accept if those below the floor hardly matter."""

    def stands(s: Spectrum, value: float) -> bool:
        above = s.above_floor
        return above.size > 0 and abs(formula(above) / value - 1.0) <= TOLERATED_CHANGE

    return stands
