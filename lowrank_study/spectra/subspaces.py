"""Leading directions of updates, and the similarity of the directions of two updates.

    first, second = update.leading_directions(8), other.leading_directions(64)
    similarity_grid(first.V_IK, second.V_IK)[0, 0]      # LoRA Fig. 3: do the top ones agree?
    chance_similarity(1, 1, dimension=768)              # two random lines

Axis suffixes: O out features, I in features, K directions, descending.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowrank_study.errors import InputError
from lowrank_study.spectra import svd

Matrix = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Leading singular directions of a matrix."""

    U_OK: Array
    singular_values: Array
    """Their singular values, descending and positive."""
    V_IK: Array


def directions_of_product(B_OR: Matrix, A_RI: Matrix, scaling: float, k: int) -> Directions:
    """Return the k leading directions of scaling * B A through QR of the factors.

    There are fewer if the rank is lower: directions below 1e-12 sigma_1 are left out.
    """
    if svd.svd_of_product(B_OR, A_RI, scaling).frobenius_norm == 0.0:
        return _no_directions(B_OR.shape[0], A_RI.shape[1], k)
    Q_B, R_B = np.linalg.qr(B_OR.astype(np.float64))
    Q_A, R_A = np.linalg.qr(A_RI.T.astype(np.float64))
    U, values, Vt = scipy.linalg.svd(scaling * (R_B @ R_A.T), full_matrices=False)
    return _leading(Q_B @ U, values, Q_A @ Vt.T, k)


def directions_of(matrix: Matrix, k: int) -> Directions:
    """Return the k leading directions of a dense (m, n) matrix.

    There are fewer if the rank is lower: directions below 1e-12 sigma_1 are left out.
    """
    norm = svd.frobenius_norm(matrix)
    if norm == 0.0:
        return _no_directions(matrix.shape[0], matrix.shape[1], k)
    X = matrix.astype(np.float64) / norm
    tall = X if X.shape[0] >= X.shape[1] else X.T
    side = tall.shape[1]
    if k < side // 4:
        gram = tall.T @ tall
        _, V = scipy.linalg.eigh(gram, subset_by_index=[side - k, side - 1], check_finite=False)
        # One step of subspace iteration and a small SVD restore full precision.
        V = np.linalg.qr(gram @ V)[0]
        U, values, Wt = scipy.linalg.svd(tall @ V, full_matrices=False, check_finite=False)
        V = V @ Wt.T
        # A Gram matrix loses values below the root of its precision.
        if values[-1] > 1e-5 * values[0]:
            left, right = (U, V) if tall is X else (V, U)
            return _leading(left, values * norm, right, k)
    U, values, Vt = scipy.linalg.svd(X, full_matrices=False, check_finite=False)
    return _leading(U, values * norm, Vt.T, k)


def _leading(U: Array, values: Array, V: Array, k: int) -> Directions:
    if k < 1:
        raise InputError(f"{k} directions were asked for; ask for at least 1")
    count = int(np.count_nonzero(values > 1e-12 * values[0])) if values.size else 0
    count = min(k, count)
    return Directions(U_OK=U[:, :count], singular_values=values[:count], V_IK=V[:, :count])


def _no_directions(rows: int, columns: int, k: int) -> Directions:
    return _leading(np.zeros((rows, 0)), np.zeros(0), np.zeros((columns, 0)), k)


def subspace_similarity(first_DK: Matrix, second_DK: Matrix, i: int, j: int) -> float:
    """Return phi(i, j) = |U_i^T V_j|_F^2 / min(i, j), the share of one subspace in another.

    The subspaces are the spans of the first i columns of one basis and the first j of the other,
    both orthonormal and in order of importance. phi is 1 if the smaller subspace lies in the
    larger, 0 if they are orthogonal, and `chance_similarity` for random ones.

    Source:
        Hu et al., "LoRA", 2021, eq. 4 in section 7.2. They use right singular vectors of the
        factors A, which span the same space as those of B A, in another order.
    """
    _check_bases(first_DK, second_DK)
    if not (1 <= i <= first_DK.shape[1] and 1 <= j <= second_DK.shape[1]):
        raise InputError(
            f"i, j = {i}, {j}; the bases have {first_DK.shape[1]} and {second_DK.shape[1]} "
            "directions, counted from 1"
        )
    return float(similarity_grid(first_DK[:, :i], second_DK[:, :j])[-1, -1])


def similarity_grid(first_DK: Matrix, second_DK: Matrix) -> Array:
    """Return `subspace_similarity` for all i and j: entry [i - 1, j - 1] is phi(i, j)."""
    _check_bases(first_DK, second_DK)
    squares = (first_DK.T.astype(np.float64) @ second_DK.astype(np.float64)) ** 2
    sums = squares.cumsum(axis=0).cumsum(axis=1)
    i = np.arange(1, squares.shape[0] + 1)[:, None]
    j = np.arange(1, squares.shape[1] + 1)[None, :]
    return np.minimum(sums / np.minimum(i, j), 1.0)


def chance_similarity(i: int, j: int, *, dimension: int) -> float:
    """Return max(i, j) / d, the expected similarity of random subspaces of dimensions i and j."""
    if not (1 <= i <= dimension and 1 <= j <= dimension):
        raise InputError(f"subspaces of {i} and {j} in dimension {dimension}; give 1..{dimension}")
    return max(i, j) / dimension


def principal_angles(first_DK: Matrix, second_DK: Matrix) -> Array:
    """Return the principal angles between two subspaces, in radians, ascending, in [0, pi / 2].

    With orthonormal bases, the cosines are the singular values of U^T V and the sines those of
    (I - U U^T) V. Angles below 45 degrees come from the sines, others from the cosines, because
    each is accurate if it is small. The columns of a basis need not be orthonormal.

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
            f"bases of shapes {first.shape} and {second.shape} are not in one space; "
            "give two matrices with the same number of rows"
        )
    if 0 in first.shape or 0 in second.shape:
        raise InputError(
            f"bases of shapes {first.shape} and {second.shape}; a zero update has no directions"
        )
