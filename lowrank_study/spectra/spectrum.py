"""The spectrum of one update: its singular values, and the noise floor to judge them by.

    spectrum = measure(update, method="gram")
    spectrum.energy_rank(0.90), spectrum.resolvable_at(0.90)

Ranks are not stored. `measures.py` computes all of them from a `Spectrum`.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from lowrank_study.errors import InputError
from lowrank_study.spectra import ranks, rounding, svd
from lowrank_study.spectra.updates import FactoredUpdate, MeasureMethod, Update

Values = npt.NDArray[np.float64]
METHODS: tuple[MeasureMethod, ...] = ("gram", "svd", "certified")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum(svd.Decomposition):
    """The singular values of one update, with its noise floor."""

    module: str
    """Module path of the matrix."""
    layer: int | None
    """Layer number, or None outside of a numbered stack."""
    role: str
    """Function of the matrix in its layer."""
    storage_dtype: str
    """Coarsest dtype of the files the update came from."""
    base_frobenius_norm: float
    """Frobenius norm of W0; NaN if W0 is unknown."""
    rounding_edge: float
    """Largest singular value that rounding in storage is expected to add; NaN if unknown."""
    rounding_frobenius_norm: float
    """Frobenius norm that rounding in storage is expected to add; NaN if unknown."""
    factored: bool
    """Whether the update was given by factors, so that its structure bounds its rank."""
    rank_eps: float
    """Machine epsilon for `numerical_rank`: that of the arithmetic behind the entries."""

    @property
    def is_zero(self) -> bool:
        """Whether nothing changed."""
        return self.frobenius_norm == 0.0

    @property
    def is_low_rank_by_structure(self) -> bool:
        """Whether the update has fewer singular values than its shape allows, so no noise tail."""
        return self.is_zero or (self.factored and self.singular_values.size < min(self.shape))

    @property
    def above_floor(self) -> Values:
        """Singular values above the rounding floor; none if the floor is unknown."""
        return self.singular_values[self.singular_values > self.rounding_edge]

    @property
    def tolerance(self) -> float:
        """Value up to which a singular value counts as zero."""
        return ranks.rank_tolerance(
            self.singular_values, self.shape, self.rank_eps, self.absolute_error
        )

    def energy_above_floor(self) -> float:
        """Return the share of the energy above the rounding floor; NaN if unknown or zero.

        The missing values of an incomplete spectrum count as energy below the floor.
        """
        if self.complete:
            return rounding.resolvable_energy_share(self.singular_values, self.rounding_edge)
        if math.isnan(self.rounding_edge):
            return math.nan
        return float(np.sum((self.above_floor / self.frobenius_norm) ** 2))

    def energy_rank(self, share: float) -> int | None:
        """Return the energy rank at a share, or None if an incomplete spectrum leaves it open."""
        if self.complete:
            return ranks.energy_rank(self.singular_values, share)
        low, high = svd.energy_rank_bounds(
            self.singular_values, self.frobenius_norm, self.residual_norm, share
        )
        return low if low == high else None

    def resolvable_at(self, share: float) -> bool:
        """Return whether the energy rank at a share is that of the update, not of rounding.

        It does if the directions above the floor hold the share. A zero update is resolvable only
        without a floor: otherwise "no update" and "smaller than a step" look alike.
        """
        if self.is_zero:
            return self.rounding_edge == 0.0
        return self.energy_above_floor() >= share


def measure(update: Update, *, method: MeasureMethod) -> Spectrum:
    """Return the spectrum of an update and its noise floor.

    For a dense update, "gram" gives all values with an error up to 1e-7 sigma_1, "svd" all values
    with an error of about 1e-15 sigma_1, and "certified" leading values until the energy ranks at
    90, 95 and 99 % are certain. It falls back to "gram". Factors are never multiplied out.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r}; choose 'gram', 'svd' or 'certified'")
    found, floor = update.decompose(method), update.rounding_floor()
    return Spectrum(
        module=update.name,
        layer=update.layer,
        role=update.role,
        storage_dtype=update.storage_dtype,
        base_frobenius_norm=math.nan if update.W0_OI is None else svd.frobenius_norm(update.W0_OI),
        rounding_edge=floor.edge,
        rounding_frobenius_norm=floor.frobenius_norm,
        factored=isinstance(update, FactoredUpdate),
        rank_eps=update.rank_eps,
        **{field.name: getattr(found, field.name) for field in fields(svd.Decomposition)},
    )
