"""Run each worker as a process of this machine, pinned to its cores, which ends with this one.

On Linux, workers that compute on the processor are forks of one process (`sweeps/fork_server.py`).
"""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from lowrank_study.machine import cores_of_workers, free_cores, may_have_gpu
from lowrank_study.sweeps.fork_server import (
    ForkedWorker,
    ForkServer,
    environment,
    thread_variables,
)
from lowrank_study.sweeps.jobs import Work
from lowrank_study.sweeps.launch import Arguments, Place, Result

_servers: list[ForkServer] = []
"""The server of this process, if it has been started."""


def prepare() -> None:
    """Start to load the workers' libraries, while the command checks its data."""
    if sys.platform == "linux" and not may_have_gpu():
        _fork_server()


def call(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """Call a function here if torch is loaded, else in the server if there is one."""
    if "torch" not in sys.modules and _servers and _servers[0].is_usable:
        with suppress(ConnectionError):  # it has just ended
            return _servers[0].call(function, *arguments, **named)
    return function(*arguments, **named)


@atexit.register
def _close() -> None:
    while _servers:
        _servers.pop().close()


def _fork_server() -> ForkServer:
    if not (_servers and _servers[0].is_usable):
        _close()
        _servers.append(ForkServer())
    return _servers[0]


class LocalProcess:
    """A worker process of this machine."""

    def __init__(self, command: list[str], variables: dict[str, str]) -> None:
        command += ["--parent", str(os.getpid())]
        # Ctrl-C does not reach its own process group: the crew ends it in order.
        self._process = subprocess.Popen(command, env=environment(variables), process_group=0)

    @property
    def exit_code(self) -> int | None:
        """Return None while it runs; a negative number is the signal that ended it."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        if self.exit_code is None:
            self._process.terminate()

    def end(self, *, until: float) -> None:
        """Wait for its end until a time of the monotonic clock; then kill it."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def places(workers: int | None, device: str, jobs: int) -> list[Place]:
    """Return one place per GPU, or else per core.

    Processes pinned to one core each train more examples per second than one with two threads.
    """
    import torch  # takes seconds; starting a worker needs none of it

    from lowrank_study.training.fit import torch_device

    found = torch_device(device)
    if found.type != "cpu":
        gpus = torch.cuda.device_count() if found.type == "cuda" and found.index is None else 1
        every = [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else [str(found)]
        count = min(workers or gpus, jobs)
        return [Place(cores="", device=every[number % gpus]) for number in range(count)]
    count = min(workers or len(free_cores()), jobs)
    return [
        Place(cores=",".join(map(str, cores)), device=device) for cores in cores_of_workers(count)
    ]


def start(work: Work, place: Place, name: str) -> LocalProcess | ForkedWorker:
    """Start a worker process."""
    if not place.cores:  # a fork can't use a GPU that a library has looked for
        return LocalProcess(work.command(place.device, name), {})
    pinned, threads = ["--cores", place.cores], len(place.cores.split(","))
    if sys.platform == "linux":
        arguments = work.arguments(place.device, name)
        return _fork_server().start([*arguments, *pinned], threads=threads)
    command = work.command(place.device, name)
    return LocalProcess([*command, *pinned], thread_variables(threads))
