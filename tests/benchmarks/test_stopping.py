"""The simulation of sequential stopping: error rates hold, and seeds go where they decide."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from scipy import stats

from lowrank_study.answers.statistics import ERROR

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("stopping")


@pytest.mark.parametrize("seed_sd", [0.007, 0.02])
def test_a_loss_of_the_margin_is_wrongly_decided_at_most_one_in_twenty(
    stopping: ModuleType, seed_sd: float
) -> None:
    sweeps = 300
    truth = stopping.truth("", [stopping.MARGIN] * 3, full=0.9, seed_sd=seed_sd)
    plans = {name: stopping.ERRORS[name] for name in list(stopping.ERRORS)[:3]}
    most = stats.binom.ppf(0.999, sweeps, ERROR) / sweeps
    for found in stopping.outcomes(truth, plans, sweeps):
        assert found.wrong_sufficient <= most
        assert found.wrong_inferior <= most


def test_an_uncorrected_test_at_every_look_errs_too_often(stopping: ModuleType) -> None:
    truth = stopping.truth("", [stopping.MARGIN] * 3, full=0.9, seed_sd=0.02)
    name = "ordinary test at 3 to 10 seeds"
    [found] = stopping.outcomes(truth, {name: stopping.ERRORS[name]}, 300)
    assert found.wrong_sufficient + found.wrong_inferior > 0.14
    assert found.verdict == "missed"


def test_clear_ranks_take_the_first_seeds_and_no_more(stopping: ModuleType) -> None:
    truth = stopping.truth("", [0.3, 0.2, -0.1, -0.1], seed_sd=0.004)
    [found] = stopping.outcomes(truth, {"": stopping.SEQUENTIAL}, 20)
    assert found.decided == 1.0
    assert found.runs < 4.5


def test_collapsing_runs_have_the_true_losses(stopping: ModuleType) -> None:
    [mean] = {round(a * 0.95 + 0.5 * 0.05, 12) for a in stopping.SKEWED.accuracies[1:]}
    assert mean == pytest.approx(stopping.SKEWED.full - stopping.MARGIN)


def test_the_page_has_every_plan(stopping: ModuleType) -> None:
    found = {stopping.ERROR_RATES: stopping.outcomes(stopping.USUAL[0], stopping.POWER, 1)}
    lines = stopping.page(found).splitlines()
    assert len(lines) == 4 + len(stopping.POWER)
    assert all(line.count("|") == 8 for line in lines[2:])
