"""Products with the weights of linear maps, by the library that is fastest on this processor.

PyTorch multiplies fp32 matrices by MKL, which uses no AVX512 on processors that are not Intel's;
oneDNN does, and takes less than half the time. In bf16, PyTorch uses oneDNN too, but writes the
bias in a pass of its own; with the bias in the product the numbers are equal, bit by bit.

    >>> y_TO = linear(x_TI, weight_OI, bias_O)

Letters: O out_features, I in_features, T tokens.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowrank_study import native
from lowrank_study.machine import processor


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x Wᵀ + b for x of shape (..., I), as `torch.nn.functional.linear` does."""
    if not (x.is_cpu and uses_onednn(x.dtype)):
        return functional.linear(x, weight_OI, bias_O)
    bias = None if bias_O is None else bias_O.to(x.dtype)
    y: Tensor = _Linear.apply(x, weight_OI.to(x.dtype), bias)  # type: ignore[no-untyped-call]
    return y


def uses_onednn(*dtypes: torch.dtype) -> bool:
    """Return whether `linear` uses oneDNN on this processor for any of some dtypes.

    oneDNN generates code for every shape and keeps it with its buffers: the first product of a
    shape takes 0.5 to 1 ms longer, and leaves a few megabytes.
    """
    return native.is_wanted() and not _dtypes().isdisjoint(dtypes)


@functools.cache
def _dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes in which oneDNN is faster than `torch.nn.functional.linear`."""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return frozenset()
    name, sets = processor()
    faster = {torch.bfloat16} if "avx512_bf16" in sets or "amx_bf16" in sets else set()
    if "avx512f" in sets and "Intel" not in name and torch._C.has_mkl:
        faster.add(torch.float32)
    return frozenset(faster)


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return the product."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_OI)
        return _product(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, W and b."""
        x, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_TO = grad_y.flatten(0, -2)
        of_x = _product(grad_y, weight_OI.T, None) if needs_x else None
        of_weight = None
        if needs_weight:
            x_TI = x.flatten(0, -2)
            is_fp32 = x.dtype == torch.float32
            of_weight = _product(grad_TO.T, x_TI.T, None) if is_fp32 else grad_TO.T @ x_TI
        return of_x, of_weight, grad_TO.sum(0) if needs_bias else None
