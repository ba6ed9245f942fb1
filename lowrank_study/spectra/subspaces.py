"""Which directions an update uses: against another update, and against the weight it updates.

    first, second = leading_directions(update, k=8), leading_directions(other, k=64)
    similarity_grid(first.V_IK, second.V_IK)[0, 0]      # LoRA Fig. 3: do the top ones agree?
    chance_similarity(1, 1, dimension=768)              # what two random lines would give
    amplification(update, k=4)                          # LoRA Table 7
    intruder_dimensions(update, left_singular_vectors(W0_OI), k=10, epsilon=0.5)

Updates given by factors are worked on through QR of the factors; their product is never
formed. Axis suffixes: O out features, I in features, K directions, descending.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowrank_study.errors import InputError
from lowrank_study.spectra import svd
from lowrank_study.spectra.updates import UpdateMatrix

Matrix = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Leading singular directions of a matrix."""

    U_OK: Array
    """Left singular vectors, orthonormal columns."""
    singular_values: Array
    """Their singular values, descending, all above zero."""
    V_IK: Array
    """Right singular vectors, orthonormal columns."""


def leading_directions(update: UpdateMatrix, *, k: int) -> Directions:
    """Give the leading singular vectors of an update.

    Args:
        update: Dense or factored.
        k: How many are wanted.

    Returns:
        The first k directions, or fewer where the update has a lower rank: a direction without
        a singular value (below 1e-12 sigma_1) is arbitrary and isn't given.

    Raises:
        InputError: If k is below 1, or the update holds NaN or Inf.
    """
    if k < 1:
        raise InputError(f"{k} directions of {update.name!r}; ask for at least 1")
    if update.factors is None:
        assert update.delta_OI is not None
        return _of_matrix(update.delta_OI, k)
    B_OR, A_RI = update.factors
    unit = svd.svd_of_product(B_OR, A_RI, update.scaling).frobenius_norm
    if unit == 0.0:
        return _cut(np.zeros((update.shape[0], 0)), np.zeros(0), np.zeros((update.shape[1], 0)), k)
    Q_B, R_B = np.linalg.qr(B_OR.astype(np.float64))
    Q_A, R_A = np.linalg.qr(A_RI.T.astype(np.float64))
    U, values, Vt = scipy.linalg.svd(update.scaling * (R_B @ R_A.T), full_matrices=False)
    return _cut(Q_B @ U, values, Q_A @ Vt.T, k)


def _of_matrix(matrix: Matrix, k: int) -> Directions:
    norm = svd.frobenius_norm(matrix)
    if norm == 0.0:
        return _cut(np.zeros((matrix.shape[0], 0)), np.zeros(0), np.zeros((matrix.shape[1], 0)), k)
    X = matrix.astype(np.float64) / norm
    tall = X if X.shape[0] >= X.shape[1] else X.T
    side = tall.shape[1]
    if k < side // 4:
        gram = tall.T @ tall
        _, V = scipy.linalg.eigh(gram, subset_by_index=[side - k, side - 1], check_finite=False)
        # One step of subspace iteration and a small SVD bring them to full precision.
        V = np.linalg.qr(gram @ V)[0]
        U, values, Wt = scipy.linalg.svd(tall @ V, full_matrices=False, check_finite=False)
        V = V @ Wt.T
        # A Gram matrix has lost what lies below the root of its precision.
        if values[-1] > 1e-5 * values[0]:
            left, right = (U, V) if tall is X else (V, U)
            return _cut(left, values * norm, right, k)
    U, values, Vt = scipy.linalg.svd(X, full_matrices=False, check_finite=False)
    return _cut(U, values * norm, Vt.T, k)


def _cut(U: Array, values: Array, V: Array, k: int) -> Directions:
    count = int(np.count_nonzero(values > 1e-12 * values[0])) if values.size else 0
    count = min(k, count)
    return Directions(U_OK=U[:, :count], singular_values=values[:count], V_IK=V[:, :count])


def subspace_similarity(first_DK: Matrix, second_DK: Matrix, i: int, j: int) -> float:
    """Measure how much of one subspace lies in another.

    phi(i, j) = |U_i^T V_j|_F^2 / min(i, j) for the spans of the first i columns of one basis
    and the first j of the other: 1 if the smaller one is contained in the larger, 0 if they
    are orthogonal. Random subspaces have `chance_similarity`.

    Args:
        first_DK: Orthonormal columns in dimension D, in order of importance.
        second_DK: The same of the other matrix; the number of columns may differ.
        i: Columns taken of the first, 1..K.
        j: Columns taken of the second, 1..K.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: If the bases aren't of one space, or lack that many columns.

    Source:
        Hu et al., "LoRA", 2021, eq. 4 in section 7.2; there with the right singular vectors of
        the factors A, which span what those of B A do, in another order.
    """
    _check_bases(first_DK, second_DK)
    if not (1 <= i <= first_DK.shape[1] and 1 <= j <= second_DK.shape[1]):
        raise InputError(
            f"i, j = {i}, {j}; the bases have {first_DK.shape[1]} and {second_DK.shape[1]} "
            "directions, counted from 1"
        )
    return float(similarity_grid(first_DK[:, :i], second_DK[:, :j])[-1, -1])


def similarity_grid(first_DK: Matrix, second_DK: Matrix) -> Array:
    """Give `subspace_similarity` for all i and j at once.

    Args:
        first_DK: Orthonormal columns in dimension D, in order of importance.
        second_DK: The same of the other matrix.

    Returns:
        Array whose entry [i - 1, j - 1] is phi(i, j).

    Raises:
        InputError: If the bases aren't of one space.
    """
    _check_bases(first_DK, second_DK)
    squares = (first_DK.T.astype(np.float64) @ second_DK.astype(np.float64)) ** 2
    sums = squares.cumsum(axis=0).cumsum(axis=1)
    i = np.arange(1, squares.shape[0] + 1)[:, None]
    j = np.arange(1, squares.shape[1] + 1)[None, :]
    return np.minimum(sums / np.minimum(i, j), 1.0)


def chance_similarity(i: int, j: int, *, dimension: int) -> float:
    """Give the similarity expected of two random subspaces.

    max(i, j) / d, from E |U^T V|_F^2 = i j / d.

    Args:
        i: Dimension of the one subspace.
        j: Dimension of the other.
        dimension: d, of the space both are in.

    Returns:
        A number in (0, 1].

    Raises:
        InputError: If i or j is outside 1..d.
    """
    if not (1 <= i <= dimension and 1 <= j <= dimension):
        raise InputError(f"subspaces of {i} and {j} in dimension {dimension}; give 1..{dimension}")
    return max(i, j) / dimension


def principal_angles(first_DK: Matrix, second_DK: Matrix) -> Array:
    """Give the principal angles between two subspaces.

    With orthonormal bases, the cosines are the singular values of U^T V, the sines those of
    (I - U U^T) V. Angles below 45 degrees are taken from the sines and others from the cosines,
    as each is accurate where it is small.

    Args:
        first_DK: Independent columns in dimension D.
        second_DK: The same of the other subspace.

    Returns:
        min(K, K') angles in radians, ascending, in [0, pi / 2].

    Raises:
        InputError: If the bases aren't of one space.

    Source:
        Bjorck & Golub, "Numerical methods for computing angles between linear subspaces", 1973.
    """
    _check_bases(first_DK, second_DK)
    large, small = first_DK.astype(np.float64), second_DK.astype(np.float64)
    if large.shape[1] < small.shape[1]:
        large, small = small, large
    U, V = np.linalg.qr(large)[0], np.linalg.qr(small)[0]
    inside = U.T @ V
    cosines = np.minimum(scipy.linalg.svdvals(inside), 1.0)
    sines = np.minimum(scipy.linalg.svdvals(V - U @ inside)[::-1], 1.0)
    angles: Array = np.where(sines**2 < 0.5, np.arcsin(sines), np.arccos(cosines))
    return angles


def _check_bases(first: Matrix, second: Matrix) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise InputError(
            f"bases of shapes {first.shape} and {second.shape} aren't in one space; "
            "give two matrices with the same number of rows"
        )
    if 0 in first.shape or 0 in second.shape:
        raise InputError(
            f"bases of shapes {first.shape} and {second.shape}; a zero update has no directions"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Amplification:
    """How an update's own directions stand in the weight it updates."""

    k: int
    """Directions of the update that were used."""
    update_norm: float
    """|delta|_F of the whole update."""
    base_norm: float
    """|W0|_F."""
    projected_norm: float
    """|U^T W0 V|_F, U and V the update's directions: what W0 already had along them."""
    random_projected_norm: float
    """What k random directions on either side are expected to give: |W0| k / sqrt(m n)."""
    factor: float
    """update_norm / projected_norm, the amplification; NaN where W0 has nothing there."""


def amplification(update: UpdateMatrix, *, k: int) -> Amplification:
    """Measure how much an update amplifies directions that the weight hardly had.

    |delta|_F / |U^T W0 V|_F with U, V the first k singular directions of the update.

    Args:
        update: With `W0_OI`.
        k: Directions, usually the adapter rank; fewer are used if the update has fewer.

    Returns:
        The three norms of the paper's table and their factor.

    Raises:
        InputError: If `W0_OI` is missing, the update is zero, or k is below 1.

    Source:
        Hu et al., "LoRA", 2021, section 7.3 and Table 7.
    """
    W0_OI = _base_of(update)
    directions = leading_directions(update, k=k)
    count = directions.singular_values.size
    if count == 0:
        raise InputError(f"{update.name!r} is a zero update; it has no directions to compare")
    base_norm = svd.frobenius_norm(W0_OI)
    projected = projected_norm(W0_OI, directions.U_OK, directions.V_IK)
    update_norm = (
        svd.frobenius_norm(update.delta_OI)
        if update.delta_OI is not None
        else float(np.linalg.norm(leading_directions(update, k=min(update.shape)).singular_values))
    )
    return Amplification(
        k=count,
        update_norm=update_norm,
        base_norm=base_norm,
        projected_norm=projected,
        random_projected_norm=random_projected_norm(base_norm, count, update.shape),
        factor=update_norm / projected if projected > 0 else math.nan,
    )


def projected_norm(W_OI: Matrix, U_OK: Matrix, V_IK: Matrix) -> float:
    """Give |U^T W V|_F, the part of a matrix along given directions.

    Args:
        W_OI: Any matrix.
        U_OK: Orthonormal columns on the side of the outputs.
        V_IK: Orthonormal columns on the side of the inputs.

    Returns:
        The norm in the unit of W.
    """
    return float(np.linalg.norm(U_OK.T @ W_OI.astype(np.float64) @ V_IK))


def random_projected_norm(norm: float, k: int, shape: tuple[int, int]) -> float:
    """Give the root mean square of |U^T W V|_F over random k-dimensional U and V.

    |W|_F k / sqrt(m n); for a square matrix |W|_F k / d.

    Args:
        norm: |W|_F.
        k: Directions on either side.
        shape: (m, n) of W.

    Returns:
        The norm in the unit of W.
    """
    return norm * k / math.sqrt(shape[0] * shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Share of an update's energy in the leading directions of the weight it updates."""

    k: int
    """Leading directions of W0 taken on either side."""
    left: float
    """|U_k^T delta|_F^2 / |delta|_F^2, on the side of the outputs."""
    right: float
    """|delta V_k|_F^2 / |delta|_F^2, on the side of the inputs."""
    left_chance: float
    """k / m, what random directions give."""
    right_chance: float
    """k / n."""


def overlap_with_base(update: UpdateMatrix, *, k: int) -> Overlap:
    """Measure how much of an update lies in the top directions of the weight.

    Args:
        update: With `W0_OI`.
        k: Leading singular directions of W0; fewer are taken where its rank is lower.

    Returns:
        Shares in [0, 1] for both sides, with their chance levels.

    Raises:
        InputError: If `W0_OI` is missing, it or the update is zero, or k isn't in 1..min(m, n).
    """
    W0_OI = _base_of(update)
    if not 1 <= k <= min(update.shape):
        raise InputError(f"{k} directions of W0 of {update.name!r}; give 1 to {min(update.shape)}")
    base = _of_matrix(W0_OI, k)
    k = base.singular_values.size
    if not k:
        raise InputError(f"W0 of {update.name!r} is zero; it has no directions to compare")
    if update.delta_OI is not None:
        norm = svd.frobenius_norm(update.delta_OI)
        unit = update.delta_OI.astype(np.float64) / (norm or 1.0)
        left, right = base.U_OK.T @ unit, unit @ base.V_IK
    else:
        found = leading_directions(update, k=min(update.shape))
        norm = float(np.linalg.norm(found.singular_values))
        weights = found.singular_values / (norm or 1.0)
        left = (base.U_OK.T @ found.U_OK) * weights
        right = (base.V_IK.T @ found.V_IK) * weights
    if norm == 0.0:
        raise InputError(f"{update.name!r} is a zero update; it has no directions to compare")
    return Overlap(
        k=k,
        left=min(float(np.sum(left**2)), 1.0),
        right=min(float(np.sum(right**2)), 1.0),
        left_chance=k / update.shape[0],
        right_chance=k / update.shape[1],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntruderDimensions:
    """Which leading directions of a tuned weight the pretrained one didn't have."""

    k: int
    """Leading left singular vectors of W that were looked at."""
    epsilon: float
    """Largest |cos| to any left singular vector of W0 that still makes an intruder."""
    largest_cosines: tuple[float, ...]
    """For each of the k, its largest |cos| to a left singular vector of W0."""
    positions: tuple[int, ...]
    """The intruders among the k, counted from 1."""


def left_singular_vectors(matrix: Matrix) -> Array:
    """Give all left singular vectors of a matrix, to be kept for many updates of it.

    Args:
        matrix: (m, n), any float dtype.

    Returns:
        (m, min(m, n)) orthonormal columns, descending. Of singular values that are equal to
        about 1e-7 sigma_1, only the span is determined.

    Raises:
        InputError: If the matrix is zero or holds NaN or Inf.
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
    update: UpdateMatrix, W0_left_OK: Matrix, *, k: int, epsilon: float
) -> IntruderDimensions:
    """Find the leading directions of W0 + delta that W0 didn't have.

    A left singular vector y among the top k of W0 + delta is an intruder if
    max_i |<y, u_i>| < epsilon over all left singular vectors u_i of W0.

    Args:
        update: With `W0_OI`.
        W0_left_OK: `left_singular_vectors(W0_OI)`.
        k: How many leading directions of W0 + delta to look at (the paper: 10).
        epsilon: Threshold of |cos|, in (0, 1] (the paper: .5).

    Returns:
        The k largest cosines and which of them are below epsilon.

    Raises:
        InputError: If `W0_OI` is missing or doesn't fit, or k or epsilon is out of range.

    Source:
        Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", 2024,
        definition 3.1 and algorithm 1. They write cos without the bars; the sign of a singular
        vector is arbitrary. k = 10 is theirs in Fig. 4, epsilon = .5 in Fig. 15 a.
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
    if update.factors is not None:
        B_OR, A_RI = update.factors
        W_OI += (update.scaling * B_OR.astype(np.float64)) @ A_RI.astype(np.float64)
    else:
        assert update.delta_OI is not None
        W_OI += update.delta_OI
    found = _of_matrix(W_OI, k)
    cosines = np.abs(W0_left_OK.T.astype(np.float64) @ found.U_OK).max(axis=0)
    return IntruderDimensions(
        k=found.singular_values.size,
        epsilon=epsilon,
        largest_cosines=tuple(float(c) for c in np.minimum(cosines, 1.0)),
        positions=tuple(int(i) + 1 for i in np.flatnonzero(cosines < epsilon)),
    )


def _base_of(update: UpdateMatrix) -> Matrix:
    if update.W0_OI is None:
        raise InputError(
            f"{update.name!r} has no W0_OI; give the pretrained weight to compare with"
        )
    return update.W0_OI
