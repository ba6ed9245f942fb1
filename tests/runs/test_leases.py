"""A lease belongs to one worker until its heartbeat stops; then that worker can't write."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.machine import is_alive, process_space
from lowrank_study.runs import leases
from lowrank_study.runs.leases import Lease, LeaseLost, Leases
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return compose("seed=0")


@pytest.fixture
def store(tmp_path: Path, spec: RunSpec) -> RunStore:
    store = RunStore(tmp_path / "runs")
    store.plan("s", [[spec]], question="Why?")
    return store


@pytest.fixture
def elsewhere(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """Return the store as another machine sees it, with another clock and a short lease."""
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.15)
    return RunStore(store.folder)


def taken(store: RunStore) -> Lease:
    lease = store.lease(store.sweep("s"))
    assert lease is not None
    return lease


def silence(lease: Lease) -> None:
    """Stop a lease's heartbeat, as SIGSTOP does."""
    lease._over.set()
    lease._heart.join()
    lease._over.clear()


def taken_over(store: RunStore) -> Lease:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if lease := store.lease(store.sweep("s")):
            return lease
        time.sleep(0.02)
    raise AssertionError("never taken over")


def test_a_silent_worker_is_taken_over_and_commits_nothing(
    store: RunStore, elsewhere: RunStore
) -> None:
    slow = taken(store)
    (slow.folder / "checkpoint").mkdir()
    (slow.folder / "checkpoint" / "half").write_text("slow")
    silence(slow)
    other = taken_over(elsewhere)
    # It resumes while saving, which creates its folders again.
    (slow.folder / "checkpoint").mkdir(parents=True)
    (slow.folder / "checkpoint" / "rest").write_text("slow")
    with pytest.raises(LeaseLost, match="another worker has taken it over"):
        slow.commit(status="done", record={"by": "slow"})
    other.commit(status="done", record={"by": "other"})
    run = store.load(other.run_id)
    assert run.record["by"] == "other"
    assert run.record["attempt"] == other.token
    assert sorted(path.name for path in run.folder.iterdir()) == ["record.json", "spec.json"]
    assert not list((store.folder / ".running").iterdir())
    assert not list((store.folder / ".gone").iterdir())


def test_a_resumed_worker_learns_of_its_loss_at_the_next_step(
    store: RunStore, elsewhere: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = taken(store)
    silence(slow)
    other = taken_over(elsewhere)
    (slow.folder / "checkpoint").mkdir(parents=True)  # this recreates no lease
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    slow._beat()
    with pytest.raises(LeaseLost):
        slow.advance(0.5)
    assert elsewhere.held([other.run_id])
    other.release()


def test_the_second_worker_to_commit_loses_the_run(store: RunStore, elsewhere: RunStore) -> None:
    slow = taken(store)
    silence(slow)
    other = taken_over(elsewhere)
    other.commit(status="done", record={"by": "other"})
    with pytest.raises(LeaseLost):
        slow.commit(status="failed", record={"message": "late"})
    assert store.load(other.run_id).status == "done"


@pytest.mark.parametrize("hours", [-30, 30])
def test_the_clocks_of_two_machines_do_not_matter(
    hours: float, store: RunStore, elsewhere: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    living = taken(store)
    file = living.folder.parent / "lease.json"
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        os.utime(file, (0, 3600 * 24 * 365 * 100 * (hours > 0)))
        assert elsewhere.lease([living.run_id]) is None
        time.sleep(0.02)
    assert elsewhere.held([living.run_id])
    silence(living)
    taken_over(elsewhere).release()


def test_a_watcher_that_was_suspended_too_does_not_take_over(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, watcher, now = taken(store), RunStore(store.folder), time.monotonic()
    silence(living)
    assert watcher.held([living.run_id])
    monkeypatch.setattr(time, "monotonic", lambda: now + 10_000.0)
    assert watcher.held([living.run_id])
    monkeypatch.undo()
    living.release()


def test_an_equal_host_name_does_not_prove_that_a_worker_is_dead(
    store: RunStore, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "process_space", lambda: "host boot pid:[1]")
    living = taken(store)
    monkeypatch.setattr(leases, "is_alive", lambda pid: False)
    monkeypatch.setattr(leases, "process_space", lambda: "host boot pid:[2]")
    assert RunStore(store.folder).lease([spec.run_id]) is None
    monkeypatch.setattr(leases, "process_space", lambda: None)  # no Linux
    assert RunStore(store.folder).lease([spec.run_id]) is None
    monkeypatch.setattr(leases, "process_space", lambda: "host boot pid:[1]")
    lease = RunStore(store.folder).lease([spec.run_id])
    assert lease is not None
    silence(living)
    lease.release()


def test_a_short_network_failure_does_not_end_the_heartbeat(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    living = taken(store)

    def stale(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "stale file handle", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", stale)
        patched.setattr(Path, "read_bytes", stale)
        time.sleep(0.1)
        assert store.held([living.run_id])  # nothing is known of it
    before = living._beats
    time.sleep(0.1)
    assert living._beats > before
    living.advance(0.5)
    living.commit(status="done", record={})


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff"])
def test_a_damaged_lease_is_judged_by_whether_it_changes(
    content: bytes, store: RunStore, elsewhere: RunStore
) -> None:
    living = taken(store)
    silence(living)
    (living.folder.parent / "lease.json").write_bytes(content)
    assert elsewhere.lease([living.run_id]) is None
    assert elsewhere.progress([living.run_id]) == {living.run_id: 0.0}
    taken_over(elsewhere).release()


def test_a_worker_is_in_doubt_until_its_heartbeat_changes(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
    watcher, living = RunStore(store.folder), taken(store)
    assert watcher.in_doubt([living.run_id])
    until = time.monotonic() + 10
    while watcher.in_doubt([living.run_id]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not watcher.in_doubt([living.run_id])
    assert watcher.held([living.run_id])
    living.release()
    assert not watcher.in_doubt([living.run_id])


def test_the_next_planner_removes_left_overs_of_dead_workers(
    store: RunStore, spec: RunSpec
) -> None:
    running = store.folder / ".running"
    old = running / spec.run_id  # of an older layout
    (old / "checkpoint").mkdir(parents=True)
    (old / "lease.json").write_text(json.dumps({"pid": 1, "host": "h", "token": "t"}))
    (running / "other" / "token" / "run").mkdir(parents=True)
    (running / ".abc" / "abc").mkdir(parents=True)
    (store.folder / ".gone" / "x").mkdir()
    store.plan("s", [[spec]], question="Why?")
    assert not [path for slot in running.iterdir() for path in slot.iterdir()]
    assert not list((store.folder / ".gone").iterdir())
    taken(store).release()


def test_removing_a_store_ends_its_workers_and_does_not_recreate_it(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    living = taken(store)
    shutil.rmtree(store.folder)
    living._heart.join(10)
    with pytest.raises(LeaseLost):
        living.advance(0.5)
    living.release()
    assert store.lease([living.run_id]) is None
    assert not store.folder.exists()


def test_a_rename_with_a_lost_reply_counts(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a request that has succeeded, and the second one finds nothing to rename."""
    rename = os.rename

    def twice(source: Path, target: Path) -> None:
        rename(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", twice)
    lease = taken(store)
    lease.commit(status="done", record={})
    assert store.load(lease.run_id).record["attempt"] == lease.token


def test_a_full_disk_leaves_the_lease(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = taken(store)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(leases, "write_json", full)
        with pytest.raises(OSError, match="no space"):
            lease.commit(status="done", record={})
    lease.commit(status="failed", record={"message": "the disk was full"})
    assert store.load(lease.run_id).status == "failed"


def test_a_process_space_is_more_than_a_host_name() -> None:
    space = process_space()
    if space is None:
        pytest.skip("this system does not tell")
    assert len(space.split()) == 3
    assert is_alive(os.getpid())
    assert not is_alive(2**31 - 1)


def test_leases_have_a_constant_length(store: RunStore) -> None:
    watch = Leases(store.folder, worker="w")
    lease = taken(store)
    text = leases.lease_text({"worker": "w", "pid": 1}, beats=10**9, progress=1 / 3)
    assert len(text) == len((lease.folder.parent / "lease.json").read_bytes())
    assert watch.progress(lease.run_id) == 0.0
    lease.release()
