"""Singular values of planted matrices, whose spectra are known before they are measured."""

import math

import numpy as np
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra import ranks
from lowrank_study.spectra.svd import (
    certified_svd,
    energy_rank_bounds,
    frobenius_norm,
    svd_of_matrix,
    svd_of_product,
)


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def planted_spectrum(rng, count):
    """Descending values of one of five families, condition at most 1e4, in any unit."""
    index = np.arange(1, count + 1)
    family = rng.integers(5)
    if family == 0:
        sigma = np.ones(count)
    elif family == 1:
        sigma = index ** -rng.uniform(0.2, 1.5)
    elif family == 2:
        sigma = np.exp(-rng.uniform(0.0, 8.0) * (index - 1) / count)
    elif family == 3:
        sigma = np.where(index <= rng.integers(1, count + 1), 1.0, 1e-3)
    else:
        sigma = np.sort(rng.uniform(1e-2, 1.0, count))[::-1]
    return sigma * 10.0 ** rng.uniform(-30, 30)


@pytest.mark.parametrize("seed", range(300))
def test_planted_spectrum_is_found(seed):
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 97, size=2)
    count = min(m, n)
    sigma = planted_spectrum(rng, count)
    matrix = orthonormal(rng, m, count) * sigma @ orthonormal(rng, n, count).T
    gram = svd_of_matrix(matrix, method="gram")
    lapack = svd_of_matrix(matrix, method="svd")
    np.testing.assert_allclose(gram.singular_values, sigma, rtol=1e-7, atol=0)
    np.testing.assert_allclose(lapack.singular_values, sigma, rtol=1e-10, atol=0)
    assert np.abs(gram.singular_values - sigma).max() <= gram.absolute_error
    assert np.abs(lapack.singular_values - sigma).max() <= 4 * lapack.absolute_error
    assert gram.frobenius_norm == pytest.approx(
        math.sqrt(math.fsum((s / sigma[0]) ** 2 for s in sigma)) * sigma[0], rel=1e-12
    )
    for found in (gram.singular_values, lapack.singular_values):
        assert ranks.effective_rank(found) == pytest.approx(ranks.effective_rank(sigma), rel=1e-6)
        assert ranks.stable_rank(found) == pytest.approx(ranks.stable_rank(sigma), rel=1e-6)
        assert ranks.participation_ratio(found) == pytest.approx(
            ranks.participation_ratio(sigma), rel=1e-6
        )
        for share in (0.901, 0.953, 0.989):
            assert ranks.energy_rank(found, share) == ranks.energy_rank(sigma, share)


@pytest.mark.parametrize("seed", range(60))
def test_planted_product_is_found_from_its_factors(seed):
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 80, size=2)
    count = int(rng.integers(1, min(m, n) + 1))
    sigma = planted_spectrum(rng, count)
    # A badly balanced factorisation of the same matrix, with a rotation in between.
    rotation = orthonormal(rng, count, count)
    scaling = float(rng.choice([-2.0, 0.125, 3.0]))
    B = orthonormal(rng, m, count) * np.sqrt(sigma) @ rotation
    A = (rotation.T * 1.0) @ (orthonormal(rng, n, count) * np.sqrt(sigma)).T
    found = svd_of_product(B, A, scaling)
    expected = sigma * abs(scaling)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-9, atol=0)
    assert found.frobenius_norm == pytest.approx(
        float(np.linalg.norm(expected / expected[0])) * expected[0], rel=1e-12
    )
    assert found.shape == (m, n)
    assert np.abs(found.singular_values - expected).max() <= 4 * found.absolute_error
    dense = svd_of_matrix(scaling * B @ A, method="svd").singular_values
    np.testing.assert_allclose(dense[:count], found.singular_values, rtol=1e-9)


def test_a_rank_larger_than_the_matrix_is_handled():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((5, 40)), rng.standard_normal((40, 7))
    found = svd_of_product(B, A, 0.5)
    expected = np.linalg.svd(0.5 * B @ A, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (6, 30), (30, 6), (20, 20)])
def test_transposing_and_rotating_change_nothing(method, shape):
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal(shape)
    first = svd_of_matrix(matrix, method=method)
    m, n = shape
    for other in (
        matrix.T,
        -matrix,
        orthonormal(rng, m, m) @ matrix,
        matrix @ orthonormal(rng, n, n),
        matrix[rng.permutation(m)],
    ):
        found = svd_of_matrix(other, method=method)
        np.testing.assert_allclose(found.singular_values, first.singular_values, rtol=1e-9, atol=0)
        assert found.frobenius_norm == pytest.approx(first.frobenius_norm, rel=1e-12)


@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize("exponent", [-1060, -700, -100, 100, 700, 1000])
def test_a_power_of_two_scales_exactly(method, exponent):
    rng = np.random.default_rng(2)
    matrix = rng.integers(-9, 10, size=(12, 8)).astype(np.float64)
    first = svd_of_matrix(matrix, method=method)
    found = svd_of_matrix(np.ldexp(matrix, exponent), method=method)
    np.testing.assert_array_equal(found.singular_values, np.ldexp(first.singular_values, exponent))
    assert found.frobenius_norm == math.ldexp(first.frobenius_norm, exponent)


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_float32_is_measured_in_float64(method):
    rng = np.random.default_rng(3)
    single = rng.standard_normal((40, 30)).astype(np.float32)
    double = svd_of_matrix(single.astype(np.float64), method=method)
    found = svd_of_matrix(single, method=method)
    np.testing.assert_array_equal(found.singular_values, double.singular_values)
    assert frobenius_norm(single) == pytest.approx(
        math.sqrt(math.fsum(float(x) ** 2 for x in single.ravel())), rel=1e-14
    )


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_untouched_rows_and_columns_are_left_out(method):
    rng = np.random.default_rng(4)
    matrix = np.zeros((50, 20), dtype=np.float32)
    rows, columns = rng.permutation(50)[:7], rng.permutation(20)[:12]
    matrix[np.ix_(rows, columns)] = rng.standard_normal((7, 12))
    found = svd_of_matrix(matrix, method=method)
    assert found.active_shape == (7, 12)
    assert found.shape == (50, 20)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[:7]
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-9)


def test_large_gram_matrices_are_summed_over_blocks(monkeypatch):
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((64, 4)).astype(np.float32)
    whole = svd_of_matrix(matrix, method="gram")
    monkeypatch.setattr("lowrank_study.spectra.svd.BLOCK_ENTRIES", 20)
    for oriented in (matrix, matrix.T):
        parts = svd_of_matrix(oriented, method="gram")
        np.testing.assert_allclose(parts.singular_values, whole.singular_values, rtol=1e-12)
        assert parts.frobenius_norm == pytest.approx(whole.frobenius_norm, rel=1e-14)


def test_large_gram_matrices_have_the_same_eigenvalues(monkeypatch):
    matrix = np.random.default_rng(9).standard_normal((70, 50))
    small = svd_of_matrix(matrix, method="gram")
    monkeypatch.setattr("lowrank_study.spectra.eigenvalues.LARGE_GRAM", 50)
    large = svd_of_matrix(matrix, method="gram")
    np.testing.assert_allclose(large.singular_values, small.singular_values, rtol=1e-12)


def test_zero_and_one_by_one():
    zero = svd_of_matrix(np.zeros((3, 4)), method="gram")
    assert zero.singular_values.size == 0
    assert zero.frobenius_norm == 0.0
    assert zero.active_shape == (0, 0)
    assert svd_of_matrix(np.array([[-2.5]]), method="gram").singular_values.tolist() == [2.5]
    assert svd_of_product(np.zeros((3, 2)), np.ones((2, 4)), 1.0).singular_values.size == 0
    assert certified_svd(np.zeros((3, 4)), shares=(0.9,)).frobenius_norm == 0.0


def test_error_of_the_gram_method_is_within_its_bound():
    rng = np.random.default_rng(6)
    n = 300
    sigma = 10.0 ** -np.linspace(0, 16, n)
    matrix = orthonormal(rng, n, n) * sigma @ orthonormal(rng, n, n).T
    found = svd_of_matrix(matrix, method="gram")
    assert (
        np.abs(found.singular_values - sigma).max()
        <= found.absolute_error
        == 1e-7 * (found.singular_values[0])
    )
    large = sigma >= 1e-4
    np.testing.assert_allclose(found.singular_values[large], sigma[large], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused_with_their_count(bad):
    matrix = np.ones((3, 4), dtype=np.float32)
    matrix[1, 2] = bad
    for measure in (
        lambda: svd_of_matrix(matrix, method="gram"),
        lambda: svd_of_matrix(matrix, method="svd"),
        lambda: certified_svd(matrix, shares=(0.9,)),
        lambda: svd_of_product(matrix, np.ones((4, 2)), 1.0),
        lambda: frobenius_norm(matrix),
    ):
        with pytest.raises(InputError, match="1 of 12 entries are NaN or Inf"):
            measure()
    with pytest.raises(InputError, match="scaling"):
        svd_of_product(np.ones((2, 1)), np.ones((1, 2)), bad)


def test_arrays_that_are_not_matrices_are_refused():
    with pytest.raises(InputError, match=r"\(3,\)"):
        svd_of_matrix(np.ones(3), method="gram")
    with pytest.raises(InputError, match=r"\(0, 4\)"):
        svd_of_matrix(np.ones((0, 4)), method="gram")
    with pytest.raises(InputError, match="int64"):
        svd_of_matrix(np.ones((2, 2), dtype=np.int64), method="gram")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="do not multiply"):
        svd_of_product(np.ones((2, 2)), np.ones((3, 2)), 1.0)
    with pytest.raises(InputError, match="exceed the range"):
        svd_of_matrix(np.full((4, 4), 1.7e308), method="gram")


@pytest.mark.parametrize("seed", range(40))
def test_certified_energy_ranks_are_the_exact_ones(seed):
    rng = np.random.default_rng(seed)
    m, n = rng.integers(140, 260, size=2)
    true_rank = int(rng.integers(1, 12))
    sigma = np.sort(rng.uniform(0.1, 1.0, true_rank))[::-1] * 10.0 ** rng.uniform(-30, 30)
    matrix = orthonormal(rng, m, true_rank) * sigma @ orthonormal(rng, n, true_rank).T
    noise = rng.standard_normal((m, n))
    matrix += noise * (sigma[0] * 10.0 ** rng.uniform(-9, -4) / np.linalg.norm(noise))
    shares = (0.9, 0.95, 0.99)
    found = certified_svd(matrix, shares=shares)
    exact = np.linalg.svd(matrix, compute_uv=False)
    assert found.method == "certified"
    assert not found.complete
    assert found.singular_values.size <= 16
    norm = float(np.linalg.norm(matrix / sigma[0])) * sigma[0]
    assert found.frobenius_norm == pytest.approx(norm, rel=1e-12)
    for share in shares:
        low, high = energy_rank_bounds(
            found.singular_values, found.frobenius_norm, found.residual_norm, share
        )
        assert low == high == ranks.energy_rank(exact, share)
    count = found.singular_values.size
    assert (found.singular_values <= exact[:count] * (1 + 1e-12)).all()
    assert (exact[:count] - found.singular_values <= found.absolute_error).all()
    left_out = float(np.linalg.norm(exact[count:] / sigma[0])) * sigma[0]
    assert left_out <= found.residual_norm * (1 + 1e-9)
    held = float(np.sum((found.singular_values / norm) ** 2))
    assert found.captured_energy_share <= held * (1 + 1e-12)
    assert found.captured_energy_share == pytest.approx(held, abs=1e-9)


def test_certified_grows_until_the_share_is_certain():
    rng = np.random.default_rng(7)
    sigma = np.exp(-np.arange(400) / 8.0)
    matrix = orthonormal(rng, 400, 400) * sigma @ orthonormal(rng, 400, 400).T
    found = certified_svd(matrix, shares=(0.9, 0.99))
    assert found.method == "certified"
    assert found.singular_values.size in (32, 64)
    bounds = energy_rank_bounds(
        found.singular_values, found.frobenius_norm, found.residual_norm, 0.99
    )
    assert bounds == (ranks.energy_rank(sigma, 0.99),) * 2


def test_certified_falls_back_to_exact_on_noise_and_on_small_matrices():
    rng = np.random.default_rng(8)
    for shape in ((200, 200), (30, 40), (1, 1)):
        matrix = rng.standard_normal(shape)
        found = certified_svd(matrix, shares=(0.9,))
        assert (found.method, found.complete) == ("gram", True)
        exact = svd_of_matrix(matrix, method="gram")
        np.testing.assert_array_equal(found.singular_values, exact.singular_values)


def test_bounds_of_an_energy_rank_say_what_is_not_known():
    values = np.array([3.0, 1.0])
    # The residual of norm sqrt(2) may be one direction or spread thin.
    norm = math.sqrt(12.0)
    assert energy_rank_bounds(values, norm, math.sqrt(2.0), 0.7) == (1, 1)
    assert energy_rank_bounds(values, norm, math.sqrt(2.0), 0.8) == (1, 2)
    assert energy_rank_bounds(values, norm, math.sqrt(2.0), 0.95) == (2, None)
    assert energy_rank_bounds(np.zeros(0), 0.0, 0.0, 0.9) == (0, 0)


@pytest.mark.parametrize("shares", [(), (0.0,), (0.9, 1.0)])
def test_shares_that_cannot_be_certified_are_refused(shares):
    with pytest.raises(InputError, match="shares"):
        certified_svd(np.ones((2, 2)), shares=shares)
