"""The benchmark of the race compares it with the grid on recorded trials."""

import importlib
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lowrank_study.sweeps import simulated

ROOT = Path(__file__).parents[2]


@pytest.fixture
def racing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("racing")


def test_a_replay_gives_the_committed_choices(racing: Any) -> None:
    from lowrank_study.config.run import composed, read_config

    name = "paper_shuttleworth_intruders"
    [file] = (ROOT / "results" / "records").glob(f"*_{name}/tables/trials.csv")
    grid, race = (read_config(composed("config", f"tuning={k}")).tuning for k in ("grid", "race"))
    found = pd.DataFrame(racing.cases(racing.Recorded(name, file), grid, race, None))
    committed = pd.read_csv(ROOT / "benchmarks" / "results" / "racing.csv")
    committed = committed[(committed["sweep"] == name) & (committed["how"] == "replayed")]
    columns = ["run", "grid_rate", "race_rate", "seeds", "verdict"]
    pd.testing.assert_frame_equal(
        found[columns], committed[columns].reset_index(drop=True), check_dtype=False
    )
    recorded = pd.read_csv(file.parent / "best_rates.csv").drop_duplicates(
        ["method", "adapter_rank"]
    )
    assert sorted(recorded["learning_rate"]) == sorted(found["grid_rate"])


def test_the_constants_of_simulated_trials_are_those_of_the_records(racing: Any) -> None:
    blocks = [block for sweep in racing.recorded_sweeps() for block in sweep.blocks()]
    found = {name.upper(): round(value, 2) for name, value in racing.constants(blocks).items()}
    assert found == {name: getattr(simulated, name) for name in found}
    assert found["BETWEEN"] > found["WITHIN"] > 0.0


@pytest.mark.parametrize("best", [-0.4, 0.0, 0.3])
def test_a_parabola_finds_the_best_rate(racing: Any, best: float) -> None:
    parabola = importlib.import_module("trial_losses").parabola
    rates = [3.0**k for k in range(-2, 3)]
    losses = {rate: 0.7 * math.exp(0.2 * (math.log(rate) - best) ** 2) for rate in rates}
    assert parabola(losses) == pytest.approx((best, 0.2))


@pytest.mark.parametrize(
    ("upper", "is_same", "verdict"),
    [
        (math.nan, True, "same"),
        (0.0, False, "not worse"),
        (-0.001, False, "worse"),
        (math.nan, False, "not tested"),
    ],
)
def test_a_rate_that_cannot_be_tested_does_not_count_as_not_worse(
    racing: Any, upper: float, is_same: bool, verdict: str
) -> None:
    assert racing._verdict(upper, is_same=is_same) == verdict
