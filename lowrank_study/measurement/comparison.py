"""Readings of one update against the weight it updates, and against a second update.

    against_base(update, spectrum, directions=8, intruders=10, epsilon=0.5)
    against_other(
        directions_above_floor(update, spectrum, 8), directions_above_floor(other, its_spectrum, 8)
    )

Only directions above the rounding floor are compared, because those below come from rounding.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrank_study.spectra.against_base import (
    amplification,
    intruder_dimensions,
    left_singular_vectors,
    overlap_with_base,
)
from lowrank_study.spectra.measures import MEASURES
from lowrank_study.spectra.readings import Reading, resolved, without_value
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.subspaces import (
    Directions,
    chance_similarity,
    principal_angles,
    similarity_grid,
)
from lowrank_study.spectra.svd import frobenius_norm
from lowrank_study.spectra.updates import DenseUpdate, Update

BASE_MEASURES = tuple(measure.name for measure in MEASURES if measure.group == "base")
_ALONG_DIRECTIONS = (
    "amplification_factor", "projected_norm", "own_projected_norm", "random_projected_norm",
    "directions_used",
)  # fmt: skip
OTHER_MEASURES = tuple(measure.name for measure in MEASURES if measure.group == "other")


LARGEST_COMPARED = 2**28
"""Entries of the largest matrix whose singular vectors are computed: 2 GB in float64, a few times
over. Larger ones, such as vocabularies of large models, only get singular values."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Similarity:
    """Two updates of one matrix, direction by direction."""

    right_grid: npt.NDArray[np.float64]
    """Entry [i - 1, j - 1] is phi(i, j) of the right singular subspaces."""
    right_dimension: int
    """d of the chance level max(i, j) / d of that grid."""
    left_grid: npt.NDArray[np.float64]
    """The same for the left singular subspaces."""
    left_dimension: int
    """d of its chance level."""
    angles: npt.NDArray[np.float64]
    """Principal angles of the leading right subspaces, ascending, in degrees."""


def is_too_large(shape: tuple[int, int]) -> bool:
    """Return whether singular vectors of a matrix of this size take too much memory."""
    return shape[0] * shape[1] > LARGEST_COMPARED


def directions_above_floor(
    update: Update | None, spectrum: Spectrum, wanted: int
) -> Directions | None:
    """Return the leading directions above the rounding floor.

    The result is None if there are none, or if a dense update is too large or was not kept.
    """
    count = min(wanted, spectrum.above_floor.size)
    if (
        update is None
        or count == 0
        or (isinstance(update, DenseUpdate) and is_too_large(update.shape))
    ):
        return None
    return update.leading_directions(count)


def against_base(
    update: Update, spectrum: Spectrum, *, directions: int, intruders: int, epsilon: float
) -> tuple[dict[str, Reading], tuple[float, ...]]:
    """Return the readings of the group "base", and the |cos| that decide which are intruders.

    At most `directions` leading directions of the update and of W0 are compared. Each of the first
    `intruders` directions of W0 + delta has a largest |cos| to the left singular vectors of W0. It
    is an intruder if this is below `epsilon` (the paper: 10 and .5).

    Source:
        Hu et al. 2021, Table 7; Shuttleworth et al. 2024, algorithm 1.
    """
    result = dict.fromkeys(BASE_MEASURES, without_value("undefined"))
    assert update.W0_OI is not None
    if is_too_large(update.shape):
        return not_compared(), ()
    if spectrum.frobenius_norm == 0.0 or frobenius_norm(update.W0_OI) == 0.0:
        return result, ()
    count = min(directions, spectrum.above_floor.size)
    W0_left_OK = left_singular_vectors(update.W0_OI)
    if count:
        own = np.linalg.norm(W0_left_OK[:, :count].T @ update.W0_OI.astype(np.float64))
        found = amplification(update, k=count)
        norms = found.projected_norm, float(own), found.random_projected_norm
        values = map(resolved, (found.factor, *norms, found.k))
        result |= zip(_ALONG_DIRECTIONS, values, strict=True)
    else:
        result |= dict.fromkeys(_ALONG_DIRECTIONS, without_value("not resolvable"))
    overlap = overlap_with_base(update, k=min(directions, *update.shape))
    share = spectrum.energy_above_floor()
    stands = not math.isnan(share) and share >= 0.9
    for side in ("left", "right"):
        value = getattr(overlap, side)
        result[f"overlap_{side}"] = (
            resolved(value) if stands else without_value("not resolvable", value)
        )
        result[f"overlap_{side}_chance"] = resolved(getattr(overlap, f"{side}_chance"))
    found_intruders = intruder_dimensions(
        update, W0_left_OK, k=min(intruders, *update.shape), epsilon=epsilon
    )
    result["intruder_dimensions"] = resolved(len(found_intruders.positions))
    return result, found_intruders.largest_cosines


def not_compared() -> dict[str, Reading]:
    """Return the readings of the group "base" for an update that is too large for them."""
    return dict.fromkeys(BASE_MEASURES, without_value("not computed"))


def against_other(
    first: Directions | None, second: Directions | None
) -> tuple[dict[str, Reading], Similarity | None]:
    """Return the readings of the group "other": the similarity of two updates, and chance levels.

    The second result is None if an update has no direction above its floor.

    Source:
        Hu et al., "LoRA", 2021, eq. 4.
    """
    if first is None or second is None:
        return dict.fromkeys(OTHER_MEASURES, without_value("not resolvable")), None
    i, j = first.singular_values.size, second.singular_values.size
    angles: npt.NDArray[Any] = np.degrees(principal_angles(first.V_IK, second.V_IK))
    similarity = Similarity(
        right_grid=similarity_grid(first.V_IK, second.V_IK),
        right_dimension=first.V_IK.shape[0],
        left_grid=similarity_grid(first.U_OK, second.U_OK),
        left_dimension=first.U_OK.shape[0],
        angles=angles,
    )
    right, left = similarity.right_dimension, similarity.left_dimension
    return {
        "similarity_top": resolved(similarity.right_grid[0, 0]),
        "similarity_top_chance": resolved(chance_similarity(1, 1, dimension=right)),
        "similarity": resolved(similarity.right_grid[-1, -1]),
        "similarity_left": resolved(similarity.left_grid[-1, -1]),
        "similarity_chance": resolved(chance_similarity(i, j, dimension=right)),
        "similarity_left_chance": resolved(chance_similarity(i, j, dimension=left)),
        "smallest_angle": resolved(angles[0]),
        "largest_angle": resolved(angles[-1]),
    }, similarity
