"""Runs are compared only if they were trained alike."""

import dataclasses
from pathlib import Path

import pytest

from lowrank_study.answers.full_runs import chosen_of_sweep
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.reporting.sweep_report import study_tables
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.settings import (
    check_alike,
    check_same_rows,
    rows_key,
    shared_settings,
)


def run(*overrides: str) -> TrainedRun:
    return TrainedRun(spec=compose(*overrides), status="done", record={}, folder=Path())


def test_methods_rates_seeds_tasks_and_controls_may_differ() -> None:
    shuffled = run("seed=3", "trainer.shuffle_labels=true")
    others = [run("method=full", "method.learning_rate=1e-4"), run("task=newsgroups")]
    check_alike([run("seed=0"), run("seed=1", "method.rank=4"), shuffled, *others], sweep="s")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("task.train_size=100", r"task.train_size \(2000 and 100\)"),
        ("trainer.epochs=3", r"trainer.epochs \(1 and 3\)"),
        ("model.dropout=0.5", r"model.dropout \(.* and 0.5\)"),
    ],
)
def test_runs_that_were_not_trained_alike_are_refused(override: str, told: str) -> None:
    with pytest.raises(InputError, match=f"sweep=s: .*rotten_tomatoes on minilm differ in {told}"):
        check_alike([run(), run("seed=1", override)], sweep="s")


def test_settings_contain_no_local_path(tiny_overrides: list[str]) -> None:
    settings = shared_settings(compose(*tiny_overrides))
    assert settings["trainer.head_learning_rate"] is None
    assert settings["task.source"].keys() == {"kind", "sha256"}
    assert "/" not in str(settings["model.source"])


def end(results: Path, sweep: str, *specs: RunSpec) -> None:
    """Make up a sweep of runs that are done."""
    store = RunStore(results / "runs")
    store.plan(sweep, [[spec] for spec in specs], question="")
    for spec in specs:
        lease = store.lease([spec.run_id])
        assert lease is not None
        lease.commit(status="done", record={"validation": {"accuracy": 0.5, "loss": 1.0}})


def test_reports_and_truncations_refuse_mixed_settings(tmp_path: Path) -> None:
    end(tmp_path, "sizes", compose("method=full"), compose("method=full", "task.train_size=100"))
    for read in (
        lambda: chosen_of_sweep("sizes", tmp_path),
        lambda: study_tables("sizes", results=tmp_path),
    ):
        with pytest.raises(InputError, match=r"differ in task\.train_size"):
            read()


def test_only_the_trials_of_these_rates_are_shown(tmp_path: Path) -> None:
    """A sweep's name may have been given to other runs before."""
    trial = ("seed=1000", "trainer.read_test=false", "method.learning_rate=3e-3")
    end(tmp_path, "mine_rates", compose("task.train_size=500", *trial), compose(*trial))
    end(tmp_path, "mine", compose("task.train_size=500"))
    rates = study_tables("mine", results=tmp_path).rates
    assert rates is not None
    assert rates["run_id"].tolist() == [compose("task.train_size=500", *trial).run_id]
    end(tmp_path, "mine", compose("task.train_size=400"))
    assert study_tables("mine", results=tmp_path).rates is None


def with_rows(digest: str | None, *overrides: str) -> TrainedRun:
    record = {"provenance": {"data_sha256": digest}} if digest else {"message": "failed"}
    return dataclasses.replace(run(*overrides), record=record)


def test_runs_with_other_rows_are_refused_despite_equal_settings() -> None:
    alike = [with_rows("a" * 64), with_rows("a" * 64, "seed=1"), with_rows(None, "seed=2")]
    check_alike([*alike, with_rows("b" * 64, "task=newsgroups")], sweep="s")
    with pytest.raises(InputError, match=r"other rows than .*-s0-.*\(data_sha256 b+… and a+…\)"):
        check_alike([*alike, with_rows("b" * 64, "seed=3")], sweep="s")
    check_same_rows(alike, {rows_key(alike[0].spec): "a" * 64})
    with pytest.raises(InputError, match=r"other rows than the task has now.*delete"):
        check_same_rows(alike, {rows_key(alike[0].spec): "b" * 64})
