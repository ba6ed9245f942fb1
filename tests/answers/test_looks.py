"""Looks share one error rate: their levels are those of published tables and hold for t tests."""

import numpy as np
import pytest
from scipy import stats

from lowrank_study.answers.looks import Looks, spent
from lowrank_study.answers.statistics import ERROR
from lowrank_study.config.run import SPENDING


@pytest.mark.parametrize(
    ("spending", "bounds"),
    [
        # For known variance: Jennison and Turnbull (2000), and the program of Reboussin (2000).
        ("obrien_fleming", [3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_many_seeds_have_the_bounds_of_published_tables(spending: str, bounds: list[float]) -> None:
    levels = Looks(seeds=(20, 40, 60, 80, 100), spending=spending).levels(0.025)
    np.testing.assert_allclose(stats.norm.isf(levels[1:]), bounds, rtol=0.011)  # t tests need more


@pytest.mark.parametrize("spending", SPENDING)
def test_one_look_is_an_ordinary_test(spending: str) -> None:
    assert Looks(seeds=(6,), spending=spending).levels(ERROR) == pytest.approx((ERROR,))
    assert spent(1.0, spending, ERROR) == pytest.approx(ERROR)


@pytest.mark.parametrize("spending", SPENDING)
def test_many_looks_have_positive_levels_below_the_error_rate(spending: str) -> None:
    levels = Looks(seeds=tuple(range(2, 41)), spending=spending).levels(ERROR)
    assert min(levels) > 0
    assert max(levels) < ERROR


def test_the_looks_that_seeds_allow() -> None:
    looks = Looks(seeds=(4, 6, 9), spending="pocock")
    assert [looks.made(seeds) for seeds in (3, 4, 8, 9)] == [(), (4,), (4, 6), (4, 6, 9)]
    assert [looks.following(seeds) for seeds in (0, 4, 5, 8, 9)] == [4, 6, 6, 9, 9]


@pytest.mark.parametrize("spending", SPENDING)
@pytest.mark.parametrize("seeds", [(3, 4, 5, 6, 7, 8, 9, 10), (3, 6, 10), (2, 3)])
def test_t_tests_at_few_seeds_hold_the_error_rate(seeds: tuple[int, ...], spending: str) -> None:
    rng, sweeps = np.random.default_rng(0), 40_000
    scores = rng.normal(size=(sweeps, seeds[-1]))
    is_wrong = np.zeros(sweeps, dtype=bool)
    ordinary = np.zeros(sweeps, dtype=bool)
    levels = Looks(seeds=seeds, spending=spending).levels(ERROR)
    for count, level in zip(seeds, levels, strict=True):
        t = stats.ttest_1samp(scores[:, :count], 0, axis=1).statistic
        is_wrong |= t > stats.t.isf(level, count - 1)
        ordinary |= t > stats.t.isf(ERROR, count - 1)
    # The 99.9 % quantile of the count at an error rate of 5 %.
    assert is_wrong.sum() <= stats.binom.ppf(0.999, sweeps, ERROR)
    assert is_wrong.mean() > 0.8 * ERROR
    assert ordinary.mean() > 1.4 * ERROR  # why looks need their own levels
