"""Gradients of embeddings, in a buffer that stays and is cleared row by row.

A batch reads a few hundred of a table's ten thousands of rows. Autograd allocates a gradient of
the whole table in every step and fills it with zeros, which took a sixth of the step.

    >>> keep_gradients(model)
    >>> loss.backward(); optimizer.step()
    >>> clear_gradients(model.parameters())    # in place of optimizer.zero_grad()
"""

import types
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def keep_gradients(model: nn.Module) -> None:
    """Let trained embeddings add to a gradient that stays; one with a shared weight is left out."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if type(module) is not nn.Embedding or module.sparse or module.max_norm is not None:
            continue
        if module.weight.requires_grad and uses[id(module.weight)] == 1:
            module.forward = types.MethodType(_embed, module)  # type: ignore[method-assign]


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Clear gradients as `zero_grad` does; those of embeddings keep their memory."""
    for parameter in parameters:
        rows: list[Tensor] = getattr(parameter, "rows_with_gradient", [])
        if parameter.grad is None or not rows:
            parameter.grad = None
        else:
            parameter.grad.index_fill_(0, torch.cat(rows), 0.0)
        rows.clear()


def _embed(self: Any, ids: Tensor) -> Tensor:
    embedded: Tensor = _Embedding.apply(self.weight, ids, self.padding_idx)  # type: ignore[no-untyped-call]
    return embedded


class _Embedding(torch.autograd.Function):
    """Rows of a table; the backward pass adds to the table's gradient in place."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, ids: Tensor, padding: int | None) -> Tensor:
        """Return the rows of some ids."""
        ctx.weight, ctx.padding = weight, padding
        ctx.save_for_backward(ids)
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        """Add the gradient to the rows, except to that of padding."""
        weight, [ids] = ctx.weight, ctx.saved_tensors
        rows, grad = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:
            grad = grad * (rows != ctx.padding)[:, None]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
            weight.rows_with_gradient = []
        weight.grad.index_add_(0, rows, grad.to(weight.dtype))
        weight.rows_with_gradient.append(rows)
        return None, None, None
