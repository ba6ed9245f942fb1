"""Fits of decay recover planted laws and say nothing where there is nothing to fit."""

import math

import numpy as np
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra.decay import fit_exponential, fit_power_law

INDEX = np.arange(1, 201, dtype=np.float64)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("amplitude", [1e-30, 0.7, 1e30])
def test_a_power_law_is_recovered(rate, amplitude):
    fit = fit_power_law(amplitude * INDEX**-rate, first=1, last=200)
    assert fit.rate == pytest.approx(rate, rel=1e-10)
    assert fit.amplitude == pytest.approx(amplitude, rel=1e-10)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    assert (fit.law, fit.first, fit.last) == ("power", 1, 200)


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("amplitude", [1e-30, 0.7, 1e30])
def test_an_exponential_is_recovered(rate, amplitude):
    fit = fit_exponential(amplitude * np.exp(-rate * INDEX), first=3, last=150)
    assert fit.rate == pytest.approx(rate, rel=1e-10)
    assert fit.amplitude == pytest.approx(amplitude, rel=1e-10)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    assert (fit.law, fit.first, fit.last) == ("exponential", 3, 150)


def test_the_right_law_fits_better():
    power, exponential = INDEX**-1.0, np.exp(-0.1 * INDEX)
    for sigma, right, wrong in (
        (power, fit_power_law, fit_exponential),
        (exponential, fit_exponential, fit_power_law),
    ):
        assert right(sigma, first=1, last=200).r_squared > 0.999999
        assert wrong(sigma, first=1, last=200).r_squared < 0.9


def test_r_squared_is_the_share_of_variance_explained():
    rng = np.random.default_rng(0)
    sigma = np.sort(np.exp(rng.standard_normal(50)))[::-1]
    fit = fit_power_law(sigma, first=1, last=50)
    x, y = np.log(INDEX[:50]), np.log(sigma)
    left_over = y - (math.log(fit.amplitude) - fit.rate * x)
    assert fit.r_squared == pytest.approx(1 - left_over.var() / y.var(), rel=1e-12)


def test_zeros_end_the_range():
    sigma = np.concatenate([INDEX[:40] ** -2.0, np.zeros(20)])
    fit = fit_power_law(sigma, first=1, last=60)
    assert fit.last == 40
    assert fit.rate == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("sigma", [[], [0.0, 0.0], [1.0], [2.0, 1.0], [2.0, 1.0, 0.0, 0.0]])
@pytest.mark.parametrize("fit", [fit_power_law, fit_exponential])
def test_fewer_than_three_positive_values_give_no_fit(fit, sigma):
    result = fit(sigma, first=1, last=10)
    assert all(math.isnan(x) for x in (result.rate, result.amplitude, result.r_squared))


@pytest.mark.parametrize("fit", [fit_power_law, fit_exponential])
def test_a_flat_spectrum_has_rate_zero_and_nothing_to_explain(fit):
    result = fit(np.full(10, 0.1), first=1, last=10)
    assert result.rate == 0.0
    assert result.amplitude == pytest.approx(0.1, rel=1e-12)
    assert math.isnan(result.r_squared)


@pytest.mark.parametrize(("first", "last"), [(0, 5), (5, 5), (6, 5)])
def test_an_empty_range_is_refused(first, last):
    with pytest.raises(InputError, match="range"):
        fit_power_law([3.0, 2.0, 1.0], first=first, last=last)
