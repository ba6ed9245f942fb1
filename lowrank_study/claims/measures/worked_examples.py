"""A document's worked example of one gradient step, recomputed by autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_study.claims.measures.outcome import Outcome, computed, measure
from lowrank_study.errors import InputError

Rows = Sequence[Sequence[float]]


@measure
def worked_step(
    quantity: str,
    rows: Sequence[int] | None,
    W: Rows,
    A: Rows,
    B: Rows,
    x: Sequence[float],
    target: Sequence[float],
    rate: float,
) -> Outcome:
    """Return one quantity of a gradient step on A and B, in float64.

    y = x (W + BA), L = ½ Σ (y - target)², then A -= rate ∇A and B -= rate ∇B. `rows` selects rows
    of a matrix (from 0); null returns all of it.
    """
    W_now, A_now, B_now = (_matrix(rows_of).requires_grad_() for rows_of in (W, A, B))
    x_row, wanted = _matrix([x]), _matrix([target])

    def loss_of(A_: Tensor, B_: Tensor) -> Tensor:
        return 0.5 * ((x_row @ (W_now + B_ @ A_) - wanted) ** 2).sum()

    loss = loss_of(A_now, B_now)
    grad_A, grad_B, grad_W = torch.autograd.grad(loss, [A_now, B_now, W_now])
    A_new, B_new = A_now - rate * grad_A, B_now - rate * grad_B
    quantities = {
        "delta": B_now @ A_now,
        "effective": W_now + B_now @ A_now,
        "output": x_row @ (W_now + B_now @ A_now),
        "loss": loss.reshape(1, 1),
        "gradient of A": grad_A,
        "gradient of B": grad_B,
        "gradient of W": grad_W,
        "new A": A_new,
        "new B": B_new,
        "new delta": B_new @ A_new,
        "new effective": W_now + B_new @ A_new,
        "new loss": loss_of(A_new, B_new).reshape(1, 1),
    }
    if quantity not in quantities:
        raise InputError(f"quantity={quantity!r}: valid are {', '.join(quantities)}")
    found = quantities[quantity].detach()
    chosen = found if rows is None else found[list(rows)]
    values: list[float] = chosen.flatten().tolist()
    named = "" if rows is None else f", row {', '.join(str(row + 1) for row in rows)}"
    return computed(values, f"{quantity}{named}, by autograd in float64")


def _matrix(rows: Rows) -> Tensor:
    return torch.tensor([list(row) for row in rows], dtype=torch.float64)
