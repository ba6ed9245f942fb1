"""A race stops rates that fall behind, and its choice depends on stored curves alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.config.tuning import Race
from lowrank_study.errors import InputError
from lowrank_study.runs.limits import Limits, first_above
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.sweep import rates_sweep, sweep
from lowrank_study.sweeps.tuning import replayed, tuned

RACE = Race(factor=10.0, seeds=(1000, 1001), final_seeds=(1002,), rungs=4, slack=0.3, most=7)
START = 1e-3

Loss = Callable[[RunSpec], float]
"""The final loss of a trial; infinite if it diverges."""


class Trainer:
    """Trains nothing: a trial's loss falls from 2 in a straight line to its final loss."""

    def __init__(self, loss: Loss, *, stops: bool = True) -> None:
        self.loss, self.stops = loss, stops
        self.runs: dict[str, TrainedRun] = {}

    def __call__(self, specs: Sequence[RunSpec], limits: Mapping[str, Limits]) -> list[TrainedRun]:
        for spec in specs:
            above = limits.get(spec.run_id, {})
            if spec.run_id not in self.runs or not self.runs[spec.run_id].is_final(above):
                self.runs[spec.run_id] = self.run(spec, above)
        return [self.runs[spec.run_id] for spec in specs]

    def run(self, spec: RunSpec, limits: Limits) -> TrainedRun:
        final = self.loss(spec)
        if math.isinf(final):
            return TrainedRun(spec=spec, status="diverged", record={"message": ""}, folder=Path())
        steps = sorted(spec.train.evaluated_steps(80))
        curve = [{"step": step, "loss": 2.0 + (final - 2.0) * step / 80} for step in steps]
        status = "done"
        if self.stops and (above := first_above(curve, limits)):
            status, curve = "stopped", curve[: curve.index(above) + 1]  # type: ignore[arg-type]
        return TrainedRun(spec=spec, status=status, record={"curve": curve}, folder=Path())

    def trials(self, rank: int) -> dict[tuple[float, int], str]:
        """Return rate and seed → status of the trials of a rank."""
        return {
            (run.spec.method.learning_rate, run.spec.seed): run.status
            for run in self.runs.values()
            if run.spec.method.adapter_rank == rank
        }


def specs_of(*ranks: int, alpha: str = "16") -> list[RunSpec]:
    return [
        compose(f"method.rank={rank}", f"method.alpha={alpha}", f"method.learning_rate={START}")
        for rank in ranks
    ]


def best_at(*rates: float) -> Loss:
    """Return losses that grow with the distance from a rank's best rate, in factors of ten."""
    best = dict(zip((2, 4, 8, 16), rates, strict=False))

    def loss(spec: RunSpec) -> float:
        assert spec.method.adapter_rank is not None
        rate = best[spec.method.adapter_rank]
        return 0.5 + 0.2 * abs(math.log10(spec.method.learning_rate / rate))

    return loss


def rates_of(specs: Sequence[RunSpec]) -> list[float]:
    return [spec.method.learning_rate for spec in specs]


def test_the_race_ends_between_two_slower_neighbours_wherever_it_starts() -> None:
    for best in (1e-5, 1e-3, 1e-2):
        trainer = Trainer(best_at(best, best, best))
        assert rates_of(tuned(specs_of(2, 4, 8), RACE, train=trainer)) == [best] * 3
        tried = {rate for rate, _ in trainer.trials(4)}
        assert {round(math.log10(rate / best)) for rate in tried} >= {-1, 0, 1}


def test_the_ranks_share_seeds_and_blocks() -> None:
    trainer = Trainer(best_at(START, START, START))
    tuned(specs_of(2, 4, 8), RACE, train=trainer)
    seeds = {rank: {seed for _, seed in trainer.trials(rank)} for rank in (2, 4, 8)}
    assert seeds == {2: {1000}, 4: {1001}, 8: {1000}}
    assert len(trainer.runs) == 9
    alone = Trainer(best_at(START))
    tuned(specs_of(2), RACE, train=alone)
    assert {seed for _, seed in alone.trials(2)} == {1000, 1001}


def test_a_trial_is_stopped_at_the_first_rung_at_which_it_is_behind_by_the_slack() -> None:
    losses = {1e-4: 1.9, 1e-3: 1.0, 1e-2: 1.04}
    trainer = Trainer(lambda spec: losses[spec.method.learning_rate])
    [chosen] = tuned(specs_of(2), RACE, train=trainer)
    assert chosen.method.learning_rate == 1e-3
    assert set(trainer.trials(2).values()) == {"done", "stopped"}
    for (rate, _), status in trainer.trials(2).items():
        assert (status == "stopped") == (rate == 1e-4)
    stopped = [run for run in trainer.runs.values() if run.status == "stopped"]
    assert [[point["step"] for point in run.record["curve"]] for run in stopped] == [[20]] * 2


def test_a_higher_rate_may_be_behind_while_the_rate_has_not_decayed() -> None:
    losses = {1e-4: 1.9, 1e-3: 1.0, 1e-2: 1.9}
    trainer = Trainer(lambda spec: losses[spec.method.learning_rate])
    tuned(specs_of(2), RACE, train=trainer)
    stopped = {
        run.spec.method.learning_rate: [point["step"] for point in run.record["curve"]]
        for run in trainer.runs.values()
        if run.status == "stopped"
    }
    # After a quarter of the steps 1.975 is less than 22.5 % above the leader's 1.75. After half of
    # them 1.95 is more than 15 % above its 1.5.
    assert stopped == {1e-4: [20], 1e-2: [20, 40]}


def test_stopping_and_order_do_not_change_the_choice() -> None:
    for best in ((1e-4, 1e-3, 1e-2), (1e-2, 1e-2, 1e-3), (1e-5, 1e-4, 1e-5)):
        specs = specs_of(2, 4, 8)
        stopping, full = Trainer(best_at(*best)), Trainer(best_at(*best), stops=False)
        chosen = tuned(specs, RACE, train=stopping)
        assert tuned(specs, RACE, train=full) == chosen
        assert replayed(specs, RACE, [*stopping.runs.values()]) == chosen
        assert replayed(specs, RACE, [*full.runs.values()]) == chosen
        assert tuned(specs[::-1], RACE, train=Trainer(best_at(*best))) == chosen[::-1]
        trained = sum(len(run.record["curve"]) for run in stopping.runs.values())
        assert trained < sum(len(run.record["curve"]) for run in full.runs.values())


def test_one_more_seed_decides_between_rates_that_won_equally_often() -> None:
    for third, best in ((0.6, 1e-2), (0.4, 1e-3)):
        losses = {1000: 0.4, 1001: 0.6, 1002: 1.0 - third}

        def loss(spec: RunSpec, losses: Mapping[int, float] = losses) -> float:
            rate = spec.method.learning_rate
            return {1e-3: 0.5, 1e-2: losses[spec.seed]}.get(rate, 0.9)

        trainer = Trainer(loss, stops=False)
        assert rates_of(tuned(specs_of(2), RACE, train=trainer)) == [best]
        asked = {rate for rate, seed in trainer.trials(2) if seed == 1002}
        assert {1e-3, 1e-2} <= asked
        assert 1e-4 not in asked


def test_a_rank_with_another_best_rate_gets_it_if_two_seeds_agree() -> None:
    specs = specs_of(2, 4, 8, 16)
    trainer = Trainer(best_at(1e-3, 1e-3, 1e-3, 1e-2))
    assert rates_of(tuned(specs, RACE, train=trainer)) == [1e-3, 1e-3, 1e-3, 1e-2]
    seeds = {rank: {seed for _, seed in trainer.trials(rank)} for rank in (2, 16)}
    assert seeds == {2: {1000}, 16: {1000, 1001}}

    def lucky(spec: RunSpec) -> float:
        own = spec.method.adapter_rank == 16 and spec.seed == 1001
        return best_at(1e-3, 1e-3, 1e-3, 1e-2 if own else 1e-3)(spec)

    assert rates_of(tuned(specs, RACE, train=Trainer(lucky))) == [1e-3] * 4


def test_ranks_share_a_race_only_at_the_same_alpha() -> None:
    trainer = Trainer(best_at(1e-3, 1e-2))
    assert rates_of(tuned(specs_of(2, 4, alpha="2r"), RACE, train=trainer)) == [1e-3, 1e-2]
    assert {seed for _, seed in trainer.trials(2)} == {1000, 1001}


def test_a_rate_that_diverges_loses_to_a_smaller_one() -> None:
    def loss(spec: RunSpec) -> float:
        return math.inf if spec.method.learning_rate > 2e-5 else 0.5

    assert rates_of(tuned(specs_of(2), RACE, train=Trainer(loss))) == [1e-5]
    with pytest.raises(InputError, match=r"a run diverged at every rate"):
        tuned(specs_of(2), RACE, train=Trainer(lambda spec: math.inf))


def test_a_leader_without_a_loss_is_overtaken() -> None:
    def loss(spec: RunSpec) -> float:
        return math.nan if spec.method.learning_rate >= START else 0.5

    assert rates_of(tuned(specs_of(2), RACE, train=Trainer(loss))) == [1e-4]


def test_a_race_tries_no_more_rates_than_allowed() -> None:
    trainer = Trainer(best_at(1e9))
    tuned(specs_of(2), RACE, train=trainer)
    assert len({rate for rate, _ in trainer.trials(2)}) == RACE.most


def test_a_trial_that_other_settings_stopped_is_trained_again() -> None:
    trainer = Trainer(best_at(1e-2))
    strict = replace(RACE, slack=0.0)
    tuned(specs_of(2), strict, train=trainer)
    assert trainer.trials(2)[1e-1, 1000] == "stopped"
    lenient = replace(RACE, slack=5.0)
    assert rates_of(tuned(specs_of(2), lenient, train=trainer)) == [1e-2]
    assert trainer.trials(2)[1e-1, 1000] == "done"
    stopped = Trainer(best_at(1e-3))
    tuned(specs_of(2), strict, train=stopped)
    with pytest.raises(InputError, match=r"was stopped by another command"):
        replayed(specs_of(2), lenient, [*stopped.runs.values()])


def test_the_loss_of_a_reported_run_decides() -> None:
    """Trials read validation more often than reported runs, whose best step is kept."""
    spec = compose("method.rank=2", "trainer=three_epochs", f"method.learning_rate={START}")
    trainer = Trainer(best_at(START))
    tuned([spec], RACE, train=trainer)
    assert {len(run.record["curve"]) for run in trainer.runs.values() if run.status == "done"} == {
        12
    }
    assert all(run.spec.train.evaluations == 12 for run in trainer.runs.values())


def test_limits_are_compared_at_their_own_steps() -> None:
    curve = [{"step": 10, "loss": 0.9}, {"step": 20, "loss": math.nan}]
    assert first_above(curve, {}) is None
    assert first_above(curve, {10: 0.9, 15: 0.1}) is None
    assert first_above(curve, {10: 0.8}) == curve[0]
    assert first_above(curve, {10: 0.9, 20: 5.0}) == curve[1]


@pytest.mark.slow
def test_a_race_resumes_and_packing_does_not_change_it(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    specs = [compose(*tiny_overrides, f"method.rank={rank}") for rank in (2, 4)]
    race = replace(RACE, most=3, slack=0.0)
    runs = sweep(specs, name="mine", results=tmp_path, tuning=race, launcher="inline")
    store = RunStore(tmp_path / "runs")
    trials = store.ended(store.sweep(rates_sweep("mine")))
    assert {run.status for run in trials} == {"done", "stopped"}
    for run in trials:
        steps = [point["step"] for point in run.record["curve"]]
        assert run.record["steps"] == steps[-1]
        assert run.record["provenance"]
        assert (run.status == "stopped") == (len(steps) < 4)
    chosen = [run.spec for run in runs]
    assert replayed(specs, race, trials) == chosen
    attempts = {run.spec.run_id: run.record["attempt"] for run in trials}
    lost = trials[-1].spec.run_id
    store.forget([lost])
    again = sweep(specs, name="mine", results=tmp_path, tuning=race, launcher="inline", pack=1)
    assert [run.spec for run in again] == chosen
    for run in store.ended(store.sweep(rates_sweep("mine"))):
        same = run.record["attempt"] == attempts[run.spec.run_id]
        assert same == (run.spec.run_id != lost)
