"""Singular values in float64: all of a matrix, all of a product, or leading ones with bounds.

    svd_of_matrix(delta_OI, method="gram")     # eigenvalues of the smaller Gram matrix, fastest
    svd_of_matrix(delta_OI, method="svd")      # LAPACK, for values below 1e-7 sigma_1
    svd_of_product(B_OR, A_RI, scaling)        # through QR of the factors, never B @ A
    certified_svd(delta_OI, shares=(0.9,))     # leading values, with bounds on the missing ones

Each returns a `Decomposition`, which states the error of its values. Rows and columns that are
exactly zero (embeddings of words that never occurred) are left out first, which changes no other
singular value. Values are scaled by a power of two, which is exact, so that neither 1e30 nor
1e-300 overflows or vanishes when squared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowrank_study.errors import InputError
from lowrank_study.spectra.eigenvalues import GramMatrix

Matrix = npt.NDArray[np.floating[Any]]
Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Method = Literal["gram", "svd"]

EPS = float(np.finfo(np.float64).eps)
BLOCK_ENTRIES = 2**22
"""Entries of a matrix converted to float64 at a time (32 MiB)."""
FIRST_SKETCH = 16
"""Directions of the first random sketch; each later sketch doubles them."""
SQUARES_SAFELY = 300
"""Largest exponent of an entry for which squares and their sum stay far inside float64."""
GRAM_ERROR = 1e-7
"""Bound on the error of a singular value from a float64 Gram matrix, in units of sigma_1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """Singular values of one matrix, and their error."""

    singular_values: Vector
    """Descending, float64. Values beyond the end are zero if `complete`."""
    shape: tuple[int, int]
    """(m, n) of the whole matrix."""
    active_shape: tuple[int, int]
    """(m, n) without rows and columns that are exactly zero; (0, 0) for a zero matrix."""
    frobenius_norm: float
    """Frobenius norm of the whole matrix, from its entries (or its factors' R)."""
    method: str
    """"gram", "svd", "factors" or "certified"."""
    absolute_error: float
    """Bound on the error of each singular value."""
    complete: bool
    """Whether all non-zero singular values are given."""
    captured_energy_share: float
    """Lower bound on the share of the energy in the given values; 1.0 if `complete`."""
    residual_norm: float
    """Upper bound on the Frobenius norm of what is missing; 0.0 if `complete`."""


def svd_of_matrix(matrix: Matrix, *, method: Method) -> Decomposition:
    """Return all singular values of a dense matrix.

    "gram" takes roots of the eigenvalues of the smaller Gram matrix. It is fastest, has errors up
    to 1e-7 sigma_1 and returns values below 5e-8 sigma_1 as zero. "svd" is LAPACK's divide and
    conquer, several times slower, with errors of about 1e-15 sigma_1.
    """
    active, exponent = _active_and_exponent(matrix)
    if active.size == 0:
        return _zero(matrix.shape, method)
    if method == "gram":
        values, squared_norm = _gram_values(active, exponent)
        relative_error = GRAM_ERROR
    else:
        squared_norm = _squared_norm(active, exponent)
        values = scipy.linalg.svdvals(
            _scaled(active, -exponent), overwrite_a=True, check_finite=False
        )
        relative_error = EPS * max(8.0, math.sqrt(max(active.shape)))
    shapes, error = (matrix.shape, active.shape), relative_error * float(values[0])
    return _decomposition(values, shapes, method, exponent, squared_norm, error)


def svd_of_product(B_OR: Matrix, A_RI: Matrix, scaling: float) -> Decomposition:
    """Return the singular values of scaling * B A without forming the product.

    With B = Q_B R_B and A^T = Q_A R_A, they are those of the small scaling * R_B R_A^T.
    """
    if B_OR.ndim != 2 or A_RI.ndim != 2 or B_OR.shape[1] != A_RI.shape[0]:
        raise InputError(
            f"factors {B_OR.shape} and {A_RI.shape} do not multiply; give (m, r) and (r, n)"
        )
    if not math.isfinite(scaling):
        raise InputError(f"scaling {scaling} is not finite; give alpha / rank")
    shape = (B_OR.shape[0], A_RI.shape[1])
    left, right = _exponent(B_OR), _exponent(A_RI)
    if left is None or right is None or scaling == 0.0:
        return _zero(shape, "factors")
    scaled = _scaled(B_OR, -left), _scaled(A_RI.T, -right)
    R_B, R_A = (np.asarray(np.linalg.qr(matrix, mode="r")) for matrix in scaled)
    mantissa, exponent = math.frexp(abs(scaling))
    core = mantissa * (R_B @ R_A.T)
    values = scipy.linalg.svdvals(core, check_finite=False)
    error = EPS * B_OR.shape[1] * float(np.linalg.norm(R_B) * np.linalg.norm(R_A)) * mantissa
    active = (int(B_OR.any(axis=1).sum()), int(A_RI.any(axis=0).sum()))
    energy = float(np.sum(core**2))
    values, exponent = values[: min(active)], left + right + exponent
    return _decomposition(values, (shape, active), "factors", exponent, energy, error)


def certified_svd(matrix: Matrix, *, shares: tuple[float, ...]) -> Decomposition:
    """Return leading singular values of a matrix, enough to determine its energy ranks.

    A randomised range finder grows V, which spans leading right directions. X V has singular
    values s_i <= sigma_i, and the missing energy is exactly R^2 = |X|_F^2 - |X V|_F^2. So for
    every k

        sum_{i<=k} s_i^2  <=  sum_{i<=k} sigma_i^2  <=  sum_{i<=k} s_i^2 + R^2,

    which bounds each energy rank from both sides (`energy_rank_bounds`). V grows until the bounds
    agree at all shares. They hold for any V, so chance only affects the speed. A matrix that needs
    more than 1/8 of its directions is decomposed completely instead.

    Source:
        Halko, Martinsson & Tropp, "Finding structure with randomness", 2011 (the range finder);
        Yu, Gu & Li, "Efficient randomized algorithms for the fixed-precision low-rank matrix
        approximation", 2018 (exact energy by differences).
    """
    if not shares or not all(0.0 < share < 1.0 for share in shares):
        raise InputError(f"energy shares {shares}; give one or more, each inside (0, 1)")
    active, exponent = _active_and_exponent(matrix)
    if active.size == 0:
        return _zero(matrix.shape, "certified")
    if active.dtype == np.float64 and abs(exponent) <= SQUARES_SAFELY:
        X, exponent = active, 0  # a copy would cost as much as the rest
    else:
        X = _scaled(active, -exponent)
    energy = float(np.vdot(X, X))
    rng = np.random.default_rng(0)
    V, projected = np.zeros((X.shape[1], 0)), np.zeros((X.shape[0], 0))
    step = FIRST_SKETCH
    while V.shape[1] + step <= min(X.shape) // 8:
        new = _next_directions(X, V, step, rng)
        V, projected = np.hstack([V, new]), np.hstack([projected, X @ new])
        values = scipy.linalg.svdvals(projected, check_finite=False)
        # The rounding of the two sums can exceed their difference.
        rounding = 4 * EPS * math.sqrt(X.size) * energy
        missing = max(energy - float(np.sum(values**2)), 0.0) + rounding
        norm, residual = math.sqrt(energy), math.sqrt(missing)
        bounds = [energy_rank_bounds(values, norm, residual, share) for share in shares]
        if all(low == high for low, high in bounds):
            shapes = matrix.shape, active.shape
            return _decomposition(values, shapes, "certified", exponent, energy, residual, missing)
        step = V.shape[1]
    return svd_of_matrix(matrix, method="gram")


def _next_directions(
    X: Matrix, V: Matrix, count: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return orthonormal right directions, orthogonal to V, with most of what V misses in X."""
    sketch = rng.standard_normal((X.shape[1], count))
    sketch = X.T @ np.linalg.qr(X @ (sketch - V @ (V.T @ sketch)))[0]
    for _ in range(2):
        # Twice, because one pass leaves traces of V if little is new.
        sketch = np.linalg.qr(sketch - V @ (V.T @ sketch))[0]
    return sketch


def energy_rank_bounds(
    singular_values: Vector, norm: float, residual_norm: float, share: float
) -> tuple[int, int | None]:
    """Bound an energy rank, given lower bounds s of the leading singular values.

    With the residual R and E = norm^2, the energy rank at a share p is at least the smallest k
    with sum_{i<=k} s_i^2 + R^2 >= p E, and at most the smallest with sum_{i<=k} s_i^2 >= p E.

    The upper bound is None if the given values do not reach the share. A zero matrix gives (0, 0).
    """
    if norm == 0.0:
        return 0, 0
    held = np.concatenate([[0.0], np.cumsum((singular_values / norm) ** 2)])
    low = int(np.argmax(held + (residual_norm / norm) ** 2 >= share))
    if held[low] + (residual_norm / norm) ** 2 < share:
        low = len(held)
    high = int(np.argmax(held >= share)) if held[-1] >= share else None
    return max(low, 1), high


def _decomposition(
    values: Vector,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    method: str,
    exponent: int,
    energy: float,
    error: float,
    missing: float = 0.0,
) -> Decomposition:
    """Undo the scaling; `shapes` are the whole and the active one, `missing` is an energy."""
    (m, n), (active_m, active_n) = shapes
    return Decomposition(
        singular_values=_unscaled(values, exponent),
        shape=(m, n),
        active_shape=(active_m, active_n),
        frobenius_norm=_unscaled_number(math.sqrt(energy), exponent),
        method=method,
        absolute_error=_unscaled_number(error, exponent),
        complete=missing == 0.0,
        captured_energy_share=max(0.0, 1.0 - missing / energy) if missing else 1.0,
        residual_norm=_unscaled_number(math.sqrt(missing), exponent),
    )


def _zero(shape: tuple[int, ...], method: str) -> Decomposition:
    return _decomposition(np.zeros(0), (shape, (0, 0)), method, 0, 0.0, 0.0)


def _scaled(matrix: Matrix, exponent: int) -> Vector:
    """Return a float64 copy times 2^exponent, in two factors because 2^1074 exceeds float64."""
    half = exponent // 2
    copy = matrix.astype(np.float64)
    if exponent != 0:
        if abs(exponent) > 1000:
            copy *= math.ldexp(1.0, half)
            exponent -= half
        copy *= math.ldexp(1.0, exponent)
    return copy


def _unscaled(values: Vector, exponent: int) -> Vector:
    with np.errstate(over="ignore"):
        result: Vector = np.ldexp(values, exponent)
    if not np.isfinite(result).all():
        raise InputError("singular values exceed the range of float64; scale the weights down")
    return result


def _unscaled_number(value: float, exponent: int) -> float:
    return float(_unscaled(np.array([value]), exponent)[0])


def _exponent(matrix: Matrix) -> int | None:
    """Return the exponent of the largest magnitude in [.5, 1) * 2^exponent; None if all are 0."""
    if matrix.ndim != 2 or matrix.size == 0:
        raise InputError(f"shape {matrix.shape} is not that of a matrix; give (m, n), both >= 1")
    if not np.issubdtype(matrix.dtype, np.floating):
        raise InputError(f"dtype {matrix.dtype} is not a real float; give float32 or float64")
    largest = max(float(matrix.max()), -float(matrix.min()))
    if not math.isfinite(largest):
        bad = int(matrix.size - np.isfinite(matrix).sum())
        raise InputError(
            f"{bad} of {matrix.size} entries are NaN or Inf, so the matrix has no singular "
            "values; leave it out"
        )
    return None if largest == 0.0 else math.frexp(largest)[1]


def _active_and_exponent(matrix: Matrix) -> tuple[Matrix, int]:
    """Return the matrix without zero rows and columns, and the exponent of its largest entry."""
    exponent = _exponent(matrix)
    if exponent is None:
        return matrix[:0, :0], 0
    rows, columns = np.asarray(matrix.any(axis=1)), np.asarray(matrix.any(axis=0))
    return selected(matrix, rows, columns), exponent


def selected(matrix: Matrix, rows: Mask, columns: Mask) -> Matrix:
    """Return some rows and columns; the matrix itself if they are all."""
    part = matrix if rows.all() else matrix[rows]
    return part if columns.all() else part[:, columns]


def frobenius_norm(matrix: Matrix) -> float:
    """Return the Frobenius norm of a dense matrix, summed in float64 whatever its dtype."""
    exponent = _exponent(matrix)
    if exponent is None:
        return 0.0
    return _unscaled_number(math.sqrt(_squared_norm(matrix, exponent)), exponent)


def _squared_norm(matrix: Matrix, exponent: int) -> float:
    """Return the squared Frobenius norm in units of 4^exponent."""
    return sum(_squared_sum(block) for block in _row_blocks(matrix, exponent))


def _squared_sum(block: Vector) -> float:
    flat = block.ravel(order="K")
    return float(flat @ flat)


def _row_blocks(matrix: Matrix, exponent: int) -> Iterator[Vector]:
    """Yield scaled float64 copies of a few rows at a time, so that memory never doubles."""
    rows = max(1, BLOCK_ENTRIES // matrix.shape[1])
    for start in range(0, matrix.shape[0], rows):
        yield _scaled(matrix[start : start + rows], -exponent)


def _gram_values(matrix: Matrix, exponent: int) -> tuple[Vector, float]:
    """Return singular values from the Gram matrix of the smaller side, and the squared norm."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram, squared_norm = GramMatrix(tall.shape[1]), 0.0
    for block in _row_blocks(tall, exponent):
        gram.add(block)
        squared_norm += _squared_sum(block)
    return gram.singular_values(), squared_norm
