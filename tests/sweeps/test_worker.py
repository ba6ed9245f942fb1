"""A worker ends each run with its reason, and reports its own failures in one line."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lowrank_study.config.run import compose
from lowrank_study.runs import leases
from lowrank_study.runs.leases import LeaseLost
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps import worker as work_module
from lowrank_study.sweeps.jobs import TRAINING, Work
from lowrank_study.sweeps.worker import CANNOT_GO_ON, do_work, main
from lowrank_study.training import fit
from lowrank_study.training.member import FitResult

Fit = Callable[[Sequence[fit.Job]], list[Any]]
DONE = FitResult(record={"test": {}, "steps": 1}, test=None, base=None)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    specs = [compose(f"seed={seed}", "trainer.read_test=false") for seed in range(2)]
    RunStore(tmp_path / "runs").plan("s", [specs], question="Why?")
    return tmp_path


def training(results: Path) -> Work:
    return Work(results=results, sweep="s", job=TRAINING, settings={})


def train(results: Path, fits: Fit, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Work with simulated training, and return each run's status or message."""
    monkeypatch.setattr(fit, "fit_together", lambda jobs, *, device: fits(jobs))
    do_work(training(results), device="cpu")
    store = RunStore(results / "runs")
    ended = store.ended(store.sweep("s"))
    return {run.spec.run_id: str(run.record.get("message", run.status)) for run in ended}


def test_a_disk_that_fills_while_committing_is_the_reason(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flush = leases.flush_to_disk

    def full(path: Path) -> None:
        if (path.parent / "checkpoint").is_dir():
            raise OSError(errno.ENOSPC, "no space left on device", str(path))
        flush(path)

    def fits(jobs: Sequence[fit.Job]) -> list[Any]:
        for job in jobs:
            job.checkpoint_folder.mkdir()
            (job.checkpoint_folder / "weights").write_text("w")
        return [DONE, DONE]

    monkeypatch.setattr(leases, "flush_to_disk", full)
    told = train(results, fits, monkeypatch)
    assert len(told) == 2
    assert all("no space left on the disk; free some space" in message for message in told.values())
    assert capsys.readouterr().err == ""


def test_a_full_disk_in_training_is_one_line_and_a_defect_a_traceback(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_rust = RuntimeError("I/O error: No space left on device (os error 28)")
    told = train(results, lambda _: [in_rust, KeyError("defect")], monkeypatch)
    assert [*told.values()] == [
        "no space left on the disk; free some space, then rerun",
        "KeyError: 'defect'",
    ]
    assert capsys.readouterr().err == "KeyError: 'defect'\n"  # was never raised: no frames


def test_a_disk_that_stays_full_ends_the_worker_in_one_line(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device", str(path))

    monkeypatch.setattr(leases, "write_json", full)
    monkeypatch.setattr(fit, "fit_together", lambda jobs, *, device: [DONE, DONE])
    monkeypatch.setattr(work_module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["work", "--results", str(results), "--sweep", "s"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == CANNOT_GO_ON
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "no space left on the disk" in line
    assert not list((results / "runs" / ".running").iterdir())


def test_a_lost_run_does_not_affect_the_others(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fits(jobs: Sequence[fit.Job]) -> list[Any]:
        asked.append(len(jobs))
        return [LeaseLost("run 0: taken over"), DONE] if len(asked) == 1 else [DONE]

    told = train(results, fits, monkeypatch)
    assert [*told.values()] == ["done", "done"]
    assert asked == [2, 1]  # no other worker took it, so it is trained
    assert capsys.readouterr().err == "run 0: taken over\n"


def test_a_worker_without_its_parent_stops_at_the_next_step(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(jobs: Sequence[fit.Job]) -> list[Any]:
        jobs[0].on_progress(0.1)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        jobs[0].on_progress(0.2)
        raise AssertionError("went on")

    monkeypatch.setattr(fit, "fit_together", lambda jobs, *, device: fits(jobs))
    with pytest.raises(SystemExit):
        do_work(training(results), device="cpu", parent=os.getppid())
    store = RunStore(results / "runs")
    assert store.progress(store.sweep("s")) == {}
    assert not list((results / "runs" / ".running").iterdir())


@pytest.mark.parametrize(("sweep", "words"), [("t", "no sweep 't'"), ("s", "s.json is damaged")])
def test_bad_input_of_a_worker_is_one_line(
    sweep: str,
    words: str,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (results / "runs" / ".sweeps" / "s.json").write_text("{")
    monkeypatch.setattr(work_module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["work", "--results", str(results), "--sweep", sweep])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
