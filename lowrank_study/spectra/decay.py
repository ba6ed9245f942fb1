"""How fast singular values fall: fits of a power law and of an exponential.

    fit = fit_power_law(singular_values, first=1, last=100)   # sigma_i ~ amplitude * i^-rate
    fit.rate, fit.r_squared

A straight line in double-logarithmic (or logarithmic) axes over a stated range. A good R^2
doesn't make a law: of a descending sequence nearly any family explains much. Compare the two
families on one range, and read `rate` only where R^2 is high.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import linregress

from lowrank_study.errors import InputError
from lowrank_study.spectra.ranks import checked

Law = Literal["power", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecayFit:
    """One fitted law of decay and the range it was fitted on."""

    law: Law
    """"power": sigma_i = amplitude * i^-rate. "exponential": sigma_i = amplitude e^(-rate i)."""
    amplitude: float
    """Factor in front, in the unit of the singular values; NaN if nothing could be fitted."""
    rate: float
    """Exponent or inverse length of decay, > 0 for falling values; NaN as above."""
    r_squared: float
    """Share of the variance of log sigma explained; NaN as above or if all values are equal."""
    first: int
    """First index fitted, counted from 1."""
    last: int
    """Last index fitted: the one asked for, or the last positive singular value."""


def fit_power_law(singular_values: npt.ArrayLike, *, first: int, last: int) -> DecayFit:
    """Fit sigma_i = amplitude * i^-rate.

    Least squares of log sigma_i on log i over first <= i <= last.

    Args:
        singular_values: Descending, any unit.
        first: First index, counted from 1.
        last: Last index; values that are zero or absent end the range earlier.

    Returns:
        The fit; NaN throughout if fewer than three positive values are in the range.

    Raises:
        InputError: If the range is not 1 <= first < last.
    """
    return _fit("power", singular_values, first, last)


def fit_exponential(singular_values: npt.ArrayLike, *, first: int, last: int) -> DecayFit:
    """Fit sigma_i = amplitude * exp(-rate i).

    Least squares of log sigma_i on i over first <= i <= last.

    Args:
        singular_values: Descending, any unit.
        first: First index, counted from 1.
        last: Last index; values that are zero or absent end the range earlier.

    Returns:
        The fit; NaN throughout if fewer than three positive values are in the range.

    Raises:
        InputError: If the range is not 1 <= first < last.
    """
    return _fit("exponential", singular_values, first, last)


def _fit(law: Law, singular_values: npt.ArrayLike, first: int, last: int) -> DecayFit:
    if not 1 <= first < last:
        raise InputError(f"range {first}..{last} of indices; give 1 <= first < last")
    values = checked(singular_values)
    last = min(last, int(np.count_nonzero(values)))
    if last - first + 1 < 3:
        return DecayFit(
            law=law, amplitude=math.nan, rate=math.nan, r_squared=math.nan, first=first, last=last
        )
    index = np.arange(first, last + 1, dtype=np.float64)
    log_values = np.log(values[first - 1 : last])
    line = linregress(np.log(index) if law == "power" else index, log_values)
    flat = values[first - 1] == values[last - 1]
    with np.errstate(over="ignore"):
        amplitude = float(np.exp(line.intercept))
    return DecayFit(
        law=law,
        amplitude=amplitude,
        rate=0.0 if flat else -float(line.slope),
        r_squared=math.nan if flat else float(line.rvalue) ** 2,
        first=first,
        last=last,
    )
