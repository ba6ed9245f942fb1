"""The spectrum of one update, and every number reported of it.

    spectrum = measure(update, method="gram")
    row(spectrum)["energy_rank_90"], row(spectrum)["resolvable"]

A `Spectrum` keeps the singular values and what is needed to judge them (noise floor, how
they were computed); ranks aren't kept, they are pure functions of it (`row`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.spectra import noise, ranks, svd
from lowrank_study.spectra.updates import FactoredUpdate, MeasureMethod, Update


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Singular values of one update, its noise floor, and how both were got."""

    module: str
    """Module path of the matrix."""
    layer: int | None
    """Layer number, or None outside of a numbered stack."""
    role: str
    """What the matrix does in its layer."""
    shape: tuple[int, int]
    """(out features, in features)."""
    active_shape: tuple[int, int]
    """The same without rows and columns in which nothing changed at all."""
    storage_dtype: str
    """Coarsest dtype of the files the update came from."""
    singular_values: npt.NDArray[np.float64]
    """Descending, in the unit of the weights. Those beyond the end are zero if `complete`."""
    frobenius_norm: float
    """Frobenius norm of the update, from its entries and not from the singular values."""
    base_frobenius_norm: float
    """Frobenius norm of W0; NaN where W0 wasn't given."""
    rounding_edge: float
    """Largest singular value that rounding in storage is expected to add; NaN if unknown."""
    rounding_frobenius_norm: float
    """Frobenius norm that rounding in storage is expected to add; NaN if unknown."""
    factored: bool
    """Whether the update was given by factors, so that its rank is bounded by structure."""
    rank_eps: float
    """Machine epsilon that `numerical_rank` takes: that of the arithmetic behind the entries."""
    method: str
    """"gram", "svd", "factors" or "certified"."""
    absolute_error: float
    """Bound on the error of each singular value."""
    complete: bool
    """Whether all non-zero singular values are given; if not, some ranks are undefined."""
    captured_energy_share: float
    """Lower bound on the share of the energy in the given values; 1.0 if `complete`."""
    residual_norm: float
    """Upper bound on the Frobenius norm of what was left out; 0.0 if `complete`."""


def measure(update: Update, *, method: MeasureMethod) -> Spectrum:
    """Give the spectrum of an update and its noise floor.

    Args:
        update: One matrix; factors are never multiplied out, whatever the method.
        method: For a dense update: "gram" (all values, error <= 1e-7 sigma_1), "svd" (all
            values, error about 1e-15 sigma_1), or "certified" (leading values, until the
            energy ranks at 90, 95 and 99 % are certain; falls back to "gram").

    Returns:
        The spectrum, singular values in the unit of the weights.

    Raises:
        InputError: If the update holds NaN or Inf, or the method is unknown.
    """
    if method not in ("gram", "svd", "certified"):
        raise InputError(f"method {method!r}; choose 'gram', 'svd' or 'certified'")
    found = update.decompose(method)
    floor = update.rounding_floor()
    return Spectrum(
        module=update.name,
        layer=update.layer,
        role=update.role,
        shape=found.shape,
        active_shape=found.active_shape,
        storage_dtype=update.storage_dtype,
        singular_values=found.singular_values,
        frobenius_norm=found.frobenius_norm,
        base_frobenius_norm=math.nan if update.W0_OI is None else svd.frobenius_norm(update.W0_OI),
        rounding_edge=floor.edge,
        rounding_frobenius_norm=floor.frobenius_norm,
        factored=isinstance(update, FactoredUpdate),
        rank_eps=update.rank_eps,
        method=found.method,
        absolute_error=found.absolute_error,
        complete=found.complete,
        captured_energy_share=found.captured_energy_share,
        residual_norm=found.residual_norm,
    )


def row(spectrum: Spectrum) -> dict[str, Any]:
    """Give every number reported of a spectrum: one row of the spectra table, without run_id.

    `numerical_rank` counts what stands above numpy's tolerance and, for a difference of
    checkpoints, above the rounding floor. `mp_edge`, `rank_above_mp_edge` and
    `gavish_donoho_rank` take the noise from the spectrum itself; an update by factors with
    fewer than min(m, n) singular values has none, so that they are 0 and its numerical rank.
    `resolvable` speaks of `energy_rank_90`; `resolvable_at` tells it of other shares.
    Ranks that need all singular values are None or NaN for a spectrum that isn't `complete`;
    ratios of a zero update are NaN.

    Args:
        spectrum: As `measure` gives it.

    Returns:
        Column name to value, in the table's order.
    """
    values, shape = spectrum.singular_values, spectrum.shape
    active = spectrum.active_shape
    complete = spectrum.complete
    tolerance = ranks.rank_tolerance(values, shape, spectrum.rank_eps, spectrum.absolute_error)
    # What rounding of a difference adds are directions of their own, none of the update's;
    # what it does to factors only moves the directions that are there.
    floor = (
        0.0 if spectrum.factored or math.isnan(spectrum.rounding_edge) else spectrum.rounding_edge
    )
    numerical = int(np.count_nonzero(values > max(tolerance, floor)))
    structural = spectrum.factored and values.size < min(shape)
    structural = structural or spectrum.frobenius_norm == 0.0
    edge = math.nan if not complete else 0.0
    above_edge = int(np.count_nonzero(values > tolerance)) if complete else None
    gavish_donoho = above_edge
    if complete and not structural:
        edge = noise.marchenko_pastur_edge(values, active)
        above_edge = int(np.count_nonzero(values > max(edge, tolerance)))
        gavish_donoho = noise.gavish_donoho_rank(values, active, tolerance=tolerance)
    base = spectrum.base_frobenius_norm
    return {
        "module": spectrum.module,
        "layer": spectrum.layer,
        "role": spectrum.role,
        "out_features": shape[0],
        "in_features": shape[1],
        "storage_dtype": spectrum.storage_dtype,
        "frobenius_norm": spectrum.frobenius_norm,
        "base_frobenius_norm": base,
        "relative_norm": spectrum.frobenius_norm / base if base > 0 else math.nan,
        "numerical_rank": numerical if complete else None,
        "stable_rank": _stable_rank(spectrum),
        "energy_rank_90": energy_rank_of(spectrum, 0.90),
        "energy_rank_95": energy_rank_of(spectrum, 0.95),
        "energy_rank_99": energy_rank_of(spectrum, 0.99),
        "effective_rank": ranks.effective_rank(values) if complete else math.nan,
        "participation_ratio": ranks.participation_ratio(values) if complete else math.nan,
        "sigma1_over_sigma10": ranks.sigma_ratio(values, 10),
        "mp_edge": edge,
        "rank_above_mp_edge": above_edge,
        "gavish_donoho_rank": gavish_donoho,
        "rounding_floor": spectrum.rounding_edge,
        "resolvable": resolvable_at(spectrum, 0.90),
    }


def energy_rank_of(spectrum: Spectrum, share: float) -> int | None:
    """Give the energy rank of a spectrum, or None where an incomplete one doesn't settle it.

    Args:
        spectrum: As `measure` gives it.
        share: Share of the energy, in (0, 1].

    Returns:
        The rank of `ranks.energy_rank`; for an incomplete spectrum only if it is certain.
    """
    if spectrum.complete:
        return ranks.energy_rank(spectrum.singular_values, share)
    low, high = svd.energy_rank_bounds(
        spectrum.singular_values, spectrum.frobenius_norm, spectrum.residual_norm, share
    )
    return low if low == high else None


def resolvable_at(spectrum: Spectrum, share: float) -> bool:
    """Decide whether the energy rank at a share stands above the rounding floor.

    As `noise.is_resolvable`. Of an incomplete spectrum the values left out count as energy
    under the floor, so the answer can only be too careful.

    Args:
        spectrum: As `measure` gives it.
        share: Share of the energy, in (0, 1].

    Returns:
        False where the rank mustn't be given without the remark that rounding decides it.
    """
    values = spectrum.singular_values
    if spectrum.complete or values.size == 0:
        return noise.is_resolvable(values, spectrum.rounding_edge, share)
    above = values[values > spectrum.rounding_edge] / spectrum.frobenius_norm
    return bool(np.sum(above**2) >= share)


def _stable_rank(spectrum: Spectrum) -> float:
    if spectrum.complete or spectrum.singular_values.size == 0:
        return ranks.stable_rank(spectrum.singular_values)
    return (spectrum.frobenius_norm / float(spectrum.singular_values[0])) ** 2


INTEGER_COLUMNS = (
    "layer", "out_features", "in_features", "numerical_rank", "energy_rank_90",
    "energy_rank_95", "energy_rank_99", "rank_above_mp_edge", "gavish_donoho_rank",
)  # fmt: skip
SPECTRA_COLUMNS = (
    "run_id", "module", "layer", "role", "out_features", "in_features", "storage_dtype",
    "frobenius_norm", "base_frobenius_norm", "relative_norm", "numerical_rank", "stable_rank",
    "energy_rank_90", "energy_rank_95", "energy_rank_99", "effective_rank",
    "participation_ratio", "sigma1_over_sigma10", "mp_edge", "rank_above_mp_edge",
    "gavish_donoho_rank", "rounding_floor", "resolvable",
)  # fmt: skip


def spectra_table(run_id: str, spectra: Iterable[Spectrum]) -> pd.DataFrame:
    """Give the spectra table of one run: a row for each matrix, counts as nullable Int64.

    Args:
        run_id: Written into the first column.
        spectra: The run's spectra, in the order of the rows.

    Returns:
        The columns of `row`, run_id before them; concatenate for several runs.
    """
    rows = [{"run_id": run_id} | row(spectrum) for spectrum in spectra]
    table = pd.DataFrame(rows, columns=list(SPECTRA_COLUMNS))
    kinds = dict.fromkeys(INTEGER_COLUMNS, "Int64") | {"resolvable": "bool"}
    texts = ("run_id", "module", "role", "storage_dtype")
    kinds |= dict.fromkeys(texts, "str")
    floats = [c for c in SPECTRA_COLUMNS if c not in kinds]
    return table.astype(kinds | dict.fromkeys(floats, "float64"))


def singular_values_table(run_id: str, spectra: Iterable[Spectrum]) -> pd.DataFrame:
    """Give the singular values of one run in long form.

    Args:
        run_id: Written into the first column.
        spectra: The run's spectra.

    Returns:
        Columns run_id, module, layer (Int64), role, index (from 1), singular_value. Zeros
        beyond the end of a spectrum have no row.
    """
    parts = [
        pd.DataFrame(
            {
                "run_id": run_id,
                "module": spectrum.module,
                "layer": pd.array([spectrum.layer] * spectrum.singular_values.size, dtype="Int64"),
                "role": spectrum.role,
                "index": np.arange(1, spectrum.singular_values.size + 1),
                "singular_value": spectrum.singular_values,
            }
        )
        for spectrum in spectra
        if spectrum.singular_values.size
    ]
    if parts:
        return pd.concat(parts, ignore_index=True)
    return pd.DataFrame(
        {
            "run_id": pd.Series(dtype="str"),
            "module": pd.Series(dtype="str"),
            "layer": pd.Series(dtype="Int64"),
            "role": pd.Series(dtype="str"),
            "index": pd.Series(dtype="int64"),
            "singular_value": pd.Series(dtype="float64"),
        }
    )
