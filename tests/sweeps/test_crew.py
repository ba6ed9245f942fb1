"""Workers of a command are replaced after a crash, and end with the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps import crew
from lowrank_study.sweeps.crew import run_workers
from lowrank_study.sweeps.jobs import TRAINING, Work
from lowrank_study.sweeps.launch import Place, local
from lowrank_study.sweeps.progress import Display, Stage
from lowrank_study.sweeps.worker import CANNOT_GO_ON

IMPORTS = "import os, sys, time, signal; from pathlib import Path;"
COMMITS_ONE = (
    "from lowrank_study.runs.store import RunStore;"
    "store = RunStore(Path(sys.argv[sys.argv.index('--results') + 1]) / 'runs');"
    "[lease] = store.lease_pack(store.packs('s'));"
    "lease.commit(status='done', record={})"
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs")
    specs = [compose(f"seed={seed}") for seed in range(2)]
    store.plan("s", [[spec] for spec in specs], question="Why?")
    return store


@pytest.fixture
def run(store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Run":
    return Run(store, monkeypatch, tmp_path)


class Run:
    """Runs the sweep with workers that each run one line of Python, and counts them."""

    def __init__(self, store: RunStore, patch: pytest.MonkeyPatch, results: Path) -> None:
        self.store, self.patch, self.results, self.started = store, patch, results, 0

    def __call__(self, worker: str) -> None:
        popen = subprocess.Popen

        def start(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
            self.started += 1
            line = [sys.executable, "-c", IMPORTS + worker, *command[3:]]
            return popen(line, **options)  # type: ignore[call-overload, no-any-return]

        self.patch.setattr(local.subprocess, "Popen", start)
        costs = dict.fromkeys(self.store.sweep("s"), 1.0)
        work = Work(results=self.results, sweep="s", job=TRAINING, settings={})
        places = [Place(cores="", device="cpu")]
        with Display() as display:
            run_workers(work, costs, launcher="local", places=places, display=display)


def test_workers_that_end_early_are_started_a_few_times(run: "Run") -> None:
    with pytest.raises(Unfinished, match="2 of 2 runs have not ended, and no worker is left"):
        run("sys.exit(1)")
    assert run.started == 4


@pytest.mark.parametrize("code", [2, CANNOT_GO_ON])
def test_a_hopeless_worker_is_not_replaced(code: int, run: "Run") -> None:
    with pytest.raises(Unfinished, match="2 of 2 runs have not ended"):
        run(f"sys.exit({code})")
    assert run.started == 1


def test_remaining_runs_get_new_workers(run: "Run", store: RunStore) -> None:
    run(COMMITS_ONE)
    assert run.started == 2
    assert len(store.ended(store.sweep("s"))) == 2


def test_a_removed_folder_ends_the_sweep_at_once(run: "Run") -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="the plan of sweep=s no longer exists; check"):
        run(f"import shutil; shutil.rmtree({str(run.store.folder)!r}); time.sleep(60)")
    assert time.monotonic() - began < 20


def test_a_worker_that_does_not_end_is_killed(
    run: "Run", store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_SECONDS_TO_END", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + COMMITS_ONE + ";time.sleep(60)"
    show = Stage.show

    def interrupted(self: Stage, shares: dict[str, float]) -> None:
        show(self, shares)
        if 1.0 in shares.values():
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(deaf)
    assert not store.held(store.sweep("s"))


WORKER = (
    "import os, sys, time; from pathlib import Path;"
    "from lowrank_study.machine import end_with_parent; import lowrank_study.sweeps.worker as w;"
    "w.signal.signal(w.signal.SIGTERM, w._end);"
    "end_with_parent(int(sys.argv[sys.argv.index('--parent') + 1]));"
    "store = w.RunStore(Path(sys.argv[sys.argv.index('--results') + 1]) / 'runs');"
    "lease = store.lease_pack(store.packs('s'))[0];"
    "lease.__enter__();"
    "exec('with lease: time.sleep(120)')"
)
DRIVER = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps.crew import run_workers
from lowrank_study.sweeps.jobs import TRAINING, Work
from lowrank_study.sweeps.launch import Place, local
from lowrank_study.sweeps.progress import Display
popen = subprocess.Popen
local.subprocess.Popen = lambda command, **options: popen(
    [sys.executable, "-c", sys.argv[2], *command[3:]], **options
)
results = Path(sys.argv[1])
costs = dict.fromkeys(RunStore(results / "runs").sweep("s"), 1.0)
work = Work(results=results, sweep="s", job=TRAINING, settings={})
with Display() as display:
    places = [Place(cores="", device="cpu")] * 2
    run_workers(work, costs, launcher="local", places=places, display=display)
"""


@pytest.mark.parametrize("ended_by", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_workers_end_with_their_driver_and_give_their_runs_back(
    ended_by: str, store: RunStore, tmp_path: Path
) -> None:
    if ended_by == "SIGKILL" and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    command = [sys.executable, "-c", DRIVER, str(tmp_path), WORKER]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        until = time.monotonic() + 60
        while len(store.progress(store.sweep("s"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        pids = children_of(driver.pid)
        assert len(pids) == 2
        driver.send_signal(getattr(signal, ended_by))
        driver.wait(30)
        stderr = driver.stderr.read() if driver.stderr else ""
    until = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, pids))
    assert not list((store.folder / ".running").iterdir())
    # The driver runs outside a command, and its workers print nothing.
    assert stderr.count("Traceback") == (ended_by != "SIGKILL")


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        not Path(f"/proc/{pid}/stat").exists() or ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    )
