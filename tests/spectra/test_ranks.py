"""Each measure of rank against its formula, known spectra, invariances and edge cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_study.errors import InputError
from lowrank_study.spectra.ranks import (
    checked,
    effective_rank,
    energy_rank,
    participation_ratio,
    rank_tolerance,
    sigma_ratio,
    stable_rank,
)


def numerical_rank(sigma, shape, eps, absolute_error):
    return np.count_nonzero(np.asarray(sigma) > rank_tolerance(sigma, shape, eps, absolute_error))


spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(
    lambda values: np.sort(np.array(values))[::-1]
)


@pytest.mark.parametrize("n", [1, 2, 10, 100, 768])
def test_equal_singular_values_count_as_many_directions_as_there_are(n):
    sigma = np.full(n, 0.3)
    assert effective_rank(sigma) == pytest.approx(n, rel=1e-12)
    assert stable_rank(sigma) == pytest.approx(n, rel=1e-12)
    assert participation_ratio(sigma) == pytest.approx(n, rel=1e-12)
    assert energy_rank(sigma, 1.0) == n
    assert energy_rank(sigma, 0.5) == math.ceil(n / 2)
    assert energy_rank(sigma, 0.9) == math.ceil(9 * n / 10)


def test_the_modules_own_example():
    sigma = np.array([3.0, 1.0, 0.1])
    assert energy_rank(sigma, 0.90) == 2
    assert effective_rank(sigma) == pytest.approx(1.9412, abs=5e-5)


@settings(deadline=None, derandomize=True)
@given(spectra, st.floats(0.01, 0.999))
def test_energy_rank_is_the_smallest_that_holds_the_share(sigma, share):
    k = energy_rank(sigma, share)
    energies = [s * s for s in sigma]
    total = math.fsum(energies)
    assert math.fsum(energies[:k]) >= share * total * (1 - 1e-12)
    assert math.fsum(energies[: k - 1]) < share * total * (1 + 1e-12)


@settings(deadline=None, derandomize=True)
@given(spectra)
def test_measures_follow_their_formulas(sigma):
    energies = [float(s) ** 2 for s in sigma]
    p = [float(s) / math.fsum(sigma) for s in sigma]
    assert effective_rank(sigma) == pytest.approx(
        math.exp(-math.fsum(x * math.log(x) for x in p if x > 0)), rel=1e-12
    )
    assert stable_rank(sigma) == pytest.approx(math.fsum(energies) / energies[0], rel=1e-12)
    assert participation_ratio(sigma) == pytest.approx(
        math.fsum(energies) ** 2 / math.fsum(e * e for e in energies), rel=1e-12
    )


@settings(deadline=None, derandomize=True)
@given(spectra, st.integers(-900, 900))
def test_the_unit_changes_no_rank(sigma, exponent):
    scaled = np.ldexp(sigma, exponent)
    assert scaled[0] > 0
    for share in (0.5, 0.9, 0.99):
        assert energy_rank(scaled, share) == energy_rank(sigma, share)
    assert effective_rank(scaled) == effective_rank(sigma)
    assert stable_rank(scaled) == stable_rank(sigma)
    assert participation_ratio(scaled) == participation_ratio(sigma)
    for eps in (2.0**-23, 2.0**-52):
        assert numerical_rank(scaled, (40, 50), eps=eps, absolute_error=0.0) == numerical_rank(
            sigma, (40, 50), eps=eps, absolute_error=0.0
        )


@settings(deadline=None, derandomize=True)
@given(spectra)
def test_measures_are_ordered_and_bounded(sigma):
    n = sigma.size
    slack = 1 + 1e-12
    assert 1 <= stable_rank(sigma) * slack <= participation_ratio(sigma) * slack**2
    assert participation_ratio(sigma) <= effective_rank(sigma) ** 2 * slack
    assert effective_rank(sigma) <= n * slack
    assert 1 <= energy_rank(sigma, 0.9) <= energy_rank(sigma, 0.95) <= energy_rank(sigma, 0.99) <= n


@settings(deadline=None, derandomize=True)
@given(spectra, st.integers(1, 50))
def test_zeros_at_the_end_change_nothing(sigma, count):
    padded = np.concatenate([sigma, np.zeros(count)])
    for share in (0.9, 0.99, 1.0):
        assert energy_rank(padded, share) == energy_rank(sigma, share)
    assert effective_rank(padded) == pytest.approx(effective_rank(sigma), rel=1e-14)
    assert stable_rank(padded) == pytest.approx(stable_rank(sigma), rel=1e-14)
    assert participation_ratio(padded) == pytest.approx(participation_ratio(sigma), rel=1e-14)


@pytest.mark.parametrize("sigma", [[], [0.0], [0.0, 0.0, 0.0]])
def test_counts_of_a_zero_matrix_are_zero_and_ratios_undefined(sigma):
    assert energy_rank(sigma, 0.9) == 0
    assert numerical_rank(sigma, (3, 4), eps=2.0**-52, absolute_error=0.0) == 0
    for ratio in (effective_rank, stable_rank, participation_ratio):
        assert math.isnan(ratio(sigma))
    assert math.isnan(sigma_ratio(sigma, 1))


@pytest.mark.parametrize("unit", [1e-300, 1e-160, 1e-30, 1e30, 1e160, 1e300, 5e-324])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(unit):
    sigma = np.array([1.0, 1.0, 1.0, 1.0]) * unit
    assert energy_rank(sigma, 0.9) == 4
    assert effective_rank(sigma) == pytest.approx(4, rel=1e-12)
    assert stable_rank(sigma) == 4
    assert participation_ratio(sigma) == 4


def test_energy_rank_of_the_whole_energy_sees_the_smallest_direction():
    assert energy_rank([1.0, 1e-12], 1.0) == 2
    assert energy_rank([1.0, 1e-12], 0.99) == 1


def test_numerical_rank_is_numpys():
    rng = np.random.default_rng(0)
    for rank in (1, 3, 7):
        matrix = rng.standard_normal((20, rank)) @ rng.standard_normal((rank, 30))
        sigma = np.linalg.svd(matrix, compute_uv=False)
        counted = numerical_rank(sigma, (20, 30), eps=2.0**-52, absolute_error=0.0)
        assert counted == np.linalg.matrix_rank(matrix) == rank


def test_numerical_rank_never_counts_below_the_values_own_error():
    sigma = [1.0, 1e-8, 1e-9]
    assert numerical_rank(sigma, (3, 3), eps=2.0**-52, absolute_error=0.0) == 3
    assert numerical_rank(sigma, (3, 3), eps=2.0**-52, absolute_error=1e-7) == 1
    assert rank_tolerance(sigma, (3, 3), 2.0**-52, 1e-7) == 1e-7


def test_sigma_ratio():
    sigma = 2.0 ** -np.arange(12)
    assert sigma_ratio(sigma, 10) == 512
    assert sigma_ratio(sigma * 1e30, 10) == pytest.approx(512, rel=1e-14)
    assert math.isnan(sigma_ratio(sigma[:9], 10))
    assert math.isnan(sigma_ratio([1.0, 0.0], 2))
    assert math.isnan(sigma_ratio([1e300, 1e-300], 2))
    with pytest.raises(InputError, match="start at 1"):
        sigma_ratio(sigma, 0)


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        ([1.0, math.nan], "NaN or Inf"),
        ([math.inf, 1.0], "NaN or Inf"),
        ([1.0, 2.0], "descending"),
        ([1.0, -1.0], "descending"),
        ([[1.0]], "vector"),
    ],
)
def test_invalid_singular_values_are_refused(sigma, message):
    with pytest.raises(InputError, match=message):
        checked(sigma)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match="outside"):
        energy_rank([1.0], share)
