"""How fast singular values fall: fits of a power law and of an exponential.

    fit_decay(singular_values, law="power", first=1, last=100).rate     # sigma_i ~ i^-rate

Each fit is a straight line in double-logarithmic (or logarithmic) axes. A high R^2 does not prove a
law, because nearly any family explains much of a descending sequence. Compare both laws on one
range, and read `rate` only if R^2 is high.
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
    """A fitted law of decay; NaN throughout if nothing could be fitted."""

    rate: float
    """Exponent a of i^-a, or b of e^(-b i); positive for falling values."""
    r_squared: float
    """Share of the variance of log sigma explained; NaN if all values are equal."""


def fit_decay(singular_values: npt.ArrayLike, *, law: Law, first: int, last: int) -> DecayFit:
    """Fit log sigma_i by least squares: on log i ("power") or on i ("exponential").

    Indices count from 1, and the fit ends before the first zero. It is NaN if fewer than three
    values are left.
    """
    if not 1 <= first < last:
        raise InputError(f"range {first}..{last} of indices; give 1 <= first < last")
    values = checked(singular_values)
    last = min(last, int(np.count_nonzero(values)))
    if last - first + 1 < 3:
        return DecayFit(rate=math.nan, r_squared=math.nan)
    if values[first - 1] == values[last - 1]:
        return DecayFit(rate=0.0, r_squared=math.nan)
    index = np.arange(first, last + 1, dtype=np.float64)
    line = linregress(np.log(index) if law == "power" else index, np.log(values[first - 1 : last]))
    return DecayFit(rate=-float(line.slope), r_squared=float(line.rvalue) ** 2)
