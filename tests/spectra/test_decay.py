"""Fits of decay recover planted laws and are NaN without enough values."""

import math

import numpy as np
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra.decay import fit_decay

INDEX = np.arange(1, 201, dtype=np.float64)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("amplitude", [1e-30, 0.7, 1e30])
def test_a_power_law_is_recovered(rate, amplitude):
    fit = fit_decay(amplitude * INDEX**-rate, law="power", first=1, last=200)
    assert fit.rate == pytest.approx(rate, rel=1e-10)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("amplitude", [1e-30, 0.7, 1e30])
def test_an_exponential_is_recovered(rate, amplitude):
    fit = fit_decay(amplitude * np.exp(-rate * INDEX), law="exponential", first=3, last=150)
    assert fit.rate == pytest.approx(rate, rel=1e-10)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)


def test_the_right_law_fits_better():
    power, exponential = INDEX**-1.0, np.exp(-0.1 * INDEX)
    for sigma, right, wrong in (
        (power, "power", "exponential"),
        (exponential, "exponential", "power"),
    ):
        assert fit_decay(sigma, law=right, first=1, last=200).r_squared > 0.999999
        assert fit_decay(sigma, law=wrong, first=1, last=200).r_squared < 0.9


def test_r_squared_is_the_share_of_variance_explained():
    rng = np.random.default_rng(0)
    sigma = np.sort(np.exp(rng.standard_normal(50)))[::-1]
    fit = fit_decay(sigma, law="power", first=1, last=50)
    x, y = np.log(INDEX[:50]), np.log(sigma)
    left_over = y - np.polyval(np.polyfit(x, y, 1), x)
    assert fit.r_squared == pytest.approx(1 - left_over.var() / y.var(), rel=1e-12)


def test_only_positive_values_of_the_range_are_fitted():
    sigma = np.concatenate([[10.0, 9.0], INDEX[2:40] ** -2.0, np.zeros(20)])
    fit = fit_decay(sigma, law="power", first=3, last=60)
    assert fit.rate == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("sigma", [[], [0.0, 0.0], [1.0], [2.0, 1.0], [2.0, 1.0, 0.0, 0.0]])
@pytest.mark.parametrize("law", ["power", "exponential"])
def test_fewer_than_three_positive_values_give_no_fit(law, sigma):
    result = fit_decay(sigma, law=law, first=1, last=10)
    assert all(math.isnan(x) for x in (result.rate, result.r_squared))


@pytest.mark.parametrize("law", ["power", "exponential"])
def test_a_flat_spectrum_has_rate_zero_and_nothing_to_explain(law):
    result = fit_decay(np.full(10, 0.1), law=law, first=1, last=10)
    assert result.rate == 0.0
    assert math.isnan(result.r_squared)


@pytest.mark.parametrize(("first", "last"), [(0, 5), (5, 5), (6, 5)])
def test_an_empty_range_is_refused(first, last):
    with pytest.raises(InputError, match="range"):
        fit_decay([3.0, 2.0, 1.0], law="power", first=first, last=last)
