"""The run store survives crashes and races, and never shows an incomplete run."""

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec
from tests.runs.conftest import commit, plan


def test_a_run_goes_from_planned_to_done(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs)
    assert store.ended(run_ids) == []
    lease = store.lease(run_ids)
    assert lease is not None
    lease.advance(0.5)
    (lease.folder / "checkpoint").mkdir()
    (lease.folder / "checkpoint" / "weights").write_text("w")
    assert not (store.folder / run_ids[0]).exists()
    lease.commit(status="done", record={"test": {"accuracy": 0.5}})
    [run] = store.ended(run_ids)
    assert run.spec == specs[0]
    assert run.status == "done"
    assert (run.checkpoint / "weights").read_text() == "w"
    assert run.record["sha256"] == {"checkpoint/weights": hashlib.sha256(b"w").hexdigest()}
    assert store.progress(run_ids) == {run_ids[0]: 1.0}
    assert not list((store.folder / ".running").iterdir())


def test_the_same_specification_twice_is_one_run(store: RunStore, specs: list[RunSpec]) -> None:
    assert len(plan(store, [*specs, *specs])) == 3


def test_only_one_worker_gets_a_run(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs[:1])
    first = store.lease(run_ids)
    assert first is not None
    assert store.lease(run_ids) is None
    first.release()
    again = store.lease(run_ids)
    assert again is not None
    again.release()


def test_a_stopped_run_is_planned_again_if_the_new_limits_would_not_stop_it(
    store: RunStore, specs: list[RunSpec]
) -> None:
    packs, run_id = [specs[:1]], specs[0].run_id
    limits = {run_id: {10: 0.6}}
    store.plan("s", packs, question="", limits=limits)
    assert store.limits("s") == limits
    lease = store.lease([run_id])
    assert lease is not None
    lease.commit(status="stopped", record={"curve": [{"step": 10, "loss": 0.7}]})
    assert store.left(specs[:1], limits) == []
    assert store.left(specs[:1], {run_id: {10: 0.8}}) == store.left(specs[:1]) == specs[:1]
    store.plan("s", packs, question="", limits=limits)
    assert [run.status for run in store.ended([run_id])] == ["stopped"]
    store.plan("other", packs, question="")
    assert store.ended([run_id]) == []
    assert store.free([run_id]) == [run_id]
    assert store.limits("other") == {}


def lease_all(folder: str, gate: "multiprocessing.synchronize.Event") -> list[str]:
    store, won = RunStore(Path(folder)), []
    gate.wait()
    while lease := store.lease(store.sweep("s")):
        lease.commit(status="done", record={})
        won.append(lease.run_id)
    return won


def race(folder: str, gate: "multiprocessing.synchronize.Event", out: Path) -> None:
    out.write_text(json.dumps(lease_all(folder, gate)))


def test_processes_that_race_share_the_runs(store: RunStore, tmp_path: Path) -> None:
    run_ids = plan(store, [compose(f"seed={seed}") for seed in range(12)])
    context = multiprocessing.get_context("spawn")
    gate = context.Event()
    outs = [tmp_path / f"{n}.json" for n in range(3)]
    workers = [context.Process(target=race, args=(str(store.folder), gate, out)) for out in outs]
    for worker in workers:
        worker.start()
    time.sleep(0.5)
    gate.set()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    won = [run_id for out in outs for run_id in json.loads(out.read_text())]
    assert sorted(won) == sorted(run_ids)


KILLED = """
import sys, time
from pathlib import Path
from lowrank_study.runs.store import RunStore
store = RunStore(Path(sys.argv[1]), worker="killed")
lease = store.lease(store.sweep("s"))
(lease.folder / "checkpoint").mkdir()
(lease.folder / "checkpoint" / "half").write_text("half")
print("leased", flush=True)
time.sleep(60)
"""


def test_a_killed_worker_leaves_nothing_that_looks_finished(
    store: RunStore, specs: list[RunSpec]
) -> None:
    run_ids = plan(store, specs[:1])
    command = [sys.executable, "-c", KILLED, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "leased\n"
        assert store.lease(run_ids) is None
        worker.send_signal(signal.SIGKILL)
    assert store.ended(run_ids) == []
    lease = store.lease(run_ids)  # taken over at once: its process is gone
    assert lease is not None
    assert not (lease.folder / "checkpoint").exists()
    lease.commit(status="done", record={})
    assert len(store.ended(run_ids)) == 1


def test_failed_runs_are_planned_again_and_diverged_ones_are_not(
    store: RunStore, specs: list[RunSpec]
) -> None:
    run_ids = plan(store, specs[:2])
    for status in ("failed", "diverged"):
        lease = store.lease(run_ids)
        assert lease is not None
        lease.commit(status=status, record={"message": "because"})
    assert [run.status for run in store.ended(run_ids)] == ["failed", "diverged"]
    plan(store, specs[:2])
    assert [run.status for run in store.ended(run_ids)] == ["diverged"]
    assert store.lease(run_ids) is not None


def test_a_crashed_process_fails_its_run(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs[:1])
    command = [sys.executable, "-c", KILLED, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.kill()
    assert store.end_runs_of("another", "ended by SIGKILL") == 0
    assert store.end_runs_of("killed", "ended by SIGKILL") == 1
    [run] = store.ended(run_ids)
    assert (run.status, run.record["message"]) == ("failed", "ended by SIGKILL")


def test_a_crashed_pack_is_tried_run_by_run(store: RunStore, specs: list[RunSpec]) -> None:
    """Only one of its runs may have caused the crash, so the others are kept."""
    run_ids = store.plan("s", [specs[:2], specs[2:]], question="Why?")
    died = RunStore(store.folder, worker="w").lease_pack(store.packs("s"))
    assert [lease.run_id for lease in died] == run_ids[:2]
    assert store.end_runs_of("w", "ended by SIGKILL") == 2
    assert store.ended(run_ids) == []
    for run_id in run_ids:
        [lease] = store.lease_pack(store.packs("s"))
        assert lease.run_id == run_id
        lease.commit(status="done", record={})
    assert store.lease_pack(store.packs("s")) == []
    assert not list((store.folder / ".running").iterdir())


def test_a_pack_is_leased_as_far_as_it_is_free(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = store.plan("s", [specs], question="Why?")
    first = store.lease(run_ids[:1])
    assert first is not None
    rest = store.lease_pack(store.packs("s"))
    assert [lease.run_id for lease in rest] == run_ids[1:]
    for lease in (first, *rest):
        lease.release()


def test_an_unknown_sweep_is_refused_with_the_known_ones(
    store: RunStore, specs: list[RunSpec]
) -> None:
    plan(store, specs)
    with pytest.raises(InputError, match=r"'t'.*planned sweeps: s"):
        store.sweep("t")


def test_a_forgotten_run_is_planned_again(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs[:2])
    for run_id in run_ids:
        commit(store, run_id)
    store.forget([*run_ids[:1], "unknown"])
    assert [run.spec.run_id for run in store.ended(run_ids)] == run_ids[1:]
    plan(store, specs[:2])
    assert store.free(run_ids) == run_ids[:1]


def test_runs_under_a_used_name_are_remembered(store: RunStore, specs: list[RunSpec]) -> None:
    first = plan(store, specs[:2])
    assert store.earlier("s") == []
    plan(store, specs[2:])
    assert store.earlier("s") == first
    plan(store, specs[1:])
    assert store.earlier("s") == first[:1]


def test_a_new_result_survives_a_planner_that_saw_the_failed_run(
    store: RunStore, specs: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    [run_id] = plan(store, specs[:1])
    commit(store, run_id, "failed")
    slow, rename = RunStore(store.folder), os.rename

    def ends_meanwhile(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        plan(store, specs[:1])
        commit(store, run_id, weights="fresh")
        rename(source, target)

    monkeypatch.setattr(os, "rename", ends_meanwhile)
    plan(slow, specs[:1])
    [run] = store.ended([run_id])
    assert run.status == "done"
    assert (run.checkpoint / "weights").read_text() == "fresh"
    assert not list((store.folder / ".aside").iterdir())


def test_a_planner_that_came_second_prints_no_false_message(
    store: RunStore,
    specs: list[RunSpec],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [run_id] = plan(store, specs[:1])
    commit(store, run_id, "failed")
    slow, rename = RunStore(store.folder), os.rename

    def is_stopped_then(source: Path, target: Path) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "rename", rename)
        plan(store, specs[:1])

    monkeypatch.setattr(os, "rename", is_stopped_then)
    plan(slow, specs[:1])
    assert capsys.readouterr().err == ""
    assert not list((store.folder / ".aside").iterdir())


def test_the_next_planner_finishes_the_work_of_a_killed_one(
    store: RunStore, specs: list[RunSpec]
) -> None:
    run_ids = plan(store, specs[:2])
    commit(store, run_ids[0])
    commit(store, run_ids[1], "failed")
    for run_id in run_ids:
        os.rename(store.folder / run_id, store.folder / ".aside" / f"{run_id}.0123abcd")
    plan(store, specs[:2])
    assert [run.spec.run_id for run in store.ended(run_ids)] == run_ids[:1]
    assert not list((store.folder / ".aside").iterdir())


PLANS = """
import sys, pickle
from pathlib import Path
from lowrank_study.runs.store import RunStore
specs = pickle.loads(Path(sys.argv[2]).read_bytes())
store = RunStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(6):
    store.plan("s", [[spec] for spec in specs], question="Why?")
    for spec in specs:
        if lease := store.lease([spec.run_id]):
            lease.commit(status="failed", record={"message": "because"})
"""


def test_three_planners_at_once_over_failed_runs(
    store: RunStore, specs: list[RunSpec], tmp_path: Path
) -> None:
    run_ids = plan(store, specs)
    for run_id in run_ids:
        commit(store, run_id, "failed")
    (tmp_path / "specs").write_bytes(pickle.dumps(specs))
    command = [sys.executable, "-c", PLANS, str(store.folder), str(tmp_path / "specs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    planners = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for planner in planners:
        assert planner.stdout is not None
        assert planner.stdout.readline() == "ready\n"
    told = [planner.communicate("go\n", timeout=60)[1] for planner in planners]
    assert [planner.returncode for planner in planners] == [0, 0, 0], told
    assert told == ["", "", ""]
    plan(store, specs)
    for run_id in run_ids:
        commit(store, run_id)
    assert [run.status for run in store.ended(run_ids)] == ["done"] * 3
    assert not list((store.folder / ".aside").iterdir())
