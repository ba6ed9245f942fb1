"""The benchmark of the race compares it with the grid on recorded trials."""

import importlib
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

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
