"""Products by native code and by oneDNN equal PyTorch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lowrank_study import native
from lowrank_study.methods.layers import products

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=["native", "oneDNN"])
def _faster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use native code where this processor has it, or oneDNN, which may lack bf16."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(native, "wanted", True)
    dtypes = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.add(torch.bfloat16)
    monkeypatch.setattr(products, "_faster_dtypes", lambda: frozenset(dtypes))
    if request.param == "oneDNN":
        monkeypatch.setattr(products, "_code", lambda dtype: None)


def with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient.to(y.dtype))]


@pytest.mark.usefixtures("_faster")
@DTYPES
@pytest.mark.parametrize("shape", [(70, 96), (2, 33, 96), (1, 96), (12, 64), (13, 90)], ids=str)
@pytest.mark.parametrize("out", [40, 96])
def test_products_are_as_exact_as_torchs(
    dtype: torch.dtype, shape: tuple[int, ...], out: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, gradient = (
        torch.randn(size, generator=generator).to(dtype)
        for size in (shape, (out, shape[-1]), (out,), (*shape[:-1], out))
    )
    inputs = [x, weight, bias]
    found = with_gradients(products.linear, inputs, gradient)
    torchs = with_gradients(functional.linear, inputs, gradient)
    exact = with_gradients(functional.linear, [each.double() for each in inputs], gradient)
    for ours, theirs, of in zip(found, torchs, exact, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == of.shape
        inevitable = (theirs - of).square().mean().sqrt()
        # Libraries add up parts of a sum in fp32; the native code adds one number after another.
        assert (ours - of).square().mean().sqrt() <= 2.5 * inevitable + 1e-12


@pytest.mark.usefixtures("_faster")
@pytest.mark.parametrize("out", [40, 64])
def test_a_product_in_bf16_casts_the_weight_and_trains_it_in_fp32(out: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 96, generator=generator).bfloat16()
    sizes = ((out, 96), (out,))
    weight, bias = (torch.randn(size, generator=generator).requires_grad_() for size in sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = products.linear(x, weight, bias)
        expected = functional.linear(x, weight, bias)
    torch.testing.assert_close(y, expected, rtol=2**-8, atol=2**-8)
    gradients = torch.autograd.grad(y.float().square().sum(), [weight, bias])
    assert [each.dtype for each in gradients] == [torch.float32] * 2
    exact = (2 * y.float()).bfloat16().double().T @ x.double()
    torch.testing.assert_close(gradients[0].double(), exact, rtol=2**-7, atol=2**-7)


def covered(dtype: torch.dtype) -> bool:
    return products._code(dtype) is not None


@DTYPES
def test_a_row_is_equal_among_any_rows_and_by_any_number_of_threads(dtype: torch.dtype) -> None:
    if not covered(dtype):
        pytest.skip("this processor has no native products in this dtype")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 128, generator=generator).to(dtype)
    weight = torch.randn(192, 128, generator=generator).to(dtype)
    every = products.linear(x, weight, None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(products.linear(x, weight, None), every)
    finally:
        torch.set_num_threads(before)
    for first, last in ((0, 1), (0, 12), (5, 18), (101, 250)):
        assert torch.equal(products.linear(x[first:last], weight, None), every[first:last])


@pytest.mark.usefixtures("_faster")
@DTYPES
def test_a_frozen_weight_gets_no_gradient(dtype: torch.dtype) -> None:
    x, weight = torch.ones(8, 32, dtype=dtype, requires_grad=True), torch.ones(16, 32, dtype=dtype)
    products.linear(x, weight, None).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 16.0))
    assert weight.grad is None


def test_the_plain_path_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "wanted", False)
    monkeypatch.setattr(products, "multiply", None)
    x, weight = torch.randn(8, 32), torch.randn(16, 32)
    assert torch.equal(products.linear(x, weight, None), functional.linear(x, weight))


@pytest.mark.usefixtures("_faster")
@DTYPES
@pytest.mark.parametrize("rank", [2, 8, 34])
def test_factors_of_runs_are_multiplied_as_exactly_as_by_torch(
    dtype: torch.dtype, rank: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x_RTI = torch.randn(3, 29, 64, generator=generator).to(dtype)
    A_RKI = torch.randn(3, rank, 64, generator=generator)
    rounded = A_RKI.to(dtype)
    low_RTK = products.multiply(x_RTI, A_RKI.mT)
    y_RTI = x_RTI.clone()
    found = (
        low_RTK,
        products.multiply(low_RTK.mT, x_RTI, dtype=torch.float32),
        products.multiply(low_RTK, A_RKI, onto=y_RTI),
    )
    low, x = low_RTK.double(), x_RTI.double()
    exact = (x @ rounded.double().mT, low.mT @ x, x + low @ rounded.double())
    for ours, of in zip(found, exact, strict=True):
        assert ours.shape == of.shape
        error = (ours - of).square().mean().sqrt() / of.square().mean().sqrt()
        assert error < (3e-3 if dtype == torch.bfloat16 else 1e-6)
    assert found[1].dtype == torch.float32
    assert found[2] is y_RTI


@pytest.mark.usefixtures("_faster")
@DTYPES
def test_parts_of_larger_matrices_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    whole_x, whole_weight = (
        torch.randn(size, generator=generator).to(dtype) for size in ((40, 128), (64, 128))
    )
    x, weight = whole_x[:, :64], whole_weight[:, 32:96]
    assert not weight.is_contiguous()
    assert not weight.T.is_contiguous()
    exact = x.double() @ weight.double().T
    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-5
    for found in (products.linear(x, weight, None), products.multiply(x, weight.T)):
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_faster")
def test_a_matrix_in_bf16_is_multiplied_by_one_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 64, generator=generator)
    weight = torch.randn(64, 64, generator=generator).bfloat16()
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(products.multiply(x, weight.T).double(), exact, rtol=1e-5, atol=1e-5)
