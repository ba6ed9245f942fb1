"""Tuning: the grid grows until its best rate is inside, and trials have their own seeds."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.config.tuning import Grid
from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.sweep import rates_sweep, sweep
from lowrank_study.sweeps.trials import Train, configuration
from lowrank_study.sweeps.tuning import tuned

Accuracies = dict[tuple[float, int], float]

TUNING = Grid(rates=3, factor=10.0, seeds=(1000,), final_seeds=(), most=7)


def run_of(spec: RunSpec, accuracy: float, loss: float = 0.5, status: str = "done") -> TrainedRun:
    record = {"validation": {"accuracy": accuracy, "loss": loss}, "message": "no memory"}
    return TrainedRun(spec=spec, status=status, record=record, folder=Path())


class Oracle:
    """Trains nothing: accuracy falls off around the best rate of each rank."""

    def __init__(self, best: dict[int, float]) -> None:
        self.best = best
        self.asked: dict[str, RunSpec] = {}

    def __call__(self, specs: Sequence[RunSpec], limits: object) -> list[TrainedRun]:
        self.asked |= {spec.run_id: spec for spec in specs}
        return [run_of(spec, self.accuracy(spec)) for spec in specs]

    def accuracy(self, spec: RunSpec) -> float:
        best = self.best[spec.method.rank]  # type: ignore[union-attr]
        return 0.9 - 0.01 * abs(math.log10(spec.method.learning_rate / best))


def specs_at(rate: float, ranks: Sequence[int] = (2, 8)) -> list[RunSpec]:
    return [
        compose(f"method.rank={rank}", f"method.learning_rate={rate}", f"seed={seed}")
        for rank in ranks
        for seed in range(2)
    ]


def test_each_configuration_gets_its_own_best_rate_with_neighbours_on_both_sides() -> None:
    oracle = Oracle({2: 1e-1, 8: 1e-3})
    chosen = tuned(specs_at(1e-3), TUNING, train=oracle)
    assert [spec.method.learning_rate for spec in chosen] == [1e-1, 1e-1, 1e-3, 1e-3]
    assert [spec.seed for spec in chosen] == [0, 1, 0, 1]
    rates = sorted(s.method.learning_rate for s in oracle.asked.values() if s.method.rank == 2)  # type: ignore[union-attr]
    assert rates == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert len(oracle.asked) == 5 + 3


def test_runs_that_choose_have_their_own_seeds_and_do_not_read_the_test_split() -> None:
    oracle = Oracle({2: 1e-3, 8: 1e-3})
    reported = tuned(specs_at(1e-3), TUNING, train=oracle)
    assert {spec.seed for spec in oracle.asked.values()} == {1000}
    assert not any(spec.train.read_test for spec in oracle.asked.values())
    assert all(spec.train.read_test for spec in reported)
    for shared in ({"seeds": (1, 1000)}, {"final_seeds": (1,)}):
        with pytest.raises(InputError, match=r"seeds \[1\] choose rates and are seeds of the"):
            tuned(specs_at(1e-3), dataclasses.replace(TUNING, **shared), train=oracle)


def trained(accuracies: Accuracies, asked: set[tuple[float, int]]) -> Train:
    """Return a `train` that only looks up accuracies by rate and seed; unknown ones are poor."""

    def train(specs: Sequence[RunSpec], limits: object) -> list[TrainedRun]:
        pairs = [(spec.method.learning_rate, spec.seed) for spec in specs]
        asked.update(pairs)
        return [run_of(s, accuracies.get(p, 0.1)) for s, p in zip(specs, pairs, strict=True)]

    return train


def test_a_lucky_rate_loses_the_final_comparison() -> None:
    lucky = {(1e-2, 1000): 0.9, (1e-2, 1001): 0.5, (1e-3, 1000): 0.8, (1e-3, 1001): 0.8}
    specs = specs_at(1e-3, [2])[:1]
    [spec] = tuned(specs, TUNING, train=trained(lucky, set()))
    assert spec.method.learning_rate == 1e-2
    [spec] = tuned(
        specs, dataclasses.replace(TUNING, final_seeds=(1001,)), train=trained(lucky, set())
    )
    assert spec.method.learning_rate == 1e-3


def test_only_the_two_best_rates_get_further_seeds() -> None:
    rates = {1e-5: 0.1, 1e-4: 0.70, 1e-3: 0.80, 1e-2: 0.75, 1e-1: 0.1}
    accuracies = {(rate, 1000): value for rate, value in rates.items()}
    accuracies |= {(1e-3, 1001): 0.5, (1e-2, 1001): 0.74, (1e-4, 1001): 0.69}
    asked: set[tuple[float, int]] = set()
    tuning = dataclasses.replace(TUNING, rates=5, final_seeds=(1001,))
    [spec] = tuned(specs_at(1e-3, [2])[:1], tuning, train=trained(accuracies, asked))
    assert spec.method.learning_rate == 1e-2
    assert {rate for rate, seed in asked if seed == 1001} == {1e-4, 1e-3, 1e-2}
    assert {rate for rate, seed in asked if seed == 1000} == set(rates)


def test_the_grid_stops_growing_at_its_limit() -> None:
    oracle = Oracle({2: 1e9})
    [spec] = tuned(specs_at(1e-3, [2])[:1], TUNING, train=oracle)
    assert len(oracle.asked) == TUNING.most
    assert spec.method.learning_rate == pytest.approx(1e2)


def test_a_failed_trial_stops_tuning() -> None:
    def fail(specs: Sequence[RunSpec], limits: object) -> list[TrainedRun]:
        return [run_of(spec, 0.8, status="failed") for spec in specs]

    with pytest.raises(InputError, match=r"a trial of a learning rate, failed \(no memory\)"):
        tuned(specs_at(1e-3, [2]), TUNING, train=fail)


def test_a_sweep_over_rates_is_not_tuned() -> None:
    specs = [*specs_at(1e-3, [2]), *specs_at(3e-3, [2])]
    with pytest.raises(InputError, match=r"give one method\.learning_rate"):
        tuned(specs, TUNING, train=trained({}, set()))


def test_a_rate_that_lost_a_run_is_not_chosen_and_losses_break_ties() -> None:
    def train(specs: Sequence[RunSpec], limits: object) -> list[TrainedRun]:
        found = []
        for spec in specs:
            status = "diverged" if spec.method.learning_rate > 5e-3 else "done"
            found.append(run_of(spec, 0.8, loss=spec.method.learning_rate, status=status))
        return found

    [spec] = tuned(specs_at(1e-3, [2])[:1], dataclasses.replace(TUNING, most=3), train=train)
    assert spec.method.learning_rate == 1e-4

    def lose_all(specs: Sequence[RunSpec], limits: object) -> list[TrainedRun]:
        return [run_of(spec, 0.0, status="diverged") for spec in specs]

    with pytest.raises(InputError, match=r"a run diverged at every rate"):
        tuned(specs_at(1e-3, [2])[:1], TUNING, train=lose_all)


def test_full_fine_tuning_of_all_ranks_is_one_configuration() -> None:
    specs = [compose("method=full", f"method.rank={rank}") for rank in (1, 2)]
    assert len({configuration(spec).run_id for spec in specs}) == 1


@pytest.mark.slow
def test_a_tuned_sweep_keeps_its_trials_in_a_sweep_of_their_own(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [compose(*tiny_overrides, "method.rank=2", f"seed={seed}") for seed in range(2)]
    tuning = Grid(rates=3, factor=3.0, seeds=(7,), final_seeds=(), most=3)
    runs = sweep(specs, name="mine", results=tmp_path, tuning=tuning, launcher="inline")
    lines = capsys.readouterr().out.splitlines()
    assert "reviews.csv: 240 rows read, UTF-8, separated by commas" in lines
    assert len(lines) == len(set(lines))  # printed once, not once per round
    store = RunStore(tmp_path / "runs")
    trials = store.ended(store.sweep(rates_sweep("mine")))
    assert len(trials) == 3
    assert all(trial.record["test"] == {} for trial in trials)
    assert not any((trial.folder / "predictions.parquet").exists() for trial in trials)
    assert not any((tmp_path / "spectra" / f"{t.spec.run_id}.parquet").exists() for t in trials)
    best = max(
        trials,
        key=lambda t: (t.record["validation"]["accuracy"], -t.record["validation"]["loss"]),
    )
    assert {run.spec.method.learning_rate for run in runs} == {best.spec.method.learning_rate}
    assert [run.spec.seed for run in runs] == [0, 1]
