"""Seeds are added to a sweep only where its answer is open, and an interruption changes nothing."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lowrank_study.answers.looks import Looks
from lowrank_study.answers.sequential import looks_of, planned_looks
from lowrank_study.answers.stopping import fewest, rule_of
from lowrank_study.answers.sufficient_rank import against_full
from lowrank_study.config.grids import planned_configs
from lowrank_study.config.run import RunConfig, Stopping
from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps import plan, training_job, updates
from lowrank_study.sweeps import sweep as sweeps
from lowrank_study.training import fit
from lowrank_study.training.member import Diverged, FitResult
from tests.conftest import RunCommand

EXAMPLES = 1000
LABELS = np.arange(EXAMPLES) % 2
WRONG = {None: 100, 1: 250, 4: 122, 8: 101}
"""Rank → wrong predictions. A margin of 0.03 leaves rank 4 open, whose seeds differ."""
DEVIATIONS = (10, -10, 4, -4, 8, -8, 0)
STOPPING = Stopping(first=3, step=2, spending="obrien_fleming")
LOOKS = Looks(seeds=(3, 5, 7), spending="obrien_fleming")


class Trainer:
    """Stands in for training: the number of wrong predictions depends on rank and seed."""

    def __init__(self) -> None:
        self.trained: list[tuple[int | None, int]] = []
        self.outcomes: dict[tuple[int | None, int], Exception] = {}
        self.stop_after = 10**6

    def __call__(self, jobs: Sequence[fit.Job], *, device: str) -> list[FitResult | Exception]:
        return [self.fit(job.spec) for job in jobs]

    def fit(self, spec: RunSpec) -> FitResult | Exception:
        rank = spec.method.adapter_rank
        if len(self.trained) >= self.stop_after:
            raise KeyboardInterrupt
        self.trained.append((rank, spec.seed))
        if (rank, spec.seed) in self.outcomes:
            return self.outcomes[rank, spec.seed]
        predicted = LABELS.copy()
        wrong = WRONG[rank] + (DEVIATIONS[spec.seed] if rank == 4 else 0)
        predicted[:wrong] = 1 - predicted[:wrong]
        test = {"accuracy": 1 - wrong / EXAMPLES, "majority_accuracy": 0.5}
        record = {"test": test, "validation": {"accuracy": 0.5, "loss": 1.0}, "steps": 1}
        columns = {"label": LABELS, "predicted": predicted, "loss": np.ones(EXAMPLES)}
        return FitResult(record=record, test=SimpleNamespace(columns=columns), base=None)  # type: ignore[arg-type]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(fit, "fit_together", trainer)
    for module in (updates, training_job):
        monkeypatch.setattr(module, "measure_run", lambda run, results: None)
    monkeypatch.setattr(plan, "most_packed", lambda *_: 1)
    return trainer


@pytest.fixture
def configs(tiny_overrides: list[str], tmp_path: Path) -> list[RunConfig]:
    chosen = [each for each in tiny_overrides if not each.startswith("method.")]
    more = ["method=full,lora", "method.rank=1,4,8", "seed=range(7)", "margin=0.03", "sweep=s"]
    more += ["stopping=sequential", "stopping.step=2", "launcher=inline", f"results={tmp_path}"]
    return planned_configs(*chosen, *more, is_grid=True)


def sweep_of(configs: Sequence[RunConfig]) -> list[TrainedRun]:
    return sweeps.sweep_of(configs, rule=rule_of(configs))


def seeds_of(trained: Sequence[tuple[int | None, int]]) -> dict[int | None, int]:
    return {rank: len({seed for r, seed in trained if r == rank}) for rank in WRONG}


def test_open_ranks_and_full_fine_tuning_get_seeds(
    trainer: Trainer, configs: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sweep_of(configs)
    assert seeds_of(trainer.trained) == {None: 7, 1: 3, 4: 7, 8: 3}
    assert len(trainer.trained) == len(set(trainer.trained)) == len(runs) == 20
    assert trainer.trained[:12] == sorted(trainer.trained[:12], key=lambda run: run[1] >= 3)
    told = capsys.readouterr().out
    assert "the answer is open: 4 runs more" in told
    assert "seeds were added where the answer was open: 20 of 28 runs" in told
    store = RunStore(tmp_path / "runs")
    assert looks_of(store, "s") == LOOKS
    assert len(store.sweep("s")) == 20
    table = against_full(runs, margin=0.03, looks=looks_of(store, "s"))
    assert list(table["decision"]) == ["inferior", "open", "sufficient"]
    assert list(table["stop"]) == ["decided", "no seeds left", "decided"]
    assert list(table["looks"]) == [1, 3, 1]
    assert set(table["most_seeds"]) == {7}


def test_an_interrupted_sweep_repeats_no_run(
    trainer: Trainer, configs: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.stop_after = 15  # in the middle of the second look
    with pytest.raises(KeyboardInterrupt):
        sweep_of(configs)
    trainer.stop_after = 10**6
    runs = sweep_of(configs)
    assert seeds_of(trainer.trained) == {None: 7, 1: 3, 4: 7, 8: 3}
    assert len(trainer.trained) == len(set(trainer.trained)) == len(runs)
    capsys.readouterr()
    assert [run.spec for run in sweep_of(configs)] == [run.spec for run in runs]
    assert len(trainer.trained) == len(runs)
    told = capsys.readouterr()
    assert "the answer is open" not in told.out
    assert "no longer" not in told.err


def test_after_a_failure_no_seeds_are_added_until_it_is_trained_again(
    trainer: Trainer, configs: list[RunConfig]
) -> None:
    trainer.outcomes[4, 1] = InputError("no memory")
    assert sum(run.status == "failed" for run in sweep_of(configs)) == 1
    assert seeds_of(trainer.trained) == {None: 3, 1: 3, 4: 3, 8: 3}
    trainer.outcomes.clear()
    sweep_of(configs)
    assert seeds_of(trainer.trained) == {None: 7, 1: 3, 4: 7, 8: 3}


def test_a_rank_that_lost_a_run_keeps_the_looks_of_its_pairs(
    trainer: Trainer, configs: list[RunConfig]
) -> None:
    trainer.outcomes[4, 1] = Diverged("the loss is NaN")
    table = against_full(sweep_of(configs), margin=0.03, looks=LOOKS)
    assert seeds_of(trainer.trained) == {None: 7, 1: 3, 4: 7, 8: 3}
    assert list(table["looks"]) == [1, 2, 1]
    assert list(table["seeds"]) == [3, 5, 3]
    assert list(table["stop"]) == ["decided", "no seeds left", "decided"]


def test_another_plan_is_refused_after_the_first_score(
    trainer: Trainer, configs: list[RunConfig]
) -> None:
    sweep_of(configs)
    other = dataclasses.replace(STOPPING, step=1)
    for stopping in (None, other):
        changed = [dataclasses.replace(config, stopping=stopping) for config in configs]
        with pytest.raises(
            InputError, match=r"sweep=s has .* planned with stopping=\{seeds: \[3, 5"
        ):
            sweep_of(changed)
    renamed = [dataclasses.replace(config, stopping=None, sweep="t") for config in configs]
    assert len(sweep_of(renamed)) == 28
    asked = [dataclasses.replace(config, sweep="t") for config in configs]
    with pytest.raises(InputError, match="planned with all seeds at once, not stopping="):
        sweep_of(asked)


def test_a_sweep_that_can_not_be_tested_is_refused(configs: list[RunConfig]) -> None:
    specs = [config.spec for config in configs]

    def refused(specs: Sequence[RunSpec], **changes: Any) -> str:
        with pytest.raises(InputError) as error:
            planned_looks(specs, dataclasses.replace(STOPPING, **changes))
        return str(error.value)

    assert planned_looks(specs, STOPPING) == LOOKS
    full = [spec for spec in specs if spec.method.adapter_rank is None]
    adapters = [spec for spec in specs if spec not in full]
    for part in (full, adapters):
        assert "needs full fine-tuning and an adapter" in refused(part)
    assert "stopping.first=7: the sweep has 7 seed(s)" in refused(specs, first=7)
    assert "all configurations the same seeds" in refused(specs[:-1])
    method = dataclasses.replace(specs[-1].method, learning_rate=1.0)
    rates = [*specs, dataclasses.replace(specs[-1], method=method)]
    assert "two runs of one configuration and seed" in refused(rates)
    longer = dataclasses.replace(specs[-1], train=dataclasses.replace(specs[-1].train, epochs=7))
    assert "differ in trainer.epochs" in refused([*specs[:-1], longer])
    unread = dataclasses.replace(specs[0].train, read_test=False)
    trials = [dataclasses.replace(spec, train=unread) for spec in specs]
    assert "trainer.read_test=true" in refused(trials)


def test_the_fewest_runs_are_those_of_the_first_look(configs: list[RunConfig]) -> None:
    assert {config.spec.seed for config in fewest(configs)} == {0, 1, 2}
    ordinary = [dataclasses.replace(config, stopping=None) for config in configs]
    assert fewest(ordinary) == ordinary


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stopping.first=1", "at least 2"),
        ("stopping.step=0", "at least 1"),
        ("stopping.spending=all", "valid are obrien_fleming, pocock"),
    ],
)
def test_bad_settings_are_named(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        planned_configs("stopping=sequential", setting)


@pytest.mark.slow
def test_a_tuned_sequential_sweep_reports_its_looks(
    tiny_overrides: list[str], tmp_path: Path, run_command: RunCommand
) -> None:
    tuning = ["tuning=grid", "tuning.seeds=[1000]", "tuning.final_seeds=[]", "tuning.most=3"]
    grid = ["-m", "method=full,lora", "method.rank=1,2", "seed=range(4)", "sweep=s", "margin=0.2"]
    asked = [*tuning, *grid, "stopping=sequential", "launcher=inline", f"results={tmp_path}"]
    code, told, _ = run_command("experiments/train.py", *tiny_overrides, *asked)
    assert code == 0
    assert "seeds were added where the answer was open" in told
    report = ["sweep=s", f"results={tmp_path}", "margin=0.2"]
    code, told, _ = run_command("analysis/report.py", *report)
    assert code == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Where were seeds added?" in page
