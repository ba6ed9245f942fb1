"""Provenance is flattened, and shared by runs as far as they agree."""

from pathlib import Path

from lowrank_study.config.run import compose
from lowrank_study.reporting.sections.provenance import flat_provenance, shared_provenance
from lowrank_study.runs.store import TrainedRun


def test_provenance_is_flattened() -> None:
    frame = flat_provenance({"a": 1, "b": {"c": {"d": "x"}, "e": [1, 2]}})
    assert frame.to_numpy().tolist() == [["a", "1"], ["b / c / d", "x"], ["b / e", "1, 2"]]


def test_what_runs_share_is_told_once_and_what_they_differ_in_with_counts() -> None:
    runs = [
        TrainedRun(
            spec=compose(f"task.train_size={size}", f"trainer.epochs={epochs}"),
            status="done",
            record={"provenance": {"commit": commit, "cores": 2}},
            folder=Path(),
        )
        for size, epochs, commit in ((100, 9, "a"), (300, 3, "a"), (300, 3, "b"))
    ]
    shared = shared_provenance(runs)
    assert (shared["cores"], shared["commit"]) == (2, {"a": "2 runs", "b": "1 run"})
    setting = shared["rotten_tomatoes on minilm"]
    assert setting["task.train_size"] == {"100": "1 run", "300": "2 runs"}
    assert setting["trainer.epochs"] == {"9": "1 run", "3": "2 runs"}
    assert setting["trainer.batch_size"] == runs[0].spec.train.batch_size
