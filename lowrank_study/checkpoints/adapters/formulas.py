"""Formulas of updates other than a product of two stored factors.

Axis suffixes: O out features, I in features, R adapter rank.
"""

import numpy as np

from lowrank_study.checkpoints.formats import Array
from lowrank_study.errors import InputError


def product(B_OR: Array, A_RI: Array) -> Array:
    """Return B A in float64."""
    return B_OR.astype(np.float64) @ A_RI.astype(np.float64)


def initial_factors(kind: str, W0_OI: Array, rank: int, scaling: float) -> tuple[Array, Array]:
    """Return PEFT's initial B0 and A0, which it subtracts from the base weight.

    PiSSA: the leading singular triples; scaling B0 A0 is W0's best rank-r approximation (Meng et
    al. 2024). OLoRA: the first columns of Q and the first rows of R of W0 = QR (Büyükakyüz
    2024).
    """
    if kind == "pissa":
        U, singular_values, Vt = np.linalg.svd(W0_OI, full_matrices=False)
        root = np.sqrt(singular_values[:rank] / scaling)
        return np.asarray(U[:, :rank] * root), np.asarray(root[:, None] * Vt[:rank])
    Q, R = np.linalg.qr(W0_OI)
    return np.asarray(Q[:, :rank]), np.asarray(R[:rank])


def dora_delta(W0_OI: Array, plain_OI: Array, magnitude_O: Array) -> Array:
    """Return m (W0 + s B A) / ‖W0 + s B A‖ - W0, with norms of rows (Liu et al. 2024, eq. 5).

    `plain_OI` is s B A and `magnitude_O` is m. No row of W0 + s B A may be zero.
    """
    tuned_OI = W0_OI + plain_OI
    norm_O = np.linalg.norm(tuned_OI, axis=1, keepdims=True)
    return np.asarray(magnitude_O.reshape(-1, 1) / norm_O * tuned_OI - W0_OI)


def rows_delta(rows: list[int], before: Array, after: Array, where: str) -> Array:
    """Return W - W0 of a matrix with only some trained rows, given as `after`."""
    if after.shape != (len(rows), *before.shape[1:]) or max(rows, default=0) >= len(before):
        raise InputError(
            f"{where} has trained rows {list(after.shape)} for {len(rows)} tokens of a base of "
            f"shape {list(before.shape)}; give the base it was trained on"
        )
    delta = np.zeros_like(before)
    delta[rows] = after - before[rows]
    return delta
