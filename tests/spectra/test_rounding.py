"""Rounding floors against the rounding errors of real storage."""

import math

import numpy as np
import pytest
import torch

from lowrank_study.errors import InputError
from lowrank_study.spectra.rounding import (
    FLOAT_FORMATS,
    resolvable_energy_share,
    rounding_floor,
    rounding_floor_of_factors,
)
from tests.spectra.conftest import singular_values, stored


@pytest.mark.parametrize(
    # Values just below a power of two are rounded up to it and then read as having its larger
    # step: with the 4 bits of float8 that makes the estimate 3 % too large.
    ("dtype", "excess"),
    [("bfloat16", 0.0), ("float16", 0.0), ("float32", 0.0), ("float8_e4m3fn", 0.035)],
)
@pytest.mark.parametrize("shape", [(300, 200), (100, 400)])
def test_floor_of_a_difference_is_the_rounding_it_has(dtype, excess, shape):
    rng = np.random.default_rng(4)
    W0 = 0.5 * rng.standard_normal(shape)
    # Larger than a step, so that both roundings are independent; entries of all magnitudes.
    delta = 0.5 * rng.standard_normal(shape) * rng.uniform(0.5, 2.0, shape)
    before, after = stored(W0, dtype), stored(W0 + delta, dtype)
    error = (after - before) - delta
    floor = rounding_floor(before, after - before, dtype)
    expected = (1 + excess) * float(np.linalg.norm(error))
    assert floor.frobenius_norm == pytest.approx(expected, rel=0.01)
    largest = float(np.linalg.norm(error, 2))
    assert largest <= floor.edge <= 1.25 * largest


def test_floor_where_rows_differ_in_magnitude():
    rng = np.random.default_rng(5)
    magnitudes = 10.0 ** rng.uniform(-4, 1, size=(250, 1))
    W0 = magnitudes * rng.standard_normal((250, 350))
    before, after = stored(W0, "bfloat16"), stored(W0 * 1.3, "bfloat16")
    error = (after - before) - 0.3 * W0
    floor = rounding_floor(before, after - before, "bfloat16")
    assert floor.frobenius_norm == pytest.approx(np.linalg.norm(error), rel=0.03)
    largest = float(np.linalg.norm(error, 2))
    assert largest <= floor.edge <= 1.5 * largest


def test_subnormal_steps_of_float16_are_not_relative():
    rng = np.random.default_rng(6)
    W0, delta = 1e-6 * rng.standard_normal((2, 200, 200))
    before, after = stored(W0, "float16"), stored(W0 + delta, "float16")
    error = (after - before) - delta
    floor = rounding_floor(before, after - before, "float16")
    assert floor.frobenius_norm == pytest.approx(np.linalg.norm(error), rel=0.03)


def test_updates_below_a_step_are_never_resolvable():
    rng = np.random.default_rng(7)
    W0 = rng.standard_normal((200, 200))
    update = 1e-4 * np.outer(rng.standard_normal(200), rng.standard_normal(200))
    before, after = stored(W0, "bfloat16"), stored(W0 + update, "bfloat16")
    delta = after - before
    assert np.count_nonzero(delta) < 0.2 * delta.size
    floor = rounding_floor(before, delta, "bfloat16")
    assert resolvable_energy_share(singular_values(delta), floor.edge) < 0.90


def test_rows_in_which_nothing_changed_hold_no_rounding():
    rng = np.random.default_rng(8)
    W0, delta = rng.standard_normal((60, 40)), rng.standard_normal((60, 40))
    part = rounding_floor(W0[:20, :30], delta[:20, :30], "bfloat16")
    delta[20:], delta[:, 30:] = 0.0, 0.0
    whole = rounding_floor(W0, delta, "bfloat16")
    assert whole == part


def test_identical_checkpoints_keep_the_floor_they_could_hide_under():
    W0 = np.random.default_rng(9).standard_normal((30, 20))
    floor = rounding_floor(W0, np.zeros_like(W0), "bfloat16")
    assert floor.edge > 0


def test_floors_scale_with_the_unit_and_transpose():
    rng = np.random.default_rng(10)
    W0, delta = rng.standard_normal((2, 30, 20))
    floor = rounding_floor(W0, delta, "bfloat16")
    for exponent in (-100, 60):
        other = rounding_floor(np.ldexp(W0, exponent), np.ldexp(delta, exponent), "bfloat16")
        assert other.edge == math.ldexp(floor.edge, exponent)
        assert other.frobenius_norm == math.ldexp(floor.frobenius_norm, exponent)
    flipped = rounding_floor(W0.T, delta.T, "bfloat16")
    assert flipped.edge == pytest.approx(floor.edge, rel=1e-14)
    huge = rounding_floor(W0 * 1e300, delta * 1e300, "float64")
    assert huge.edge == pytest.approx(1e300 * 2.0**-45 * floor.edge, rel=0.3)


def test_a_matrix_that_was_stored_itself_has_the_steps_of_its_own_entries():
    rng = np.random.default_rng(11)
    delta = 1e-3 * rng.standard_normal((300, 200))
    kept = stored(delta, "bfloat16")
    floor = rounding_floor(None, kept, "bfloat16")
    error = kept - delta
    assert floor.frobenius_norm == pytest.approx(np.linalg.norm(error), rel=0.03)
    assert np.linalg.norm(error, 2) <= floor.edge <= 1.25 * np.linalg.norm(error, 2)
    assert rounding_floor(None, np.zeros((3, 3)), "bfloat16").edge == 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_factors_move_singular_values_by_less_than_their_floor(dtype):
    rng = np.random.default_rng(12)
    B, A = 0.01 * rng.standard_normal((300, 8)), rng.standard_normal((8, 200))
    B_kept, A_kept = stored(B, dtype), stored(A, dtype)
    floor = rounding_floor_of_factors(B_kept, A_kept, -2.0, dtype)
    error = -2.0 * (B_kept @ A_kept - B @ A)
    assert floor.frobenius_norm == pytest.approx(np.linalg.norm(error), rel=0.05)
    kept = np.linalg.svd(-2.0 * B_kept @ A_kept, compute_uv=False)
    true = np.linalg.svd(-2.0 * B @ A, compute_uv=False)
    assert np.abs(kept - true).max() <= floor.edge
    # The factors' rounding adds no direction: rank 8 stays rank 8, in any dtype.
    assert kept[8] < 1e-12 * kept[0]
    assert resolvable_energy_share(kept[:8], floor.edge) >= 0.99


def test_untrained_factors_have_no_floor():
    A = np.random.default_rng(13).standard_normal((4, 20))
    assert rounding_floor_of_factors(np.zeros((10, 4)), A, 1.0, "bfloat16").edge == 0.0


def test_a_quantised_dtype_has_an_unknown_floor_and_nothing_above_it():
    ones = np.ones((3, 3))
    for floor in (
        rounding_floor(ones, ones, "Q4_1"),
        rounding_floor(None, ones, "Q4_1"),
        rounding_floor_of_factors(ones, ones, 1.0, "Q4_1"),
    ):
        assert math.isnan(floor.edge)
        assert math.isnan(resolvable_energy_share([1.0], floor.edge))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_float_formats_are_pytorchs(dtype):
    info = torch.finfo(getattr(torch, dtype))
    bits, smallest = FLOAT_FORMATS[dtype]
    assert info.eps == 2.0 ** (1 - bits)
    assert info.smallest_normal == 2.0 ** (smallest + bits - 1)


def test_energy_above_a_floor():
    assert resolvable_energy_share([3.0, 1.0], 2.0) == pytest.approx(0.9, rel=1e-15)
    assert resolvable_energy_share([3e200, 1e200], 2e200) == pytest.approx(0.9, rel=1e-14)
    assert math.isnan(resolvable_energy_share([0.0], 1.0))


def test_matrices_that_do_not_fit_or_are_not_finite_are_refused():
    with pytest.raises(InputError, match="differ"):
        rounding_floor(np.ones((2, 3)), np.ones((3, 2)), "float32")
    with pytest.raises(InputError, match="NaN or Inf"):
        rounding_floor(None, np.array([[math.nan]]), "float32")
