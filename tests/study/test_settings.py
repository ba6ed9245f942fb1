"""That runs are only compared with their like."""

from pathlib import Path

import pytest

from lowrank_study.config import compose
from lowrank_study.errors import InputError
from lowrank_study.reporting.sweep_report import study_tables
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.study.full_runs import chosen_of_sweep
from lowrank_study.study.settings import check_alike, shared_settings


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


def test_settings_are_kept_without_a_path_of_this_machine(tiny_overrides: list[str]) -> None:
    settings = shared_settings(compose(*tiny_overrides))
    assert settings["trainer.head_learning_rate"] is None
    assert settings["task.source"].keys() == {"kind", "sha256"}
    assert "/" not in str(settings["model.source"])


def test_neither_a_report_nor_a_cut_mixes_sizes(tmp_path: Path) -> None:
    specs = [compose("method=full"), compose("method=full", "task.train_size=100")]
    store = RunStore(tmp_path / "runs")
    store.plan("sizes", [[spec] for spec in specs], question="")
    for spec in specs:
        claim = store.claim([spec.run_id])
        assert claim is not None
        claim.commit(status="done", record={"validation": {"accuracy": 0.5, "loss": 1.0}})
    for read in (
        lambda: chosen_of_sweep("sizes", tmp_path),
        lambda: study_tables("sizes", results=tmp_path),
    ):
        with pytest.raises(InputError, match=r"differ in task\.train_size"):
            read()
