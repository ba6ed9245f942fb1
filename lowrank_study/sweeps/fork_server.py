"""A process that imports torch and transformers once, and forks workers that need no time to start.

    server = ForkServer()                            # returns at once; the imports take seconds
    server.call(checked, specs)                      # a function that needs these libraries
    worker = server.start(arguments, threads=1)      # arguments of `sweeps/worker.py`
    worker.exit_code

A fork copies neither threads nor the state of a GPU, so the server has a single thread and never
uses a GPU. Requests and replies are pickled on a socket, which is its standard input.
"""

import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from lowrank_study.machine import end_with_parent, garbage_kept

_PRELOADED = ("lowrank_study.sweeps.training_job", "threadpoolctl")
_POLL_SECONDS = 0.02
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class ForkServer:
    """Starts the server, and asks it for workers."""

    def __init__(self) -> None:
        self._made_in = _surroundings()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", __name__, str(os.getpid())]
        variables = environment(thread_variables(1))
        with theirs:  # Ctrl-C does not reach its own process group: the crew ends the workers
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), env=variables, process_group=0
            )
        self._answers = self._socket.makefile("rb")

    @property
    def is_usable(self) -> bool:
        """Whether it runs, in the environment and the folder of this process."""
        return self._process.poll() is None and self._made_in == _surroundings()

    def start(self, arguments: Sequence[str], *, threads: int) -> "ForkedWorker":
        """Fork a worker; its `--parent` is the server.

        If the server has ended, perhaps because a library can't be imported, so has the worker.
        """
        parent = ["--parent", str(self._process.pid)]
        try:
            pid = int(self.ask(start=[*arguments, *parent], threads=threads))
        except OSError:
            return ForkedWorker(self, 0, self._process.wait())
        return ForkedWorker(self, pid, None)

    def call(
        self,
        function: Callable[_Arguments, _Result],
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> _Result:
        """Return what a function of a module returns in the server; raise what it raises there.

        Workers that are forked later have all that it imports and caches.

        Raises:
            ConnectionError: The server has ended.
        """
        result, error = self.ask(call=(function, arguments, named))
        if error is not None:
            raise error
        found: _Result = result
        return found

    def ask(self, **request: Any) -> Any:
        """Return the server's answer.

        Raises:
            ConnectionError: The server has ended.
        """
        self._socket.sendall(pickle.dumps(request))
        try:
            return pickle.load(self._answers)
        except EOFError as error:
            raise ConnectionResetError("the process that forks workers has ended") from error

    def close(self) -> None:
        """End the server, which also ends its workers."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._socket.close()


class ForkedWorker:
    """A worker that a server has forked."""

    def __init__(self, server: ForkServer, pid: int, exit_code: int | None) -> None:
        self._server, self._pid, self._exit_code = server, pid, exit_code

    @property
    def exit_code(self) -> int | None:
        """Return None while it runs; a negative number is the signal that ended it."""
        if self._exit_code is None:
            try:
                self._exit_code = self._server.ask(poll=self._pid)
            except OSError:  # the system ends the workers of a server that has ended
                self._exit_code = -signal.SIGTERM
        return self._exit_code

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        if self.exit_code is None:
            os.kill(self._pid, signal.SIGTERM)

    def end(self, *, until: float) -> None:
        """Wait for its end until a time of the monotonic clock; then kill it."""
        while self.exit_code is None:
            if time.monotonic() > until:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that trains, with some further variables.

    A training step is faster in huge pages, which glibc uses only if it is told when a process
    starts. The user's own settings of glibc come last, and so win.
    """
    tunables = ":".join(filter(None, (_HUGE_PAGES, os.environ.get("GLIBC_TUNABLES"))))
    fixed = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "GLIBC_TUNABLES": tunables}
    return {**os.environ, **fixed, **variables}


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment variables that set the number of threads of numerical libraries."""
    return {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}


def _surroundings() -> tuple[dict[str, str], str]:
    return dict(os.environ), os.getcwd()


def main() -> None:
    """Import the libraries, and fork workers until the command ends; run the worker in a fork."""
    end_with_parent(int(sys.argv[1]))
    with garbage_kept():
        for name in _PRELOADED:
            importlib.import_module(name)
    gc.freeze()  # a collection need not visit what was imported
    arguments, threads = _next_worker()
    _use_threads(threads)
    from lowrank_study.sweeps import worker

    worker.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # freeing all that the server has loaded would take a while


def _next_worker() -> tuple[list[str], int]:
    """Answer requests; return in a fork, with the request that it was forked for."""
    with socket.socket(fileno=os.dup(0)) as server, server.makefile("rwb") as file:
        answer: Any
        while file.peek(1):
            match pickle.load(file):
                case {"call": (function, given, named)}:
                    answer = _called(function, given, named)
                case {"poll": pid}:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    answer = os.waitstatus_to_exitcode(status) if ended else None
                case {"start": arguments, "threads": threads}:
                    answer = os.fork()
                    if answer == 0:
                        break
            pickle.dump(answer, file)
            file.flush()
        else:
            sys.exit(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return arguments, threads


def _called(function: Callable[..., Any], given: Any, named: Any) -> tuple[Any, Exception | None]:
    """Return the result of a function and None, or None and its exception."""
    try:
        return function(*given, **named), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error


def _use_threads(count: int) -> None:
    """Let numerical libraries use some threads, as the variables would at their import."""
    import threadpoolctl  # type: ignore[import-untyped, unused-ignore]
    import torch

    os.environ.update(thread_variables(count))
    torch.set_num_threads(count)
    threadpoolctl.threadpool_limits(count, user_api="blas")


if __name__ == "__main__":
    main()
