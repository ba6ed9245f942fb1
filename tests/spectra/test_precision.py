"""The precision of numbers is inferred from their bits."""

import numpy as np
import pytest
import torch

from lowrank_study.spectra.precision import (
    CoarseStart,
    UsedBits,
    coarse_start,
    dtype_of_difference,
    dtype_of_values,
)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
        (torch.float32, "float32"),
        (torch.float64, "float64"),
    ],
)
def test_the_dtype_that_values_have_been_through(dtype, expected):
    random = torch.Generator().manual_seed(4)
    values = torch.randn(20, 30, generator=random, dtype=torch.float64).to(dtype)
    assert dtype_of_values(values.double().numpy()) == expected
    if dtype != torch.float64:
        assert dtype_of_values(values.float().numpy()) == expected
        assert dtype_of_values(values.float().numpy().T) == expected


def test_uninformative_values_keep_the_declared_dtype():
    assert dtype_of_values(np.zeros((3, 3), dtype=np.float32)) == "float32"
    assert dtype_of_values(np.ones((3, 3))) == "float64"
    # Beyond the range of float16, though its 11 bits would do.
    assert dtype_of_values(np.array([[2.0**20 + 2.0**10, 1.0]], dtype=np.float32)) == "float32"


@pytest.mark.parametrize("rows", [1, 7, 20])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_blocks_give_the_same_result_as_the_whole(dtype, rows):
    random = torch.Generator().manual_seed(5)
    values = torch.randn(20, 30, generator=random).to(getattr(torch, dtype)).float().numpy()
    values[:7] = 1.0  # nothing is told by these
    found = UsedBits()
    for first in range(0, 20, rows):
        found.add(values[first : first + rows])
    assert found.dtype() == dtype == dtype_of_values(values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_numbers_of_a_16_bit_dtype_fit_it(dtype):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(getattr(torch, dtype))
    values = bits[bits.isfinite()].float().numpy()
    assert dtype_of_values(values) == dtype


def test_half_a_step_of_the_smallest_float16_is_not_a_float16():
    steps = np.array([1.0, 2.0**-24, 1.0 + 2.0**-10], dtype=np.float32)
    assert dtype_of_values(steps) == "float16"
    assert dtype_of_values(np.append(steps, np.float32(2.0**-25))) == "float32"
    assert dtype_of_values(np.append(steps, np.float32(65536.0))) == "float32"


@pytest.fixture
def fine():
    """Weights in float32, and a low-rank change of the same norm."""
    random = torch.Generator().manual_seed(7)
    W = 0.02 * torch.randn(300, 200, generator=random)
    direction = torch.randn(300, 4, generator=random) @ torch.randn(4, 200, generator=random)
    return W, direction * (W.norm() / direction.norm())


def dtype_of(W0, W):
    W0, W = W0.float().numpy(), W.float().numpy()
    delta = W.astype(np.float64) - W0
    return dtype_of_difference(W0, W, delta, dtypes=("bfloat16", "float32"))


@pytest.mark.parametrize("relative", [1e-5, 1e-3, 3e-3])
def test_training_that_began_from_the_rounded_weights_is_exact(fine, relative):
    start = fine[0].bfloat16()
    assert dtype_of(start, start.float() + relative * fine[1]) == "float32"


@pytest.mark.parametrize("relative", [0.0, 1e-5, 1e-3, 3e-3, 1e-2, 0.3])
@pytest.mark.parametrize("trained_in", [torch.float32, torch.float16])
def test_weights_rounded_after_training_began_have_their_rounding_in_it(fine, relative, trained_in):
    tuned = (fine[0].to(trained_in).float() + relative * fine[1]).to(trained_in)
    assert dtype_of(fine[0].to(trained_in).bfloat16(), tuned) == "bfloat16"


def test_many_rounded_entries_are_not_taken_for_exact():
    """Powers of two, below which steps are half as long, are more often close than others."""
    random = torch.Generator().manual_seed(8)
    W = torch.rand(2000, 2000, generator=random) + 1.0
    start = CoarseStart("bfloat16")
    for _ in range(4):
        start.add(W.bfloat16().float().numpy(), (W.double() - W.bfloat16().double()).numpy())
    assert start.is_rounded()


def test_unchanged_rows_show_that_nothing_was_rounded(fine):
    start = fine[0].bfloat16()
    tuned = start.float()
    tuned[:10] += fine[1][:10]
    assert dtype_of(start, tuned) == "float32"
    rounded = fine[0].clone()
    rounded[:10] += fine[1][:10]
    assert dtype_of(start, rounded) == "bfloat16"


def test_an_undecided_difference_counts_as_rounded(fine):
    start = fine[0].bfloat16()
    assert dtype_of(start[:5, :5], start[:5, :5].float() + 1e-6) == "bfloat16", "too few entries"
    assert dtype_of(start, start.float() + fine[1]) == "bfloat16", "as large as the weights"


def test_only_a_coarser_start_needs_a_test():
    assert coarse_start("float32", "bfloat16") is None
    assert coarse_start("bfloat16", "bfloat16") is None
    assert coarse_start("Q4_1", "float32") is None
    assert coarse_start("float8_e4m3fn", "float32") is None
    assert isinstance(coarse_start("bfloat16", "float16"), CoarseStart)
    assert isinstance(coarse_start("float32", "float64"), CoarseStart)
