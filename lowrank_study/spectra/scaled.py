"""The rounding floor of a difference if one side was stored in float8 with scales.

The step of a stored number is its float8 step times its scale. The dequantised number alone does
not determine the step: a weight of 0.02 may be stored as 20 with a step of 2, or as 0.02.

    floor = floor_of_scaled(match, update.W0_OI, update.delta_OI)

Axis suffixes: O out features, I in features.
"""

import math
from dataclasses import replace

import numpy as np

from lowrank_study.checkpoints import Match
from lowrank_study.spectra.rounding import (
    FLOAT_FORMATS,
    NO_ROUNDING,
    UNKNOWN_ROUNDING,
    RoundingFloor,
)
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.svd import Matrix
from lowrank_study.spectra.updates import DenseUpdate


def with_scaled_floor(spectrum: Spectrum, match: Match, update: DenseUpdate) -> Spectrum:
    """Return the spectrum with the floor that the scales of its match give, if there are any."""
    if not any(side.weights.is_scaled(side.tensor) for side in (match.before, match.after)):
        return spectrum
    assert update.W0_OI is not None
    floor = floor_of_scaled(match, update.W0_OI, update.delta_OI)
    return replace(spectrum, rounding_edge=floor.edge, rounding_frobenius_norm=floor.frobenius_norm)


def floor_of_scaled(match: Match, W0_OI: Matrix, delta_OI: Matrix) -> RoundingFloor:
    """Estimate the rounding error of a difference whose sides have steps of their own.

    As in `rounding.rounding_floor`, every entry has an error of up to half a step, and unchanged
    rows and columns are left out.
    """
    changed = delta_OI != 0
    rows, columns = changed.any(axis=1), changed.any(axis=0)
    if not rows.any():
        rows[:], columns[:] = True, True
    variances = np.zeros((int(rows.sum()), int(columns.sum())))
    kept = np.ix_(rows, columns)
    for matrix, values_OI in ((match.before, W0_OI), (match.after, W0_OI + delta_OI)):
        dtype = matrix.storage_dtype
        if dtype not in FLOAT_FORMATS:
            return UNKNOWN_ROUNDING
        scales_OI = matrix.read_scales()
        values = values_OI[kept].astype(np.float64)
        scale = 1.0 if scales_OI is None else scales_OI[: values_OI.shape[0]][kept]
        variances += (scale * _steps(values, scale, dtype)) ** 2 / 12.0
    if not variances.any():
        return NO_ROUNDING
    by_row, by_column = variances.sum(axis=1), variances.sum(axis=0)
    return RoundingFloor(
        edge=math.sqrt(by_row.max()) + math.sqrt(by_column.max()),
        frobenius_norm=math.sqrt(by_row.sum()),
    )


def _steps(values: Matrix, scale: Matrix | float, dtype: str) -> Matrix:
    """Return the step at each stored number, which is its value divided by the scale."""
    bits, smallest = FLOAT_FORMATS[dtype]
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of zero gives no step
        stored = np.nan_to_num(np.abs(values / scale), posinf=0.0)
    exponents = np.where(stored > 0.0, np.frexp(stored)[1] - bits, smallest)
    steps: Matrix = np.ldexp(1.0, np.maximum(exponents, smallest))
    return steps
