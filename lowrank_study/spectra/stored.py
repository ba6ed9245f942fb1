"""The spectrum of the difference of two stored matrices, with only blocks of them in memory.

A large vocabulary takes gigabytes in float64; its Gram matrix does not. The matrices are read
twice, in blocks of a few rows (or columns, if there are more of them):

    found = survey(match.read_blocks(BLOCK_ENTRIES), shape=match.shape, dtypes=("bfloat16",) * 2)
    if found.not_finite is None:
        sums = accumulate(match.read_blocks(BLOCK_ENTRIES), found)
        spectrum = spectrum_of(sums, name="model.embed_tokens", layer=None, role="embed_tokens")

The numbers are those of `spectrum.measure(update, method="gram")`. Both matrices must arrive as
float32, so that sums of squares in float64 cannot overflow.

Axis suffixes: L the longer axis of the matrix, S the shorter one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints import coarser
from lowrank_study.spectra.eigenvalues import GramMatrix
from lowrank_study.spectra.precision import UsedBits, coarse_start
from lowrank_study.spectra.rounding import (
    FLOAT_FORMATS,
    NO_ROUNDING,
    UNKNOWN_ROUNDING,
    RoundingFloor,
)
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.svd import GRAM_ERROR, Mask, selected, svd_of_matrix

FloatArray = npt.NDArray[np.floating[Any]]
FloatVector = npt.NDArray[np.float64]
Block = tuple[slice, FloatArray, FloatArray]
"""A part of the longer axis, with W0 and W there, both (part, shorter axis)."""

BLOCK_ENTRIES = 2**22
"""Entries of a block: 16 MiB per float32 matrix, 32 MiB for the difference."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """Facts from the first reading."""

    shape: tuple[int, int]
    not_finite: str | None
    """Number of NaN and infinite entries in words, or None if there are none."""
    changed_L: Mask
    """Rows of the longer axis that changed."""
    changed_S: Mask
    """Columns of the shorter axis that changed."""
    base_norm: float
    dtypes: tuple[str, str]
    """Storage dtype of W0, and the coarsest dtype that W has been through."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Sums from the second reading."""

    survey: Survey
    changes: "GramMatrix | _FewRows"
    """Gives the singular values of the difference."""
    norm: float
    storage_dtype: str
    """Coarsest dtype whose rounding is in the difference."""
    floor: RoundingFloor
    """The floor that this rounding sets."""


def survey(blocks: Iterable[Block], *, shape: tuple[int, int], dtypes: tuple[str, str]) -> Survey:
    """Read two matrices for the first time."""
    changed_L = np.zeros(max(shape), dtype=bool)
    changed_S = np.zeros(min(shape), dtype=bool)
    bits = UsedBits()
    nan = infinite = 0
    energy = 0.0
    for part, W0_LS, W_LS in blocks:
        # NaN and Inf spread to the sum, so one pass finds out whether to count them.
        with np.errstate(invalid="ignore"):
            total = float(np.sum(W0_LS, dtype=np.float64) + np.sum(W_LS, dtype=np.float64))
        if not math.isfinite(total):
            for block in (W0_LS, W_LS):
                nan += int(np.count_nonzero(np.isnan(block)))
                infinite += int(np.count_nonzero(np.isinf(block)))
        if nan or infinite:
            continue
        changed_LS = W0_LS != W_LS
        changed_L[part] = changed_LS.any(axis=1)
        changed_S |= changed_LS.any(axis=0)
        wide = W0_LS.astype(np.float64).ravel(order="K")
        energy += float(wide @ wide)
        bits.add(W_LS)
    return Survey(
        shape=shape,
        not_finite=f"{nan} NaN and {infinite} infinite values" if nan or infinite else None,
        changed_L=changed_L,
        changed_S=changed_S,
        base_norm=math.sqrt(energy),
        dtypes=(dtypes[0], coarser(dtypes[1], bits.dtype())),
    )


def accumulate(blocks: Iterable[Block], found: Survey) -> Sums:
    """Read two matrices again and add up what the spectrum of their difference needs.

    Unchanged rows and columns are left out: they change no other singular value and hold no
    rounding error. If W0 is stored more coarsely than W, `CoarseStart` decides whether its
    rounding is in the difference.
    """
    changed_L, changed_S = found.changed_L, found.changed_S
    count_L, count_S = int(np.count_nonzero(changed_L)), int(np.count_nonzero(changed_S))
    changes: GramMatrix | _FewRows
    # With at most half as many rows, the rows themselves take less memory than the Gram matrix.
    changes = _FewRows(count_L, count_S) if 2 * count_L <= count_S else GramMatrix(count_S)
    if count_L == 0:
        # Changes smaller than a step are hidden, possibly everywhere.
        changed_L, changed_S = np.ones_like(changed_L), np.ones_like(changed_S)
    before, after = found.dtypes
    start = coarse_start(before, after)
    possible = {coarser(before, after)} if start is None else {before, after}
    floors = {dtype: _FloorSums(dtype, changed_L.size, changed_S.size) for dtype in possible}
    energy = 0.0
    for part, W0_LS, W_LS in blocks:
        if start is not None:
            # All rows count: those that kept their stored numbers show that nothing was rounded.
            start.add(W0_LS, np.subtract(W_LS, W0_LS, dtype=np.float64))
        kept = changed_L[part]
        W0_LS, W_LS = (selected(side_LS, kept, changed_S) for side_LS in (W0_LS, W_LS))
        for sums in floors.values():
            sums.add(np.flatnonzero(kept) + part.start, changed_S, W0_LS, W_LS)
        if count_L == 0 or W0_LS.size == 0:
            continue
        delta_LS = np.subtract(W_LS, W0_LS, dtype=np.float64)
        flat = delta_LS.ravel(order="K")
        energy += float(flat @ flat)
        changes.add(delta_LS)
    rounded = start is None or start.is_rounded()
    dtype = coarser(before, after) if rounded else after
    return Sums(
        survey=found,
        changes=changes,
        norm=math.sqrt(energy),
        storage_dtype=dtype,
        # Zeros on both sides have no step.
        floor=floors[dtype].floor() if energy or found.base_norm else NO_ROUNDING,
    )


def spectrum_of(sums: Sums, *, name: str, layer: int | None, role: str) -> Spectrum:
    """Return the spectrum of a difference from the sums of `accumulate`."""
    found = sums.survey
    active_L, active_S = int(found.changed_L.sum()), int(found.changed_S.sum())
    # If fewer rows than columns changed, the remaining values are exactly zero.
    values = sums.changes.singular_values()[: min(active_L, active_S)]
    tall = found.shape[0] >= found.shape[1]
    return Spectrum(
        module=name,
        layer=layer,
        role=role,
        shape=found.shape,
        active_shape=(active_L, active_S) if tall else (active_S, active_L),
        storage_dtype=sums.storage_dtype,
        singular_values=values,
        frobenius_norm=sums.norm,
        base_frobenius_norm=found.base_norm,
        rounding_edge=sums.floor.edge,
        rounding_frobenius_norm=sums.floor.frobenius_norm,
        factored=False,
        rank_eps=float(np.finfo(np.float32).eps),
        method="gram",
        absolute_error=GRAM_ERROR * float(values[0]) if values.size else 0.0,
        complete=True,
        captured_energy_share=1.0,
        residual_norm=0.0,
    )


class _FewRows:
    """A wide matrix whose rows arrive in blocks, stored as it is."""

    def __init__(self, rows: int, columns: int) -> None:
        self._delta_LS = np.empty((rows, columns))
        self._done = 0

    def add(self, delta_LS: FloatVector) -> None:
        self._delta_LS[self._done : self._done + delta_LS.shape[0]] = delta_LS
        self._done += delta_LS.shape[0]

    def singular_values(self) -> FloatVector:
        if self._delta_LS.size == 0:
            return np.zeros(0)
        return svd_of_matrix(self._delta_LS, method="gram").singular_values


class _FloorSums:
    """`rounding.rounding_floor`, block by block."""

    def __init__(self, dtype: str, long: int, short: int) -> None:
        self._format = FLOAT_FORMATS.get(dtype)
        self._sums_L, self._sums_S = np.zeros(long), np.zeros(short)

    def add(self, rows: npt.NDArray[np.intp], columns: Mask, *sides_LS: FloatArray) -> None:
        if self._format is None:
            return
        bits, smallest = self._format
        for side_LS in sides_LS:
            # The exponent's bits alone give the power of two at or below each magnitude.
            fields = side_LS.astype(np.float32, copy=False).view(np.uint32) & _EXPONENT
            powers_LS = fields.view(np.float32).astype(np.float64)
            np.maximum(powers_LS, 2.0 ** (smallest + bits - 1), out=powers_LS)
            self._sums_L[rows] += np.einsum("ij,ij->i", powers_LS, powers_LS)
            self._sums_S[columns] += np.einsum("ij,ij->j", powers_LS, powers_LS)

    def floor(self) -> RoundingFloor:
        if self._format is None:
            return UNKNOWN_ROUNDING
        # The mean square of the error is the squared step above the power of two, over 12.
        root = 2.0 ** (1 - self._format[0]) / math.sqrt(12.0)
        return RoundingFloor(
            edge=root * (math.sqrt(self._sums_L.max()) + math.sqrt(self._sums_S.max())),
            frobenius_norm=root * math.sqrt(self._sums_L.sum()),
        )


_EXPONENT = np.uint32(0x7F800000)
