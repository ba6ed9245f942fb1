"""Workers are forked from a process that has imported the libraries."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.loaded import splits_of
from lowrank_study.machine import free_cores
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps.fork_server import ForkedWorker, ForkServer, environment
from lowrank_study.sweeps.jobs import TRAINING, Work
from lowrank_study.sweeps.launch import Place, local
from lowrank_study.sweeps.sweep import sweep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks workers")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs")
    store.plan("s", [[compose()]], question="Why?")
    return store


def start(server: ForkServer, results: Path, sweep: str = "s") -> ForkedWorker:
    work = Work(results=results, sweep=sweep, job=TRAINING, settings={})
    return server.start(work.arguments("cpu", "name"), threads=1)


def ended(worker: ForkedWorker, seconds: float = 60.0) -> int | None:
    until = time.monotonic() + seconds
    while worker.exit_code is None and time.monotonic() < until:
        time.sleep(0.02)
    return worker.exit_code


def test_workers_end_with_their_own_exit_codes(
    server: ForkServer, store: RunStore, tmp_path: Path
) -> None:
    with store.lease(store.sweep("s")) as lease:  # type: ignore[union-attr]
        lease.commit(status="diverged", record={"message": "made up"})
    without_plan, without_work = start(server, tmp_path, "absent"), start(server, tmp_path)
    assert (ended(without_plan), ended(without_work)) == (2, 0)


def test_functions_are_called_in_the_server(server: ForkServer) -> None:
    assert server.call(os.getpid) == server._process.pid
    assert server.call(compose, "method.rank=2") == compose("method.rank=2")
    with pytest.raises(InputError, match=r"method\.rank=0: a whole number of at least 1"):
        server.call(compose, "method.rank=0")
    with pytest.raises(TypeError) as raised:
        server.call(os.getpid, 1)  # type: ignore[call-arg]
    assert "in _called" in raised.value.__notes__[0]  # the server's traceback


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_can_be_ended(
    by: signal.Signals, server: ForkServer, store: RunStore, tmp_path: Path
) -> None:
    """A worker watches a run that another one holds until its heart has beaten."""
    with store.lease(store.sweep("s")):  # type: ignore[union-attr]
        worker = start(server, tmp_path)
        assert worker.exit_code is None
        time.sleep(0.3)  # until it can answer a signal
        if by == signal.SIGTERM:
            worker.ask_to_end()
            worker.end(until=time.monotonic() + 60)
        else:
            worker.end(until=time.monotonic())
    assert worker.exit_code == (128 + signal.SIGTERM if by == signal.SIGTERM else -signal.SIGKILL)
    worker.ask_to_end()  # it has ended, so this does nothing


def test_workers_end_with_their_server(store: RunStore, tmp_path: Path) -> None:
    server = ForkServer()
    with store.lease(store.sweep("s")):  # type: ignore[union-attr]
        worker = start(server, tmp_path)
        assert worker.exit_code is None
        server._process.kill()
        assert worker.exit_code == -signal.SIGTERM
        until = time.monotonic() + 20
        while is_running(worker._pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_running(worker._pid)
    with pytest.raises(ConnectionError):
        server.call(os.getpid)
    server.close()
    assert not server.is_usable


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z" not in stat.read_text()


def test_a_server_is_used_only_in_the_environment_in_which_it_started(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "_made_in", (dict(os.environ), os.getcwd()))
    assert server.is_usable
    with monkeypatch.context() as patch:
        patch.setenv("HF_HOME", "elsewhere")
        assert not server.is_usable
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert not server.is_usable
    assert server.is_usable


def test_a_process_that_trains_uses_huge_pages_unless_the_user_decides_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert environment({"A": "1"})["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment({"A": "1"}).items() >= {"A": "1", "HOME": os.environ["HOME"]}.items()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    *_, last = environment({})["GLIBC_TUNABLES"].split(":")
    assert last == "glibc.malloc.hugetlb=0"


@pytest.mark.slow
def test_a_forked_worker_trains_with_the_threads_of_its_place(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    spec = compose(*tiny_overrides, "method.rank=2")
    [run] = sweep([spec], name="s", results=tmp_path, device="cpu", workers=1)
    assert run.status == "done"
    assert run.record["provenance"]["threads"] == str(len(free_cores()))
    here = sweep([spec], name="s", results=tmp_path / "here", device="cpu", launcher="inline")
    assert run.record["test"] == here[0].record["test"]
    assert [type(server) for server in local._servers] == [ForkServer]


@pytest.mark.slow
def test_a_command_loads_no_torch(tiny_overrides: list[str], tmp_path: Path) -> None:
    """The server plans its runs, workers measure spectra, and only new texts need a tokenizer."""
    splits_of(compose(*tiny_overrides, "method.rank=2"))
    program = (
        "import sys; from pathlib import Path; from lowrank_study.config.run import compose;"
        "from lowrank_study.sweeps.sweep import sweep; specs = [compose(*sys.argv[2:])];"
        "[run] = sweep(specs, name='s', results=Path(sys.argv[1]), device='cpu');"
        "print(run.status, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), *tiny_overrides, "method.rank=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "done False"


def test_a_gpu_gets_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: RunStore
) -> None:
    def no_fork() -> ForkServer:
        raise AssertionError("forked")

    monkeypatch.setattr(local, "_fork_server", no_fork)
    work = Work(results=tmp_path, sweep="absent", job=TRAINING, settings={})
    worker = local.start(work, Place(cores="", device="cpu"), "name")
    worker.end(until=time.monotonic() + 120)
    assert worker.exit_code == 2
