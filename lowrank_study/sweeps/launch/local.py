"""The workers of one command: start them, watch them, replace crashed ones, end them with it.

>>> run_workers(store, costs, "rank_sweep", results, "none", [("0", "cpu"), ("1", "cpu")])
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Self

from lowrank_study.errors import InputError, Unfinished
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps.progress import SweepProgress
from lowrank_study.sweeps.worker import CANNOT_GO_ON

_POLL_SECONDS = 0.5
_SECONDS_TO_END = 10.0
_HOPELESS = (2, CANNOT_GO_ON)
_MOST_FRUITLESS = 3
"""How often workers are started again without any run having ended in between."""


class WorkerProcess:
    """A process of `sweeps/worker.py`, and its name in the store."""

    def __init__(self, sweep: str, results: Path, tracker: str, cores: str, device: str) -> None:
        self.name = uuid.uuid4().hex
        command = [sys.executable, "-m", "lowrank_study.sweeps.worker", "--sweep", sweep]
        where = str(results.absolute())  # a relative path may begin with a dash
        command += ["--results", where, "--device", device, "--tracker", tracker]
        command += ["--parent", str(os.getpid()), "--name", self.name]
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if cores:
            threads = str(len(cores.split(",")))
            command += ["--cores", cores]
            for library in ("OMP", "MKL", "OPENBLAS"):
                environment[f"{library}_NUM_THREADS"] = threads
        # Ctrl-C does not reach its own process group: the driver ends it in order.
        self._process = subprocess.Popen(command, env=environment, process_group=0)

    @property
    def exit_code(self) -> int | None:
        """`None` while it runs."""
        return self._process.poll()

    @property
    def has_crashed(self) -> bool:
        """Whether it ended without finishing its work."""
        return self.exit_code not in (None, 0, *_HOPELESS)

    @property
    def is_hopeless(self) -> bool:
        """Whether a replacement would end in the same way."""
        return self.exit_code in _HOPELESS

    @property
    def why_ended(self) -> str:
        """In words."""
        code = self._process.returncode
        if code < 0:
            names = {each.value: each.name for each in signal.Signals}
            name = names.get(-code, f"signal {-code}")
            return f"its worker process was ended by {name} (out of memory?)"
        return f"its worker process ended with exit code {code}"

    def ask_to_end(self) -> None:
        """Ask it to give its runs back and end."""
        if self.exit_code is None:
            self._process.terminate()

    def end(self, *, until: float) -> None:
        """Wait for its end, at most until a time of the monotonic clock."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Crew:
    """The workers of a sweep, one per place: replaced after a crash, ended with this process."""

    def __init__(
        self,
        store: RunStore,
        sweep: str,
        results: Path,
        tracker: str,
        places: Sequence[tuple[str, str]],
    ) -> None:
        self._store = store
        self._start = [partial(WorkerProcess, sweep, results, tracker, *place) for place in places]
        self._workers: list[WorkerProcess] = []
        self._fruitless, self._left = 0, math.inf

    def __enter__(self) -> Self:
        for start in self._start:
            self._workers.append(start())
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.ask_to_end()
        until = time.monotonic() + _SECONDS_TO_END
        for worker in self._workers:
            worker.end(until=until)
            self._store.give_back_runs_of(worker.name)

    def is_at_work(self, run_ids: Sequence[str]) -> bool:
        """Replace ended workers while runs are left, and return whether any worker has them.

        This may also be a worker of another command, or one that was started by hand.
        """
        for number, worker in enumerate(self._workers):
            # The run of a crashed worker has failed; another worker continues with the others.
            if worker.has_crashed and self._store.end_runs_of(worker.name, worker.why_ended):
                self._workers[number] = self._start[number]()
        held = self._store.held(run_ids)
        if any(worker.exit_code is None for worker in self._workers):
            return True
        free = self._store.free(run_ids)
        if not free or any(worker.is_hopeless for worker in self._workers):
            return held
        # The workers that had these runs have died, or ours ended before they took any.
        self._fruitless = self._fruitless + 1 if len(free) >= self._left else 1
        self._left = len(free)
        if self._fruitless > _MOST_FRUITLESS:
            return held
        self._workers = [start() for start in self._start[: len(free)]]
        return True


def run_workers(
    store: RunStore,
    costs: dict[str, float],
    name: str,
    results: Path,
    tracker: str,
    places: Sequence[tuple[str, str]],
) -> None:
    """Let workers train the planned runs of a sweep, and watch them until all runs have ended.

    Parameters
    ----------
    store
        The store with the plan of the sweep.
    costs
        Run id → cost of the run relative to the others.
    name
        Name of the sweep.
    results
        Folder of the store and of everything made from it.
    tracker
        The tracker of the runs' curves.
    places
        The cores and the device of each worker.

    Raises
    ------
    Unfinished
        No worker is left, but some runs have not ended.
    InputError
        The sweep's plan was removed meanwhile.
    """
    run_ids = list(costs)
    with (
        _interrupted_by_sigterm(),
        Crew(store, name, results, tracker, places) as crew,
        SweepProgress(name, costs, store.progress(run_ids)) as progress,
    ):
        while crew.is_at_work(run_ids):
            time.sleep(_POLL_SECONDS)
            if not store.has_plan(name):
                raise InputError(
                    f"{store.folder}: the plan of sweep={name} no longer exists; check whether the "
                    "folder was removed, then run the command again to start anew"
                )
            progress.show(store.progress(run_ids))
    if left := len(run_ids) - len(store.ended(run_ids)):
        raise Unfinished(
            f"{left} of {len(run_ids)} runs have not ended, and no worker is left: see the lines "
            "above for the reason; the same command resumes"
        )


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that workers end before this process does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
