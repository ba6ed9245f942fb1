"""An update against the weight it updates: amplification, overlap and intruder dimensions.

    amplification(update, k=4)                          # LoRA Table 7
    overlap_with_base(update, k=8)
    intruder_dimensions(update, left_singular_vectors(W0_OI), k=10, epsilon=0.5)

Axis suffixes: O out features, I in features, K directions, descending.
"""

import math
from dataclasses import dataclass

import numpy as np

from lowrank_study.errors import InputError
from lowrank_study.spectra import svd
from lowrank_study.spectra.subspaces import Array, Matrix, directions_of
from lowrank_study.spectra.updates import DenseUpdate, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Amplification:
    """Norms of an update and of its weight along the update's own directions."""

    k: int
    """Number of directions of the update that were used."""
    update_norm: float
    """|delta|_F of the whole update."""
    base_norm: float
    """|W0|_F."""
    projected_norm: float
    """|U^T W0 V|_F, the norm of W0 along the update's directions U and V."""
    random_projected_norm: float
    """Expectation for k random directions on either side: |W0| k / sqrt(m n)."""
    factor: float
    """update_norm / projected_norm, the amplification; NaN if W0 has nothing there."""


def amplification(update: Update, *, k: int) -> Amplification:
    """Return |delta|_F / |U^T W0 V|_F, with U, V the first k singular directions of the update.

    k is usually the adapter rank; fewer directions are used if the update has fewer.

    Source:
        Hu et al., "LoRA", 2021, section 7.3 and Table 7.
    """
    W0_OI = _base_of(update)
    directions = update.leading_directions(k)
    count = directions.singular_values.size
    if count == 0:
        raise InputError(f"{update.name!r} is a zero update, without directions to compare")
    base_norm = svd.frobenius_norm(W0_OI)
    projected = projected_norm(W0_OI, directions.U_OK, directions.V_IK)
    update_norm = update.frobenius_norm()
    return Amplification(
        k=count,
        update_norm=update_norm,
        base_norm=base_norm,
        projected_norm=projected,
        random_projected_norm=random_projected_norm(base_norm, count, update.shape),
        factor=update_norm / projected if projected > 0 else math.nan,
    )


def projected_norm(W_OI: Matrix, U_OK: Matrix, V_IK: Matrix) -> float:
    """Return |U^T W V|_F, the norm of a matrix along orthonormal directions."""
    return float(np.linalg.norm(U_OK.T @ W_OI.astype(np.float64) @ V_IK))


def random_projected_norm(norm: float, k: int, shape: tuple[int, int]) -> float:
    """Return |W|_F k / sqrt(m n), the root mean square of |U^T W V|_F for k random directions."""
    return norm * k / math.sqrt(shape[0] * shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Share of an update's energy in the leading directions of the weight it updates."""

    k: int
    """Number of leading directions of W0 on either side."""
    left: float
    """|U_k^T delta|_F^2 / |delta|_F^2, for outputs."""
    right: float
    """|delta V_k|_F^2 / |delta|_F^2, for inputs."""
    left_chance: float
    """k / m, the expectation for random directions."""
    right_chance: float
    """k / n."""


def overlap_with_base(update: Update, *, k: int) -> Overlap:
    """Return the share of an update in the top k directions of its weight, or fewer by its rank."""
    W0_OI = _base_of(update)
    if not 1 <= k <= min(update.shape):
        raise InputError(f"{k} directions of W0 of {update.name!r}; give 1 to {min(update.shape)}")
    base = directions_of(W0_OI, k)
    k = base.singular_values.size
    if not k:
        raise InputError(f"W0 of {update.name!r} is zero, without directions to compare")
    if isinstance(update, DenseUpdate):
        norm = update.frobenius_norm()
        unit = update.delta_OI.astype(np.float64) / (norm or 1.0)
        left, right = base.U_OK.T @ unit, unit @ base.V_IK
    else:
        found = update.leading_directions(min(update.shape))
        norm = float(np.linalg.norm(found.singular_values))
        weights = found.singular_values / (norm or 1.0)
        left = (base.U_OK.T @ found.U_OK) * weights
        right = (base.V_IK.T @ found.V_IK) * weights
    if norm == 0.0:
        raise InputError(f"{update.name!r} is a zero update, without directions to compare")
    return Overlap(
        k=k,
        left=min(float(np.sum(left**2)), 1.0),
        right=min(float(np.sum(right**2)), 1.0),
        left_chance=k / update.shape[0],
        right_chance=k / update.shape[1],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntruderDimensions:
    """The leading directions of a tuned weight that the pretrained weight lacks."""

    k: int
    """Number of leading left singular vectors of W that were checked."""
    epsilon: float
    """Largest |cos| to any left singular vector of W0 that still makes an intruder."""
    largest_cosines: tuple[float, ...]
    """For each of the k, its largest |cos| to a left singular vector of W0."""
    positions: tuple[int, ...]
    """The intruders among the k, counted from 1."""


def left_singular_vectors(matrix: Matrix) -> Array:
    """Return all left singular vectors of an (m, n) matrix, (m, min(m, n)), descending.

    If singular values agree to about 1e-7 sigma_1, only the span of their vectors is determined.
    """
    norm = svd.frobenius_norm(matrix)
    if norm == 0.0:
        raise InputError("a zero matrix has no singular vectors; leave it out")
    X = matrix.astype(np.float64) / norm
    if X.shape[0] <= X.shape[1]:
        return np.linalg.eigh(X @ X.T)[1][:, ::-1]
    Q, R = np.linalg.qr(X)
    vectors: Array = Q @ np.linalg.eigh(R @ R.T)[1][:, ::-1]
    return vectors


def intruder_dimensions(
    update: Update, W0_left_OK: Matrix, *, k: int, epsilon: float
) -> IntruderDimensions:
    """Return the leading directions of W0 + delta that W0 lacks.

    A left singular vector y among the top k of W0 + delta is an intruder if
    max_i |<y, u_i>| < epsilon over all left singular vectors u_i of W0.

    `W0_left_OK` is `left_singular_vectors(W0_OI)`, which serves many updates of one weight.

    Source:
        Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", 2024,
        definition 3.1 and algorithm 1, where cos has no bars although signs of singular vectors
        are arbitrary. Fig. 4 takes k = 10, Fig. 15 a epsilon = .5.
    """
    W0_OI = _base_of(update)
    side = min(update.shape)
    if not 1 <= k <= side:
        raise InputError(f"k = {k} leading directions of a {update.shape} matrix; give 1..{side}")
    if not 0.0 < epsilon <= 1.0:
        raise InputError(f"epsilon {epsilon} is outside (0, 1]; the paper takes .5")
    if W0_left_OK.shape != (update.shape[0], side):
        raise InputError(
            f"W0_left_OK has shape {W0_left_OK.shape}, but all left singular vectors of a "
            f"{update.shape} matrix are {(update.shape[0], side)}; give left_singular_vectors(W0)"
        )
    W_OI = W0_OI.astype(np.float64)
    W_OI += update.dense()
    found = directions_of(W_OI, k)
    cosines = np.abs(W0_left_OK.T.astype(np.float64) @ found.U_OK).max(axis=0)
    return IntruderDimensions(
        k=found.singular_values.size,
        epsilon=epsilon,
        largest_cosines=tuple(float(c) for c in np.minimum(cosines, 1.0)),
        positions=tuple(int(i) + 1 for i in np.flatnonzero(cosines < epsilon)),
    )


def _base_of(update: Update) -> Matrix:
    if update.W0_OI is None:
        raise InputError(
            f"{update.name!r} has no W0_OI; give the pretrained weight to compare with"
        )
    return update.W0_OI
