"""Forecasts count only the runs that are left, and have the right magnitude."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lowrank_study.config.grids import planned_configs
from lowrank_study.config.run import RunConfig, compose
from lowrank_study.machine import free_cores
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.forecast import (
    Forecast,
    Round,
    forecasts,
    in_words,
    rounds_of,
    training_seconds,
)
from lowrank_study.sweeps.speeds import Speed, Speeds
from tests.conftest import RunCommand

TINY_TUNED = (
    "tuning=grid",
    "tuning.seeds=[1000]",
    "tuning.final_seeds=[]",
    "method.rank=2",
    "seed=0",
)


def end(specs: Sequence[RunSpec], results: Path) -> None:
    """Commit runs to the store as if they had been trained, the middle one the best."""
    store = RunStore(results / "runs")
    store.plan("ended", [specs], question="")
    for number, spec in enumerate(specs):
        lease = store.lease([spec.run_id])
        assert lease is not None
        accuracy = 0.9 if number == len(specs) // 2 else 0.5
        lease.commit(status="done", record={"validation": {"accuracy": accuracy, "loss": 0.1}})


@pytest.fixture(autouse=True)
def _speed(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Speed(building=0.0, training=1e9, evaluation=1e9)
    monkeypatch.setattr(Speeds, "_measured", lambda self, pack: same)
    monkeypatch.setattr(Speeds, "_ending", lambda self, spec: 0.0)


def seconds_of(
    specs: Sequence[RunSpec], shares: Mapping[str, float] = {}, *, workers: int = 1
) -> float:
    """Return the forecast of one round."""
    return training_seconds(Round(specs=[*specs], shares=shares), workers=workers)


def exactly(seconds: float) -> Forecast:
    """Return the forecast of a sweep without trials."""
    return Forecast(mean=seconds, least=seconds, most=seconds)


def runs_of(configs: Sequence[RunConfig]) -> list[RunSpec]:
    """Return the runs of all rounds."""
    return [spec for each in rounds_of(configs, set()) for spec in each.specs]


def test_the_command_only_says_how_long_a_sweep_takes(
    tiny_overrides: list[str], run_command: RunCommand, tmp_path: Path
) -> None:
    sweep = ("-m", *tiny_overrides, "method.rank=2", "seed=0,1", "sweep=mine")
    results = tmp_path / "results"
    more = (f"results={results}", "forecast=true")
    code, told, _ = run_command("experiments/train.py", *sweep, *more)
    assert code == 0
    assert re.fullmatch(r"mine: about \d+ s; runs that have ended are not trained again\n", told)
    assert not results.exists()


def test_more_texts_and_higher_ranks_take_longer(tiny_overrides: list[str]) -> None:
    def seconds(*overrides: str) -> float:
        return seconds_of([compose(*tiny_overrides, *overrides)])

    lora = seconds("method.rank=2")
    assert seconds("method.rank=4") > lora
    assert seconds("method.rank=2", "method.target=all_linear") > lora
    assert seconds("method.rank=2", "trainer.epochs=9") > lora
    assert seconds("method.rank=2", "trainer.read_test=false") < lora


def test_workers_share_the_packs(tiny_overrides: list[str]) -> None:
    specs = [compose(*tiny_overrides, "method.rank=2", f"seed={seed}") for seed in range(3)]
    alone = seconds_of(specs[:1])
    for workers, turns in ((1, 3), (2, 2), (3, 1)):
        assert seconds_of(specs, workers=workers) == pytest.approx(turns * alone)


def test_a_stopped_trial_takes_a_share_of_its_time(tiny_overrides: list[str]) -> None:
    spec = compose(*tiny_overrides, "method.rank=2")
    whole, third = seconds_of([spec]), seconds_of([spec], {spec.run_id: 1 / 3})
    assert third == pytest.approx(whole / 3)


def test_ended_runs_take_no_time(tiny_overrides: list[str], tmp_path: Path) -> None:
    seeds = ",".join(str(seed) for seed in range(2 * len(free_cores()) + 1))
    options = (*tiny_overrides, "method.rank=2", f"seed={seeds}", f"results={tmp_path}")
    configs = planned_configs(*options, "sweep=mine", is_grid=True)
    every, one = forecasts({"mine": configs}), forecasts({"mine": configs[:1]})
    end([config.spec for config in configs[1:]], tmp_path)
    assert forecasts({"mine": configs})["mine"].mean == pytest.approx(one["mine"].mean)
    assert one["mine"].mean < every["mine"].mean
    end([configs[0].spec], tmp_path)
    assert forecasts({"mine": configs}) == {"mine": exactly(0.0)}


def test_a_run_of_several_sweeps_counts_for_the_first(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    options = (*tiny_overrides, "method.rank=2", "seed=0,1", f"results={tmp_path}", "sweep=mine")
    configs = planned_configs(*options, is_grid=True)
    found = forecasts({"first": configs[:1], "both": configs, "again": configs[1:]})
    assert found["both"].mean == pytest.approx(found["first"].mean)
    assert found["again"] == exactly(0.0)


def test_a_failed_run_is_still_to_be_trained(tiny_overrides: list[str], tmp_path: Path) -> None:
    configs = planned_configs(*tiny_overrides, *TINY_TUNED, f"results={tmp_path}", "sweep=mine")
    before = runs_of(configs)
    store = RunStore(tmp_path / "runs")
    store.plan("ended", [before[:3]], question="")
    for spec in before[:3]:
        lease = store.lease([spec.run_id])
        assert lease is not None
        lease.commit(status="failed", record={"message": "the disk is full"})
    assert runs_of(configs) == before


def test_a_race_is_forecast_round_by_round(tiny_overrides: list[str], tmp_path: Path) -> None:
    options = ("tuning=race", "method.rank=2,4", "seed=0", f"results={tmp_path}", "sweep=mine")
    configs = planned_configs(*tiny_overrides, *options, is_grid=True)
    middle = configs[0].spec.method.learning_rate
    numbers, leads = set[int](), set[float]()
    for draw in range(20):
        leaders, rivals, *more, reported = rounds_of(configs, set(), draw=draw)
        assert {spec.method.learning_rate for spec in leaders.specs} == {middle}
        assert not leaders.shares
        assert len(rivals.specs) == 2 * len(leaders.specs)
        assert middle not in {spec.method.learning_rate for spec in rivals.specs}
        assert rivals.shares.keys() == {spec.run_id for spec in rivals.specs}
        assert all(0.0 < share <= 1.0 for share in rivals.shares.values())
        assert min(rivals.shares.values()) < 1.0
        assert [spec.method.rank for spec in reported.specs] == [2, 4]
        assert not reported.shares
        numbers.add(len(more))
        leads |= {spec.method.learning_rate for spec in reported.specs}
    assert {0, 1} < numbers
    assert min(leads) < middle < max(leads)


def test_the_forecast_of_a_race_is_the_mean_of_simulations(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    options = ("method.rank=2,4", "seed=0", f"results={tmp_path}", "sweep=mine")
    race = planned_configs(*tiny_overrides, *options, "tuning=race", is_grid=True)
    plain = planned_configs(*tiny_overrides, *options, is_grid=True)
    found = forecasts({"race": race, "plain": plain})
    assert found["race"].least < found["race"].mean < found["race"].most
    assert found == forecasts({"race": race, "plain": plain})
    assert forecasts({"plain": plain})["plain"].least > 0.0


def test_runs_that_choose_a_rate_are_counted_until_it_is_chosen(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    configs = planned_configs(*tiny_overrides, *TINY_TUNED, f"results={tmp_path}", "sweep=mine")
    trials, *_ = rounds_of(configs, set())
    assert [run.train.read_test for run in trials.specs] == [False, False, False]
    assert runs_of(configs)[-1].train.read_test
    end(trials.specs, tmp_path)
    [chosen] = runs_of(configs)
    assert chosen.train.read_test
    end([chosen], tmp_path)
    assert forecasts({"mine": configs}) == {"mine": exactly(0.0)}


def test_the_final_comparison_is_between_two_rates(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    options = ("tuning.final_seeds=[1001]", f"results={tmp_path}", "sweep=mine")
    configs = planned_configs(*tiny_overrides, *TINY_TUNED, *options)
    first, *_ = rounds_of(configs, set())
    middle = configs[0].spec.method.learning_rate
    end(first.specs, tmp_path)  # the middle rate is the best, and the others are equal
    *final, reported = runs_of(configs)
    assert [run.seed for run in final] == [1001, 1001]
    assert final[0].method.learning_rate < final[1].method.learning_rate == middle
    end(final[1:], tmp_path)  # an unfinished final comparison has the same two rates
    assert runs_of(configs)[0] == final[0]
    assert reported.train.read_test


def test_durations_have_readable_units() -> None:
    assert [in_words(exactly(seconds)) for seconds in (0.2, 75, 600, 15000)] == [
        *("about 1 s", "about 75 s", "about 10 min", "about 4.2 h"),
    ]


def test_an_uncertain_duration_has_a_range_in_one_unit() -> None:
    found = Forecast(mean=76.0, least=60.4, most=96.0)
    assert in_words(found) == "about 76 s (60 to 96 s)"
    assert in_words(Forecast(mean=600.0, least=50.0, most=900.0)) == "about 10 min (1 to 15 min)"
