"""Noise floors and measures of rank are compared with simulated noise."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from lowrank_study.errors import InputError
from lowrank_study.spectra import ranks
from lowrank_study.spectra.noise import (
    gavish_donoho_coefficient,
    gavish_donoho_rank,
    marchenko_pastur_edge,
    marchenko_pastur_median,
    noise_std,
)
from lowrank_study.spectra.rounding import resolvable_energy_share, rounding_floor
from tests.spectra.conftest import singular_values, stored

N = 768


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


def test_noise_thresholds_keep_nothing_of_noise(gaussian_sigma):
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
    assert (resolvable_energy_share(sigma, floor.edge) >= 0.90) is resolvable
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


def test_noise_thresholds_do_not_depend_on_the_unit(gaussian, rank_4):
    sigma = singular_values(rank_4 + 0.5 * gaussian / np.linalg.norm(gaussian))
    for unit in (2.0**-900, 2.0**900):
        assert gavish_donoho_rank(sigma * unit, (N, N), tolerance=0.0) == 4
        assert marchenko_pastur_edge(sigma * unit, (N, N)) == unit * marchenko_pastur_edge(
            sigma, (N, N)
        )


def test_a_matrix_of_exactly_low_rank_has_no_noise():
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
