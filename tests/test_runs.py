"""The run store survives crashes and races, and never shows half a run."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_study import runs
from lowrank_study.config import compose
from lowrank_study.errors import InputError
from lowrank_study.runs import RunStore
from lowrank_study.spec import RunSpec


@pytest.fixture
def specs() -> list[RunSpec]:
    return [compose(f"seed={seed}") for seed in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def plan(store: RunStore, specs: list[RunSpec]) -> list[str]:
    return store.plan("s", [[spec] for spec in specs], question="Why?")


def test_a_run_goes_from_planned_to_done(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs)
    assert store.ended(run_ids) == []
    claim = store.claim(run_ids)
    assert claim is not None
    claim.progress = 0.5
    (claim.folder / "checkpoint").mkdir()
    (claim.folder / "checkpoint" / "weights").write_text("w")
    assert not (store.folder / run_ids[0]).exists()
    claim.commit(status="done", record={"test": {"accuracy": 0.5}})
    [run] = store.ended(run_ids)
    assert run.spec == specs[0]
    assert run.status == "done"
    assert (run.checkpoint / "weights").read_text() == "w"
    assert store.progress(run_ids) == {run_ids[0]: 1.0}
    assert not list((store.folder / ".running").iterdir())


def test_the_same_specification_twice_is_one_run(store: RunStore, specs: list[RunSpec]) -> None:
    assert len(plan(store, [*specs, *specs])) == 3


def test_only_one_worker_gets_a_run(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs[:1])
    first = store.claim(run_ids)
    assert first is not None
    assert store.claim(run_ids) is None
    first.release()
    again = store.claim(run_ids)
    assert again is not None
    again.release()


def claim_all(folder: str, gate: "multiprocessing.synchronize.Event") -> list[str]:
    store, won = RunStore(Path(folder)), []
    gate.wait()
    while claim := store.claim(store.sweep("s")):
        claim.commit(status="done", record={})
        won.append(claim.run_id)
    return won


def race(folder: str, gate: "multiprocessing.synchronize.Event", out: Path) -> None:
    out.write_text(json.dumps(claim_all(folder, gate)))


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
from lowrank_study.runs import RunStore
store = RunStore(Path(sys.argv[1]))
claim = store.claim(store.sweep("s"))
(claim.folder / "checkpoint").mkdir()
(claim.folder / "checkpoint" / "half").write_text("half")
print("claimed", flush=True)
time.sleep(60)
"""


def test_a_killed_worker_leaves_nothing_that_looks_finished(
    store: RunStore, specs: list[RunSpec]
) -> None:
    run_ids = plan(store, specs[:1])
    command = [sys.executable, "-c", KILLED, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "claimed\n"
        assert store.claim(run_ids) is None
        worker.send_signal(signal.SIGKILL)
    assert store.ended(run_ids) == []
    claim = store.claim(run_ids)  # taken over at once: its process is gone
    assert claim is not None
    assert not (claim.folder / "checkpoint").exists()
    claim.commit(status="done", record={})
    assert len(store.ended(run_ids)) == 1


def test_a_worker_that_lost_its_claim_commits_nothing(
    store: RunStore, specs: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = plan(store, specs[:1])
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.01)
    slow = store.claim(run_ids)
    assert slow is not None
    with monkeypatch.context() as patched:
        patched.setattr(runs, "_is_stale", lambda folder: True)
        other = store.claim(run_ids)
    assert other is not None
    slow._heart.join(10)
    assert not slow._heart.is_alive()  # or it would take the claim back
    assert store.held(run_ids)
    with pytest.raises(RuntimeError, match="lost"):
        slow.commit(status="done", record={"by": "slow"})
    other.commit(status="done", record={"by": "other"})
    assert store.load(run_ids[0]).record["by"] == "other"


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_silence_is_waited_for(host: str, store: RunStore, specs: list[RunSpec]) -> None:
    """On this machine too: the pid of a dead worker may be another process's by now."""
    run_ids = plan(store, specs[:1])
    folder = store.folder / ".running" / run_ids[0]
    folder.mkdir()
    lease = folder / "lease.json"
    lease.write_text(json.dumps({"pid": 1, "host": host, "token": "t", "progress": 0.3}))
    assert store.claim(run_ids) is None
    assert store.held(run_ids)
    assert store.progress(run_ids) == {run_ids[0]: 0.3}
    long_ago = time.time() - runs.STALE_SECONDS - 1
    os.utime(lease, (long_ago, long_ago))
    assert not store.held(run_ids)
    claim = store.claim(run_ids)
    assert claim is not None
    claim.release()


def test_failed_runs_are_planned_again_and_diverged_ones_are_not(
    store: RunStore, specs: list[RunSpec]
) -> None:
    run_ids = plan(store, specs[:2])
    for status in ("failed", "diverged"):
        claim = store.claim(run_ids)
        assert claim is not None
        claim.commit(status=status, record={"message": "because"})
    assert [run.status for run in store.ended(run_ids)] == ["failed", "diverged"]
    plan(store, specs[:2])
    assert [run.status for run in store.ended(run_ids)] == ["diverged"]
    assert store.claim(run_ids) is not None


def test_a_crashed_process_fails_its_run(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs[:1])
    command = [sys.executable, "-c", KILLED, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.kill()
    store.end_runs_of(worker.pid, "ended by SIGKILL")
    [run] = store.ended(run_ids)
    assert (run.status, run.record["message"]) == ("failed", "ended by SIGKILL")


def test_a_crashed_pack_is_tried_run_by_run(store: RunStore, specs: list[RunSpec]) -> None:
    """Only one of its runs may have been the cause: the others are to lose nothing."""
    run_ids = store.plan("s", [specs[:2], specs[2:]], question="Why?")
    claims = store.claim_pack(store.packs("s"))
    assert [claim.run_id for claim in claims] == run_ids[:2]
    for claim in claims:
        claim._stop_heart()
    assert store.end_runs_of(os.getpid(), "ended by SIGKILL") == 2
    assert store.ended(run_ids) == []
    for run_id in run_ids:
        [claim] = store.claim_pack(store.packs("s"))
        assert claim.run_id == run_id
        claim.commit(status="done", record={})
    assert store.claim_pack(store.packs("s")) == []
    assert not list((store.folder / ".planned").iterdir())


def test_a_pack_is_claimed_as_far_as_it_is_free(store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = store.plan("s", [specs], question="Why?")
    first = store.claim(run_ids[:1])
    assert first is not None
    rest = store.claim_pack(store.packs("s"))
    assert [claim.run_id for claim in rest] == run_ids[1:]
    for claim in (first, *rest):
        claim.release()


def test_an_unknown_sweep_is_refused_with_the_known_ones(
    store: RunStore, specs: list[RunSpec]
) -> None:
    plan(store, specs)
    with pytest.raises(InputError, match=r"'t'.*planned ones are s"):
        store.sweep("t")
