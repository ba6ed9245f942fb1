"""Noise floors against simulated noise: what each measure says where there is nothing."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from lowrank_study.errors import InputError
from lowrank_study.spectra import ranks
from lowrank_study.spectra.noise import (
    FLOAT_FORMATS,
    gavish_donoho_coefficient,
    gavish_donoho_rank,
    is_resolvable,
    marchenko_pastur_edge,
    marchenko_pastur_median,
    noise_std,
    resolvable_energy_share,
    rounding_floor,
    rounding_floor_of_factors,
)

N = 768


def singular_values(matrix):
    return np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T), 0.0))[::-1]


def stored(matrix, dtype):
    """The matrix after storage in a dtype, as float64."""
    return torch.from_numpy(matrix).to(getattr(torch, dtype)).to(torch.float64).numpy()


@pytest.fixture(scope="module")
def gaussian():
    return np.random.default_rng(0).standard_normal((N, N))


@pytest.fixture(scope="module")
def gaussian_sigma(gaussian):
    return singular_values(gaussian)


@pytest.fixture(scope="module")
def rank_4():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((N, 4)) @ rng.standard_normal((4, N))
    return matrix / np.linalg.norm(matrix)


# The published constants of pure noise, n x n.


def test_energy_ranks_of_noise(gaussian_sigma):
    assert ranks.energy_rank(gaussian_sigma, 0.90) / N == pytest.approx(0.509, abs=0.002)
    assert ranks.energy_rank(gaussian_sigma, 0.99) / N == pytest.approx(0.77, abs=0.002)


def test_effective_rank_of_noise(gaussian_sigma):
    assert ranks.effective_rank(gaussian_sigma) / N == pytest.approx(0.804, abs=0.001)
    assert ranks.effective_rank(gaussian_sigma**2) / N == pytest.approx(0.605, abs=0.001)


def test_participation_and_stable_rank_of_noise(gaussian_sigma):
    assert ranks.participation_ratio(gaussian_sigma) / N == pytest.approx(0.5, abs=0.002)
    assert ranks.stable_rank(gaussian_sigma) / N == pytest.approx(0.25, abs=0.005)


def test_cuts_keep_nothing_of_noise(gaussian_sigma):
    assert noise_std(gaussian_sigma, (N, N)) == pytest.approx(1.0, abs=0.002)
    edge = marchenko_pastur_edge(gaussian_sigma, (N, N))
    assert edge == pytest.approx(2 * math.sqrt(N), rel=0.002)
    assert gaussian_sigma[0] == pytest.approx(edge, rel=0.02)
    assert gavish_donoho_rank(gaussian_sigma, (N, N), tolerance=0.0) == 0


def test_rank_4_under_noise_of_half_its_norm(gaussian, rank_4):
    sigma = singular_values(rank_4 + 0.5 * gaussian / np.linalg.norm(gaussian))
    assert ranks.energy_rank(sigma, 0.90) == pytest.approx(141, abs=2)
    assert ranks.effective_rank(sigma) == pytest.approx(447, abs=3)
    assert gavish_donoho_rank(sigma, (N, N), tolerance=0.0) == 4
    assert np.count_nonzero(sigma > marchenko_pastur_edge(sigma, (N, N))) == 4


@pytest.mark.parametrize(
    ("relative_norm", "energy_rank_90", "resolvable"), [(0.003, 228, False), (0.01, 4, True)]
)
def test_rank_4_stored_in_bfloat16(rank_4, relative_norm, energy_rank_90, resolvable):
    W0 = 0.02 * np.random.default_rng(2).standard_normal((N, N))
    W = W0 + relative_norm * np.linalg.norm(W0) * rank_4
    before, after = stored(W0, "bfloat16"), stored(W, "bfloat16")
    sigma = singular_values(after - before)
    assert ranks.energy_rank(sigma, 0.90) == pytest.approx(energy_rank_90, abs=4)
    assert gavish_donoho_rank(sigma, (N, N), tolerance=0.0) == 4
    floor = rounding_floor(before, after - before, "bfloat16")
    assert is_resolvable(sigma, floor.edge, 0.90) is resolvable
    assert np.count_nonzero(sigma > floor.edge) == 4


# Marchenko-Pastur and Gavish-Donoho.


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0])
def test_marchenko_pastur_median_halves_the_law(beta):
    median = marchenko_pastur_median(beta)
    root = math.sqrt(beta)
    low, high = (1 - root) ** 2, (1 + root) ** 2
    x = low + (high - low) * np.sin(np.linspace(0, math.pi / 2, 400_001)[1:-1]) ** 2
    density = np.sqrt((high - x) * (x - low)) / (2 * math.pi * beta * x)
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=1e-5)
    below = x <= median
    assert np.trapezoid(density[below], x[below]) == pytest.approx(0.5, abs=1e-5)


def test_marchenko_pastur_median_of_very_flat_matrices_tends_to_one():
    assert marchenko_pastur_median(1e-6) == pytest.approx(1.0, abs=1e-5)
    assert marchenko_pastur_median(1.0) == pytest.approx(0.6528, abs=1e-4)


@pytest.mark.parametrize("beta", np.linspace(0.01, 1.0, 34))
def test_gavish_donoho_coefficient_agrees_with_its_cubic(beta):
    cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    assert gavish_donoho_coefficient(float(beta)) == pytest.approx(cubic, abs=0.02)


def test_gavish_donoho_coefficient_of_a_square_matrix():
    # There sigma follows the quarter circle, whose distribution function is elementary.
    median = brentq(
        lambda x: (x / 2 * math.sqrt(4 - x * x) + 2 * math.asin(x / 2)) / math.pi - 0.5, 0.1, 1.9
    )
    assert marchenko_pastur_median(1.0) == pytest.approx(median**2, rel=1e-12)
    assert gavish_donoho_coefficient(1.0) == pytest.approx(4 / math.sqrt(3) / median, rel=1e-12)
    assert gavish_donoho_coefficient(1.0) == pytest.approx(2.858, abs=5e-4)


@pytest.mark.parametrize("shape", [(400, 100), (100, 400), (300, 200), (500, 20)])
def test_rectangular_noise_under_a_signal_is_seen_through(shape):
    rng = np.random.default_rng(3)
    m, n = shape
    noise = 0.3 * rng.standard_normal(shape)
    assert noise_std(np.linalg.svd(noise, compute_uv=False), shape) == pytest.approx(0.3, rel=0.03)
    U = np.linalg.qr(rng.standard_normal((m, 3)))[0]
    V = np.linalg.qr(rng.standard_normal((n, 3)))[0]
    edge = 0.3 * (math.sqrt(m) + math.sqrt(n))
    sigma = np.linalg.svd(noise + U * (np.array([4.0, 3.0, 2.0]) * edge) @ V.T, compute_uv=False)
    assert gavish_donoho_rank(sigma, shape, tolerance=0.0) == 3
    assert np.count_nonzero(sigma > 1.05 * marchenko_pastur_edge(sigma, shape)) == 3


def test_cuts_do_not_depend_on_the_unit(gaussian, rank_4):
    sigma = singular_values(rank_4 + 0.5 * gaussian / np.linalg.norm(gaussian))
    for unit in (2.0**-900, 2.0**900):
        assert gavish_donoho_rank(sigma * unit, (N, N), tolerance=0.0) == 4
        assert marchenko_pastur_edge(sigma * unit, (N, N)) == unit * marchenko_pastur_edge(
            sigma, (N, N)
        )


def test_a_matrix_of_exactly_low_rank_has_no_noise_to_cut():
    sigma = [5.0, 3.0, 1e-12]
    assert marchenko_pastur_edge(sigma, (20, 30)) == 0.0
    assert gavish_donoho_rank(sigma, (20, 30), tolerance=1e-9) == 2
    assert gavish_donoho_rank(sigma, (20, 30), tolerance=0.0) == 3
    assert gavish_donoho_rank([], (20, 30), tolerance=0.0) == 0


def test_the_median_counts_zeros_left_out():
    # Of 4 values 3, 2 and two zeros the median is 1; of 5 it is 0.
    s = noise_std([3.0, 2.0], (4, 4))
    assert s == pytest.approx(1.0 / math.sqrt(4 * marchenko_pastur_median(1.0)), rel=1e-14)
    assert noise_std([3.0, 2.0], (5, 5)) == 0.0
    with pytest.raises(InputError, match="3 singular values of a 2 x 9"):
        noise_std([3.0, 2.0, 1.0], (2, 9))


@pytest.mark.parametrize("beta", [0.0, -1.0, 1.5])
def test_an_impossible_aspect_ratio_is_refused(beta):
    with pytest.raises(InputError, match="aspect ratio"):
        marchenko_pastur_median(beta)


# Rounding in storage.


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
    assert not is_resolvable(singular_values(delta), floor.edge, 0.90)


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
    assert not is_resolvable([], floor.edge, 0.9)
    assert is_resolvable([], 0.0, 0.9)


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
    assert is_resolvable(kept[:8], floor.edge, 0.99)


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
        assert not is_resolvable([1.0], floor.edge, 0.9)
        assert math.isnan(resolvable_energy_share([1.0], floor.edge))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_float_formats_are_pytorchs(dtype):
    info = torch.finfo(getattr(torch, dtype))
    bits, smallest = FLOAT_FORMATS[dtype]
    assert info.eps == 2.0 ** (1 - bits)
    assert info.smallest_normal == 2.0 ** (smallest + bits - 1)


def test_energy_above_a_floor():
    assert resolvable_energy_share([3.0, 1.0], 2.0) == pytest.approx(0.9, rel=1e-15)
    assert is_resolvable([3.0, 1.0], 2.0, 0.89)
    assert not is_resolvable([3.0, 1.0], 2.0, 0.91)
    assert resolvable_energy_share([3e200, 1e200], 2e200) == pytest.approx(0.9, rel=1e-14)
    assert math.isnan(resolvable_energy_share([0.0], 1.0))


def test_matrices_that_do_not_fit_or_are_not_finite_are_refused():
    with pytest.raises(InputError, match="differ"):
        rounding_floor(np.ones((2, 3)), np.ones((3, 2)), "float32")
    with pytest.raises(InputError, match="NaN or Inf"):
        rounding_floor(None, np.array([[math.nan]]), "float32")
