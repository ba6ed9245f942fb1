"""Simulated trials have the drawn losses, relative to trials that have ended."""

import math
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.simulated import BETWEEN, CURVATURE, OFFSET, WITHIN, SimulatedTrials
from lowrank_study.sweeps.trials import at_any_rate, trial

RATES = (1e-4, 1e-3, 1e-2)


@pytest.fixture
def of(tiny_overrides: list[str]) -> RunSpec:
    return compose(*tiny_overrides, "method.rank=2", "method.learning_rate=1e-3")


def simulation(of: RunSpec, draw: int) -> SimulatedTrials:
    return SimulatedTrials(draw=draw, configured={at_any_rate(of).run_id: 1e-3})


def losses(of: RunSpec, draw: int, seed: int, *ended: TrainedRun) -> list[float]:
    """Return the simulated losses at three rates."""
    trials = [trial(of, rate, seed) for rate in RATES]
    runs = simulation(of, draw).results(trials, {run.spec.run_id: run for run in ended})
    return [run.record["validation"]["loss"] for run in runs]


def best(of: RunSpec, draw: int, seed: int) -> float:
    """Return ln(best / configured), from the losses at three rates."""
    low, _, high = map(math.log, losses(of, draw, seed))
    return (low - high) / (4 * CURVATURE * math.log(10))


def test_the_best_rate_has_the_mean_and_the_spread_of_the_records(of: RunSpec) -> None:
    found = [[best(of, draw, seed) for seed in (1000, 1001)] for draw in range(500)]
    apart = [(first - second) / math.sqrt(2) for first, second in found]
    middles = [(first + second) / 2 for first, second in found]
    mean = sum(middles) / len(middles)
    assert mean == pytest.approx(OFFSET, abs=0.15)
    assert _root_mean_square(apart) == pytest.approx(WITHIN, rel=0.1)
    spread = _root_mean_square([middle - mean for middle in middles])
    assert spread == pytest.approx(math.hypot(BETWEEN, WITHIN / math.sqrt(2)), rel=0.1)


def test_ranks_share_the_draw_of_their_family(tiny_overrides: list[str]) -> None:
    other = compose(*tiny_overrides, "method.rank=4", "method.learning_rate=1e-3")
    of = compose(*tiny_overrides, "method.rank=2", "method.learning_rate=1e-3")
    apart = [best(of, draw, 1000) - best(other, draw, 1000) for draw in range(200)]
    assert _root_mean_square(apart) == pytest.approx(WITHIN * math.sqrt(2), rel=0.15)


def test_a_simulated_loss_is_relative_to_a_trial_that_has_ended(of: RunSpec) -> None:
    spec = trial(of, 1e-2, 1000)
    validation = {"accuracy": 0.8, "loss": 0.6}
    curve = [{"step": 7, "loss": 0.9}, {"step": 14, "loss": 0.6}]
    ended = TrainedRun(
        spec=spec,
        status="done",
        record={"validation": validation, "curve": curve},
        folder=Path(),
    )
    alone, relative = losses(of, 3, 1000), losses(of, 3, 1000, ended)
    assert relative == pytest.approx([0.6 * loss / alone[2] for loss in alone])
    low, *_, known = simulation(of, 3).results([trial(of, 1e-4, 1000), spec], {spec.run_id: ended})
    assert known is ended
    ratio = alone[0] / alone[2]
    assert [point["step"] for point in low.record["curve"]] == [7, 14]
    assert [point["loss"] for point in low.record["curve"]] == pytest.approx(
        [0.9 * ratio, 0.6 * ratio]
    )
    assert low.record["validation"]["accuracy"] == pytest.approx(0.8 - math.log(ratio))


def _root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))
