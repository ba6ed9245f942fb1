"""Compare a native kernel, forward and backward, with PyTorch in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Return the root mean squares of the errors, which are steadier than the largest errors."""
    return [
        float((each.double() - of).square().mean().sqrt())
        for each, of in zip(found, exact, strict=True)
    ]


def with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


def assert_as_exact(
    native: Callable[..., Tensor],
    torchs: Callable[..., Tensor],
    inputs: list[Tensor],
    gradient: Tensor,
) -> None:
    """Compare with float64, and require errors no larger than those of PyTorch in fp32.

    Rounding the result to bf16 is inevitable, so PyTorch's results are rounded too.
    """
    dtype = inputs[0].dtype
    exact = with_gradients(torchs, [x.double() for x in inputs], gradient)
    rounded = with_gradients(torchs, [x.float() for x in inputs], gradient)
    found = with_gradients(native, inputs, gradient)
    assert all(each.dtype == dtype for each in found)
    ours = errors(found, exact)
    theirs = errors([each.to(dtype) for each in rounded], exact)
    for error, inevitable in zip(ours, theirs, strict=True):
        assert error <= 1.5 * inevitable
