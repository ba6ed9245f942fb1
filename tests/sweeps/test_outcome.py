"""Failed and diverged runs and left-out parts are listed, and the exit code is 1."""

from pathlib import Path
from typing import Any

import pytest

from lowrank_study.config.run import compose, composed
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps.outcome import check_sweeps, in_words, require_sweeps
from tests.conftest import RunCommand

DONE = {"test": {"accuracy": 0.5}, "steps": 3}
BAD = {"message": "no memory"}


def settings(results: Path, *more: str) -> dict[str, Any]:
    return composed("report", f"results={results}", "sweep=mine", *more)


def plan(results: Path, *statuses: str, left_out: tuple[str, ...] = ()) -> None:
    """End LoRA runs, which have no spectra here, with these statuses; "" stays planned."""
    fixed = ("method=lora", "trainer.precision=fp32", "trainer.read_test=false")  # no spectra
    specs = [compose(*fixed, f"seed={n}") for n in range(len(statuses))]
    store = RunStore(results / "runs")
    store.plan("mine", [[spec] for spec in specs], question="Why?")
    for spec, status in zip(specs, statuses, strict=True):
        if status:
            lease = store.lease([spec.run_id])
            assert lease is not None
            record = {**DONE, "left_out": list(left_out)} if status == "done" else BAD
            lease.commit(status=status, record=record)


def test_a_complete_sweep_passes_the_checks(tmp_path: Path) -> None:
    plan(tmp_path, "done", "done")
    require_sweeps(settings(tmp_path))
    check_sweeps(settings(tmp_path))


def test_each_lost_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    plan(tmp_path, "done", "failed", "diverged", "")
    with pytest.raises(Unfinished) as told:
        check_sweeps(settings(tmp_path))
    failed, diverged, counted, waiting = str(told.value).splitlines()
    assert failed.startswith("failed: rotten_tomatoes-minilm-lora")
    assert failed.endswith(": no memory")
    assert diverged.startswith("diverged: ")
    assert counted == "sweep mine: 2 of 4 runs failed or diverged"
    assert waiting == "sweep mine: 1 of 4 runs have not ended"
    check_sweeps(settings(tmp_path), method=FullFineTuning)  # it reads none of them


def test_progress_counts_runs_by_state_and_names_lost_ones(
    tmp_path: Path, run_command: RunCommand
) -> None:
    plan(tmp_path, "done", "done", "failed", "diverged", "", "")
    store = RunStore(tmp_path / "runs")
    lease = store.lease(store.sweep("mine"))
    assert lease is not None
    with lease:
        code, out, _ = run_command("analysis/show_progress.py", "sweep=mine", f"results={tmp_path}")
    counts, failed, diverged = out.splitlines()
    assert code == 0
    assert counts == "mine: 6 runs: 2 done, 1 failed, 1 diverged, 1 running, 1 planned"
    assert failed.startswith("failed: rotten_tomatoes-minilm-lora")
    assert failed.endswith(": no memory")
    assert diverged.startswith("diverged: ")


def test_runs_of_one_method_that_have_not_ended_are_counted(tmp_path: Path) -> None:
    specs = [compose(f"method={name}", "trainer.precision=fp32") for name in ("full", "lora")]
    RunStore(tmp_path / "runs").plan("mine", [[spec] for spec in specs], question="Why?")
    with pytest.raises(Unfinished, match="sweep mine: 1 of 1 runs have not ended"):
        check_sweeps(settings(tmp_path), method=FullFineTuning)


def test_left_out_rows_are_listed_once_unless_allowed(tmp_path: Path) -> None:
    row = "left out: 3 of 300 rows of a.csv (1 %): an empty label"
    plan(tmp_path, "done", "done", left_out=(row,))
    with pytest.raises(Unfinished) as told:
        check_sweeps(settings(tmp_path))
    assert str(told.value).splitlines() == [row, "allow_partial=true accepts what was left out"]
    check_sweeps(settings(tmp_path, "allow_partial=true"))


def test_a_sweep_without_done_runs_is_refused(tmp_path: Path) -> None:
    plan(tmp_path, "failed", "failed")
    with pytest.raises(
        InputError, match="none of its 2 ended runs is done; 2 ended with: no memory"
    ):
        require_sweeps(settings(tmp_path))


def test_a_sweep_without_done_runs_gives_no_report_and_code_2(
    tmp_path: Path, run_command: RunCommand
) -> None:
    plan(tmp_path, "failed", "diverged")
    for script in ("report", "record", "check_claims", "measure_controls"):
        code, _, told = run_command(f"analysis/{script}.py", f"results={tmp_path}", "sweep=mine")
        assert code == 2
        assert "none of its 2 ended runs is done" in told
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_report_command_quotes_its_folder(tmp_path: Path) -> None:
    results = tmp_path / "my results"
    plan(results, "done", "done")
    store = RunStore(results / "runs")
    told = in_words(store.ended(store.sweep("mine")), sweep="mine", results=results)
    assert told.startswith("2 runs: 2 done; ")
    assert told.endswith(f"report.py sweep=mine 'results={results}' reports them")
