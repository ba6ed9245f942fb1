"""Products by oneDNN equal PyTorch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lowrank_study.methods.layers import products

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN on any processor that has it."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.delenv("LOWRANK_STUDY_NATIVE", raising=False)
    both = frozenset({torch.float32, torch.bfloat16})
    monkeypatch.setattr(products, "_dtypes", lambda: both)


def with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient.to(y.dtype))]


@pytest.mark.usefixtures("_faster")
@DTYPES
@pytest.mark.parametrize("shape", [(70, 96), (2, 33, 96), (1, 96)], ids=str)
def test_products_are_as_exact_as_torchs(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, gradient = (
        torch.randn(size, generator=generator).to(dtype)
        for size in (shape, (40, 96), (40,), (*shape[:-1], 40))
    )
    inputs = [x, weight, bias]
    found = with_gradients(products.linear, inputs, gradient)
    torchs = with_gradients(functional.linear, inputs, gradient)
    exact = with_gradients(functional.linear, [each.double() for each in inputs], gradient)
    for ours, theirs, of in zip(found, torchs, exact, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == of.shape
        inevitable = (theirs - of).square().mean().sqrt()
        assert (ours - of).square().mean().sqrt() <= 1.5 * inevitable + 1e-12


@pytest.mark.usefixtures("_faster")
def test_a_product_in_bf16_casts_the_weight_and_trains_it_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 96, generator=generator).bfloat16()
    weight, bias = (torch.randn(s, generator=generator).requires_grad_() for s in ((40, 96), (40,)))
    y = products.linear(x, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = functional.linear(x, weight, bias)
    assert torch.equal(y, expected)
    gradients = torch.autograd.grad(y.float().square().sum(), [weight, bias])
    assert [each.dtype for each in gradients] == [torch.float32] * 2


@pytest.mark.usefixtures("_faster")
@DTYPES
def test_a_frozen_weight_gets_no_gradient(dtype: torch.dtype) -> None:
    x, weight = torch.ones(8, 32, dtype=dtype, requires_grad=True), torch.ones(16, 32, dtype=dtype)
    products.linear(x, weight, None).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 16.0))
    assert weight.grad is None


def test_the_plain_path_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_STUDY_NATIVE", "0")
    monkeypatch.setattr(products, "_product", None)
    x, weight = torch.randn(8, 32), torch.randn(16, 32)
    assert torch.equal(products.linear(x, weight, None), functional.linear(x, weight))
