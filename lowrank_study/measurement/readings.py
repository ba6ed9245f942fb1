"""What each measure says of one update, and whether it may be said at all.

A number below the rounding floor of the files is one of rounding errors, so a `Reading` is a
number *and* its standing; whatever prints it asks `Reading.value`, which is None unless the
number stands:

    found = readings(measure(update, method="gram"), fit_first=1, fit_last=100)
    found["energy_rank_90"]     # Reading(value=None, status="not resolvable", as_read=237.0)

`MEASURES` is the one list of measures, with what they mean, for every table and plot.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lowrank_study.spectra import noise, ranks
from lowrank_study.spectra.decay import DecayFit, fit_exponential, fit_power_law
from lowrank_study.spectra.spectrum import Spectrum, resolvable_at, row

Status = Literal["resolved", "not resolvable", "undefined", "not computed"]
Values = npt.NDArray[np.float64]

TOLERATED_CHANGE = 0.1
"""A measure of the whole spectrum stands if leaving out what lies under the rounding floor
changes it by no more than this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One measure of one matrix."""

    value: float | None
    """The number where it may be given, else None."""
    status: Status
    """"not resolvable": rounding decides it. "undefined": 0/0, or too few values.
    "not computed": an incomplete spectrum doesn't settle it."""
    as_read: float | None
    """The number as the formula gives it, whatever its standing; None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure, as tables and plots name it."""

    name: str
    """Its column."""
    label: str
    """Its heading."""
    kind: Literal["rank", "number", "percent"]
    """How it is written."""
    group: Literal["size", "rank", "noise", "decay", "base", "other"]
    """"base": needs W0 and `compare_with_base`. "other": needs a second update."""
    meaning: str
    """What it says, in one phrase."""


def _measure(name: str, label: str, kind: str, group: str, meaning: str) -> Measure:
    return Measure(name=name, label=label, kind=kind, group=group, meaning=meaning)  # type: ignore[arg-type]


MEASURES = (
    _measure("energy_rank_90", "90 % energy rank", "rank", "rank",
             "least k whose k largest σ² hold 90 % of ‖ΔW‖²"),
    _measure("energy_rank_95", "95 % energy rank", "rank", "rank", "the same at 95 %"),
    _measure("energy_rank_99", "99 % energy rank", "rank", "rank", "the same at 99 %"),
    _measure("effective_rank", "effective rank", "rank", "rank",
             "exp of the entropy of σ/Σσ (Roy & Vetterli 2007)"),
    _measure("stable_rank", "stable rank", "rank", "rank", "‖ΔW‖²_F / σ₁²"),
    _measure("participation_ratio", "participation ratio", "rank", "rank", "(Σσ²)² / Σσ⁴"),
    _measure("numerical_rank", "numerical rank", "rank", "rank",
             "σ above the tolerance of the arithmetic and above the rounding floor"),
    _measure("gavish_donoho_rank", "Gavish–Donoho rank", "rank", "noise",
             "σ above the optimal hard threshold for unknown noise (2014)"),
    _measure("rank_above_mp_edge", "σ above Marchenko–Pastur", "rank", "noise",
             "σ above what independent noise of the median’s size would reach"),
    _measure("mp_edge", "Marchenko–Pastur edge", "number", "noise",
             "largest σ that independent noise of the median’s size would have"),
    _measure("rounding_floor", "rounding floor", "number", "noise",
             "largest σ that rounding in storage is expected to add"),
    _measure("energy_above_floor", "energy above floor", "percent", "noise",
             "share of ‖ΔW‖² in directions above the rounding floor"),
    _measure("frobenius_norm", "‖ΔW‖", "number", "size", "Frobenius norm of the update"),
    _measure("relative_norm", "‖ΔW‖/‖W0‖", "percent", "size", "relative to the weight before"),
    _measure("largest_singular_value", "σ₁", "number", "size", "spectral norm of the update"),
    _measure("sigma1_over_sigma10", "σ₁/σ₁₀", "number", "decay", "ratio of 1st and 10th σ"),
    _measure("power_law_rate", "power-law exponent", "number", "decay",
             "a in σᵢ ~ i^−a, over the values above the floor"),
    _measure("power_law_r_squared", "R² of power law", "number", "decay",
             "share of the variance of log σ the power law explains"),
    _measure("exponential_rate", "exponential rate", "number", "decay",
             "b in σᵢ ~ e^(−b i), over the values above the floor"),
    _measure("exponential_r_squared", "R² of exponential", "number", "decay",
             "share of the variance of log σ the exponential explains"),
    _measure("amplification_factor", "amplification", "number", "base",
             "‖ΔW‖ / ‖UᵀW0V‖ along the update’s own directions (LoRA, Table 7)"),
    _measure("projected_norm", "‖UᵀW0V‖", "number", "base",
             "what W0 has along the update’s own directions"),
    _measure("own_projected_norm", "‖UᵀW0V‖, W0’s own", "number", "base",
             "what W0 has along as many of its own top directions"),
    _measure("random_projected_norm", "‖UᵀW0V‖, random", "number", "base",
             "what W0 has along as many random directions: its chance level"),
    _measure("directions_used", "directions used", "rank", "base",
             "leading directions of the update above its rounding floor that were used"),
    _measure("overlap_left", "in W0’s top, outputs", "percent", "base",
             "share of ‖ΔW‖² in W0’s top left directions"),
    _measure("overlap_left_chance", "chance, outputs", "percent", "base",
             "the same for random directions"),
    _measure("overlap_right", "in W0’s top, inputs", "percent", "base",
             "share of ‖ΔW‖² in W0’s top right directions"),
    _measure("overlap_right_chance", "chance, inputs", "percent", "base",
             "the same for random directions"),
    _measure("intruder_dimensions", "intruder dimensions", "rank", "base",
             "top left directions of W0+ΔW unlike any of W0 (Shuttleworth et al. 2024)"),
    _measure("similarity_top", "φ(1, 1)", "number", "other",
             "squared cosine of both updates’ first right directions (LoRA, eq. 4)"),
    _measure("similarity_top_chance", "φ(1, 1) by chance", "number", "other",
             "the same for random directions"),
    _measure("similarity", "φ(i, j), right", "number", "other",
             "share of the smaller leading right subspace inside the other’s"),
    _measure("similarity_left", "φ(i, j), left", "number", "other", "the same on the outputs"),
    _measure("similarity_chance", "φ(i, j) by chance", "number", "other",
             "max(i, j)/d, for random right subspaces"),
    _measure("similarity_left_chance", "φ(i, j) by chance, left", "number", "other",
             "max(i, j)/d, for random left subspaces"),
    _measure("smallest_angle", "smallest angle (°)", "number", "other",
             "smallest principal angle of both leading right subspaces"),
    _measure("largest_angle", "largest angle (°)", "number", "other",
             "largest principal angle of both leading right subspaces"),
)  # fmt: skip
"""Every measure, in the order of the columns."""


def resolved(value: float) -> Reading:
    """Give a reading that stands; of NaN, one that is undefined."""
    number = float(value)
    if math.isnan(number):
        return Reading(value=None, status="undefined", as_read=None)
    return Reading(value=number, status="resolved", as_read=number)


def without_value(status: Status, as_read: float | None = None) -> Reading:
    """Give a reading that doesn't stand, with what the formula read if anything."""
    number = None if as_read is None or math.isnan(as_read) else float(as_read)
    return Reading(value=None, status=status, as_read=number)


def readings(spectrum: Spectrum, *, fit_first: int, fit_last: int) -> dict[str, Reading]:
    """Give every measure of one update that needs no other matrix.

    An energy rank stands where the directions above the rounding floor hold its share of the
    energy; a measure of the whole spectrum, where leaving out what is under the floor changes
    it by 10 % at most; a count above another threshold, where all it counts is above the floor;
    a fit is made above the floor only. A zero update has rank 0 and undefined ratios: two files
    that agree bit by bit differ by exactly nothing, however coarse they are.

    Args:
        spectrum: As `spectra.spectrum.measure` gives it.
        fit_first: First index of the decay fits, from 1.
        fit_last: Last index of the decay fits; they end earlier at the floor.

    Returns:
        Measure name to reading, for the groups size, rank, noise and decay.
    """
    found, values, floor = row(spectrum), spectrum.singular_values, spectrum.rounding_edge
    zero = spectrum.frobenius_norm == 0.0
    above = values[values > floor] if not math.isnan(floor) else values[:0]
    result = {
        "frobenius_norm": resolved(spectrum.frobenius_norm),
        "relative_norm": resolved(found["relative_norm"]),
        "largest_singular_value": resolved(values[0] if values.size else 0.0),
        "mp_edge": resolved(found["mp_edge"]) if spectrum.complete else _NOT_COMPUTED,
        "rounding_floor": resolved(floor),
        "energy_above_floor": resolved(_energy_above(spectrum, above)),
    }
    for name, share in _SHARES.items():
        stands = zero or resolvable_at(spectrum, share)
        result[name] = _counted(found[name], stands=stands)
    for name, formula in _OF_ALL_VALUES.items():
        result[name] = _of_all_values(found[name], formula, spectrum, above)
    numerical = found["numerical_rank"]
    result["numerical_rank"] = _counted(numerical, stands=zero or bool(numerical and above.size))
    for name in ("gavish_donoho_rank", "rank_above_mp_edge"):
        count = found[name]
        stands = zero or (not math.isnan(floor) and (not count or values[count - 1] > floor))
        result[name] = _counted(count, stands=stands)
    ratio = found["sigma1_over_sigma10"]
    stands = above.size >= 10
    result["sigma1_over_sigma10"] = (
        resolved(ratio) if stands or math.isnan(ratio) else without_value("not resolvable", ratio)
    )
    for law, fit in (("power_law", fit_power_law), ("exponential", fit_exponential)):
        result |= _fitted(law, fit, values, above.size, fit_first, fit_last)
    return result


_SHARES = {"energy_rank_90": 0.9, "energy_rank_95": 0.95, "energy_rank_99": 0.99}
_NOT_COMPUTED = Reading(value=None, status="not computed", as_read=None)
_OF_ALL_VALUES: dict[str, Callable[[Values], float]] = {
    "effective_rank": ranks.effective_rank,
    "stable_rank": ranks.stable_rank,
    "participation_ratio": ranks.participation_ratio,
}


def energy_above_floor(spectrum: Spectrum) -> float:
    """Give the share of an update's energy above its rounding floor; NaN where unknown."""
    values, floor = spectrum.singular_values, spectrum.rounding_edge
    return _energy_above(spectrum, values[values > floor])


def _energy_above(spectrum: Spectrum, above: Values) -> float:
    if spectrum.complete:
        return noise.resolvable_energy_share(spectrum.singular_values, spectrum.rounding_edge)
    if math.isnan(spectrum.rounding_edge) or spectrum.frobenius_norm == 0.0:
        return math.nan
    return float(np.sum((above / spectrum.frobenius_norm) ** 2))


def _counted(count: int | None, *, stands: bool) -> Reading:
    if count is None:
        return _NOT_COMPUTED
    return resolved(count) if stands else without_value("not resolvable", count)


def _of_all_values(
    value: float, formula: Callable[[Values], float], spectrum: Spectrum, above: Values
) -> Reading:
    if spectrum.frobenius_norm == 0.0:
        return without_value("undefined")
    if math.isnan(value):
        return _NOT_COMPUTED
    if above.size and abs(formula(above) / value - 1.0) <= TOLERATED_CHANGE:
        return resolved(value)
    return without_value("not resolvable", value)


def _fitted(
    law: str, fit: Callable[..., DecayFit], values: Values, above: int, first: int, last: int
) -> dict[str, Reading]:
    of_all = fit(values, first=first, last=last)
    names = {f"{law}_rate": "rate", f"{law}_r_squared": "r_squared"}
    if math.isnan(of_all.rate):
        return dict.fromkeys(names, without_value("undefined"))
    end = min(last, above)
    if end - first + 1 < 3:
        return {
            name: without_value("not resolvable", getattr(of_all, field))
            for name, field in names.items()
        }
    fitted = fit(values, first=first, last=end)
    return {name: resolved(getattr(fitted, field)) for name, field in names.items()}
