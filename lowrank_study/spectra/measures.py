"""The one table of measures of an update: columns, tables, plots and documents derive from it.

    reading_of(MEASURE["energy_rank_90"], spectrum)
    # Reading(value=None, status="not resolvable", as_read=237.0)

A new measure is one more row of `MEASURES`. It then appears in the spectra tables, in measured
reports (CSV, page, heat map, JSON) and wherever its row says in `shown`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lowrank_study.spectra import noise, ranks
from lowrank_study.spectra.decay import Law, fit_decay
from lowrank_study.spectra.readings import (
    Reading,
    always,
    barely_changes_above_floor,
    counts_above_floor,
    decided_elsewhere,
    has_values_above_floor,
    resolved,
    without_value,
)
from lowrank_study.spectra.spectrum import Spectrum, Values

Kind = Literal["rank", "number", "percent"]
Group = Literal["rank", "size", "noise", "decay", "base", "other"]
Place = Literal["latex", "sweep", "controls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRange:
    """The range of the decay fits."""

    first: int
    """First index, from 1."""
    last: int
    """Last index; fits end earlier at the rounding floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure, and how tables and plots name it."""

    name: str
    """Its column."""
    label: str
    """Its heading."""
    kind: Kind
    """How it is written."""
    whole: bool
    """Whether it counts, so that columns hold integers."""
    group: Group
    """"base": needs W0 and `compare_with_base`. "other": needs a second update."""
    formula: str
    """Its definition, in one phrase."""
    source: str
    """Where it was proposed; may be empty."""
    on_noise: str
    """Its value on n x n Gaussian noise; empty if that says nothing."""
    shown: tuple[Place, ...]
    """Selections of measures that include it: the LaTeX table of a measured report, the tables of
    a sweep, the tables of controls."""
    value: Callable[[Spectrum], float | None] | None
    """Computes it from singular values. Returns None if an incomplete spectrum leaves it open and
    NaN if it is undefined. None for a decay fit, and for the groups "base" and "other"."""
    stands: Callable[[Spectrum, float], bool]
    """Returns whether a value is resolved, so not decided by rounding."""

    @property
    def may_be_hidden(self) -> bool:
        """Whether rounding can decide its value, so that tables hold the formula's result too."""
        return self.stands is not always

    @property
    def meaning(self) -> str:
        """Its definition with the source."""
        return f"{self.formula} ({self.source})" if self.source else self.formula


def reading_of(measure: Measure, spectrum: Spectrum) -> Reading:
    """Return the reading of a measure that needs only singular values."""
    assert measure.value is not None
    value = measure.value(spectrum)
    if value is None:
        return without_value("not computed")
    if math.isnan(value) or measure.stands(spectrum, value):
        return resolved(value)
    return without_value("not resolvable", value)


def readings(spectrum: Spectrum, fits: FitRange) -> dict[str, Reading]:
    """Return every measure of one update that needs no other matrix, by name."""
    found = {m.name: reading_of(m, spectrum) for m in MEASURES if m.value is not None}
    for law in LAWS:
        found |= _fitted(law, spectrum, fits)
    return found


def shown_in(place: Place) -> tuple[Measure, ...]:
    """Return the measures of one selection, in the order of the table."""
    return tuple(measure for measure in MEASURES if place in measure.shown)


# ---------------------------------------------------------------- values


def _relative_norm(s: Spectrum) -> float:
    base = s.base_frobenius_norm
    return s.frobenius_norm / base if base > 0 else math.nan


def _stable_rank(s: Spectrum) -> float:
    if s.complete:
        return ranks.stable_rank(s.singular_values)
    return (s.frobenius_norm / float(s.singular_values[0])) ** 2


def _numerical_rank(s: Spectrum) -> int | None:
    # Rounding adds directions to a difference; factors it only moves.
    floor = 0.0 if s.factored or math.isnan(s.rounding_edge) else s.rounding_edge
    return _count_above(s, floor)


def _noise_edge(s: Spectrum) -> float | None:
    if not s.complete:
        return None
    if s.is_low_rank_by_structure:
        return 0.0
    return noise.marchenko_pastur_edge(s.singular_values, s.active_shape)


def _rank_above_edge(s: Spectrum) -> int | None:
    return _count_above(s, _noise_edge(s) or 0.0)


def _gavish_donoho_rank(s: Spectrum) -> int | None:
    if not s.complete or s.is_low_rank_by_structure:
        return _count_above(s, 0.0)
    return noise.gavish_donoho_rank(s.singular_values, s.active_shape, tolerance=s.tolerance)


def _count_above(s: Spectrum, threshold: float) -> int | None:
    if not s.complete:
        return None
    return int(np.count_nonzero(s.singular_values > max(s.tolerance, threshold)))


def _fitted(law: Law, s: Spectrum, fits: FitRange) -> dict[str, Reading]:
    """Return the readings of a decay law, fitted above the rounding floor only."""
    of_all = fit_decay(s.singular_values, law=law, first=fits.first, last=fits.last)
    names = f"{LAWS[law]}_rate", f"{LAWS[law]}_r_squared"
    if math.isnan(of_all.rate):
        return dict.fromkeys(names, without_value("undefined"))
    last = min(fits.last, s.above_floor.size)
    if last - fits.first + 1 < 3:
        values = of_all.rate, of_all.r_squared
        return {n: without_value("not resolvable", v) for n, v in zip(names, values, strict=True)}
    fit = fit_decay(s.singular_values, law=law, first=fits.first, last=last)
    return {names[0]: resolved(fit.rate), names[1]: resolved(fit.r_squared)}


# ---------------------------------------------------------------- the table


def _measure(
    name: str,
    label: str,
    kind: Kind,
    group: Group,
    formula: str,
    value: Callable[[Spectrum], float | None] | None = None,
    *,
    stands: Callable[[Spectrum, float], bool] = always,
    whole: bool = False,
    source: str = "",
    on_noise: str = "",
    shown: tuple[Place, ...] = (),
) -> Measure:
    return Measure(
        name=name, label=label, kind=kind, group=group, formula=formula, value=value,
        stands=stands, whole=whole, source=source, on_noise=on_noise, shown=shown,
    )  # fmt: skip


def _energy_rank(percent: int, on_noise: str, shown: tuple[Place, ...]) -> Measure:
    share = percent / 100
    return _measure(
        f"energy_rank_{percent}", f"{percent} % energy rank", "rank", "rank",
        f"least k whose k largest σ² hold {percent} % of ‖ΔW‖²",
        lambda s: s.energy_rank(share), stands=lambda s, _: s.is_zero or s.resolvable_at(share),
        whole=True, on_noise=on_noise, shown=shown,
    )  # fmt: skip


def of_all_values(
    name: str,
    label: str,
    formula: str,
    function: Callable[[Values], float],
    *,
    source: str = "",
    on_noise: str,
    shown: tuple[Place, ...],
) -> Measure:
    """Return the row of a rank that is a function of all singular values.

    It is resolved if dropping the values below the rounding floor hardly changes it.
    """
    return _measure(
        name, label, "rank", "rank", formula,
        lambda s: function(s.singular_values) if s.complete else None,
        stands=barely_changes_above_floor(function), source=source, on_noise=on_noise, shown=shown,
    )  # fmt: skip


EVERYWHERE: tuple[Place, ...] = ("latex", "sweep", "controls")
LAWS: dict[Law, str] = {"power": "power_law", "exponential": "exponential"}

MEASURES = (
    _energy_rank(90, "0.51 n", EVERYWHERE),
    _energy_rank(95, "0.61 n", ()),
    _energy_rank(99, "0.77 n", EVERYWHERE),
    of_all_values(
        "effective_rank", "effective rank", "exp of the entropy of σ/Σσ", ranks.effective_rank,
        source="Roy & Vetterli 2007", on_noise="0.80 n", shown=EVERYWHERE),
    _measure(
        "stable_rank", "stable rank", "rank", "rank", "‖ΔW‖²_F / σ₁²", _stable_rank,
        stands=barely_changes_above_floor(ranks.stable_rank),
        source="Rudelson & Vershynin 2007", on_noise="n / 4", shown=EVERYWHERE),
    of_all_values(
        "participation_ratio", "participation ratio", "(Σσ²)² / Σσ⁴", ranks.participation_ratio,
        source="Bell & Dean 1970", on_noise="0.50 n", shown=("controls",)),
    _measure(
        "numerical_rank", "numerical rank", "rank", "rank",
        "number of σ above the tolerance of the arithmetic and above the rounding floor",
        _numerical_rank, stands=has_values_above_floor, whole=True, on_noise="n"),
    _measure(
        "gavish_donoho_rank", "Gavish–Donoho rank", "rank", "noise",
        "number of σ above the optimal hard threshold for unknown noise",
        _gavish_donoho_rank, stands=counts_above_floor, whole=True,
        source="Gavish & Donoho 2014", on_noise="0", shown=EVERYWHERE),
    _measure(
        "rank_above_mp_edge", "σ above Marchenko–Pastur", "rank", "noise",
        "number of σ above the largest σ of independent noise with the same median",
        _rank_above_edge, stands=counts_above_floor, whole=True,
        source="Marchenko & Pastur 1967", on_noise="0", shown=("sweep",)),
    _measure(
        "relative_norm", "‖ΔW‖/‖W0‖", "percent", "size", "‖ΔW‖ relative to the weight before",
        _relative_norm, shown=EVERYWHERE),
    _measure(
        "largest_singular_value", "σ₁", "number", "size", "spectral norm of the update",
        lambda s: s.singular_values[0] if s.singular_values.size else 0.0),
    _measure(
        "mp_edge", "Marchenko–Pastur edge", "number", "noise",
        "largest σ of independent noise with the same median", _noise_edge),
    _measure(
        "rounding_floor", "rounding floor", "number", "noise",
        "largest σ that rounding in storage is expected to add", lambda s: s.rounding_edge),
    _measure(
        "energy_above_floor", "energy above floor", "percent", "noise",
        "share of ‖ΔW‖² in directions above the rounding floor", Spectrum.energy_above_floor),
    _measure(
        "sigma1_over_sigma10", "σ₁/σ₁₀", "number", "decay", "ratio of the 1st and 10th σ",
        lambda s: ranks.sigma_ratio(s.singular_values, 10),
        stands=lambda s, _: s.above_floor.size >= 10),
    _measure(
        "power_law_rate", "power-law exponent", "number", "decay",
        "a in σᵢ ~ i^−a, over the values above the floor", stands=decided_elsewhere),
    _measure(
        "power_law_r_squared", "R² of power law", "number", "decay",
        "share of the variance of log σ that the power law explains", stands=decided_elsewhere),
    _measure(
        "exponential_rate", "exponential rate", "number", "decay",
        "b in σᵢ ~ e^(−b i), over the values above the floor", stands=decided_elsewhere),
    _measure(
        "exponential_r_squared", "R² of exponential", "number", "decay",
        "share of the variance of log σ that the exponential explains", stands=decided_elsewhere),
    _measure(
        "frobenius_norm", "‖ΔW‖", "number", "size", "Frobenius norm of the update",
        lambda s: s.frobenius_norm, shown=("controls",)),
    _measure(
        "amplification_factor", "amplification", "number", "base",
        "‖ΔW‖ / ‖UᵀW0V‖ along the update’s own directions",
        source="LoRA, Table 7", shown=("latex",)),
    _measure(
        "projected_norm", "‖UᵀW0V‖", "number", "base",
        "norm of W0 along the update’s own directions"),
    _measure(
        "own_projected_norm", "‖UᵀW0V‖, W0’s own", "number", "base",
        "norm of W0 along as many of its own top directions"),
    _measure(
        "random_projected_norm", "‖UᵀW0V‖, random", "number", "base",
        "norm of W0 along as many random directions: the chance level"),
    _measure(
        "directions_used", "directions used", "rank", "base",
        "leading directions of the update above its rounding floor that were used", whole=True),
    _measure(
        "overlap_left", "in W0’s top, outputs", "percent", "base",
        "share of ‖ΔW‖² in W0’s top left directions", stands=decided_elsewhere),
    _measure(
        "overlap_left_chance", "chance, outputs", "percent", "base",
        "the same for random directions"),
    _measure(
        "overlap_right", "in W0’s top, inputs", "percent", "base",
        "share of ‖ΔW‖² in W0’s top right directions", stands=decided_elsewhere),
    _measure(
        "overlap_right_chance", "chance, inputs", "percent", "base",
        "the same for random directions"),
    _measure(
        "intruder_dimensions", "intruder dimensions", "rank", "base",
        "top left directions of W0+ΔW unlike any of W0", whole=True,
        source="Shuttleworth et al. 2024", shown=("latex",)),
    _measure(
        "similarity_top", "φ(1, 1)", "number", "other",
        "squared cosine of both updates’ first right directions", source="LoRA, eq. 4"),
    _measure(
        "similarity_top_chance", "φ(1, 1) by chance", "number", "other",
        "the same for random directions"),
    _measure(
        "similarity", "φ(i, j), right", "number", "other",
        "share of the smaller leading right subspace inside the other’s", shown=("latex",)),
    _measure(
        "similarity_left", "φ(i, j), left", "number", "other", "the same on the outputs"),
    _measure(
        "similarity_chance", "φ(i, j) by chance", "number", "other",
        "max(i, j)/d, for random right subspaces"),
    _measure(
        "similarity_left_chance", "φ(i, j) by chance, left", "number", "other",
        "max(i, j)/d, for random left subspaces"),
    _measure(
        "smallest_angle", "smallest angle (°)", "number", "other",
        "smallest principal angle of both leading right subspaces"),
    _measure(
        "largest_angle", "largest angle (°)", "number", "other",
        "largest principal angle of both leading right subspaces"),
)  # fmt: skip

MEASURE = {measure.name: measure for measure in MEASURES}
