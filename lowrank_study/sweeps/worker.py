"""A worker: lease runs of a sweep, do a job for them, and repeat until none is free.

    python -m lowrank_study.sweeps.worker --results results --sweep rank_sweep

starts one worker on a planned sweep. Launchers do so, and so can you. Any number of workers, on any
number of machines, share the work through the store.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from lowrank_study.errors import InputError
from lowrank_study.files import os_error_message
from lowrank_study.machine import end_with_parent
from lowrank_study.runs.leases import Lease
from lowrank_study.runs.store import RunStore
from lowrank_study.sweeps.jobs import TRAINING, Job, Work

CANNOT_GO_ON = 3
"""Exit code of a worker whose replacement would fail too, as on a full disk."""
_STOPPED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to stop."""
_POLL_SECONDS = 0.1
"""Seconds between two looks at the runs of other workers."""
_asked_to_end = threading.Event()


def do_work(work: Work, *, device: str, name: str | None = None, parent: int | None = None) -> None:
    """Do the job for runs of a planned sweep until none is free, or `parent` has ended."""
    job = cast(Job, importlib.import_module(work.job))
    store = RunStore(work.folder, worker=name)
    packs = store.packs(work.sweep)
    run_ids = [run_id for pack in packs for run_id in pack]

    def advance(lease: Lease, share: float) -> None:
        if _asked_to_end.is_set() or _is_orphan(parent):
            sys.exit(_STOPPED)
        lease.advance(share)

    while not _is_orphan(parent):
        if leases := store.lease_pack(packs):
            with ExitStack() as held:
                for lease in leases:
                    held.enter_context(lease)
                job.run(leases, work, device=device, advance=advance)
        elif store.in_doubt(run_ids):  # are the other workers alive?
            time.sleep(_POLL_SECONDS)
        else:
            return


def main(arguments_given: Sequence[str] | None = None) -> None:
    """Run one worker, by the command line or other arguments."""
    parser = argparse.ArgumentParser(description="Do a job for the free runs of a planned sweep.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--job", default=TRAINING, help="module of the job")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the job, as JSON")
    parser.add_argument("--parent", type=int, help="the process to end with")
    parser.add_argument("--name", help="unique name of the worker in the store")
    parser.add_argument("--cores", help="the cores to stay on, such as 0 or 2,3")
    arguments = parser.parse_args(arguments_given)
    with _errors_in_one_line():
        signal.signal(signal.SIGTERM, _end)
        if arguments.parent is not None:
            end_with_parent(arguments.parent)
        if arguments.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
        work = Work(
            results=arguments.results,
            sweep=arguments.sweep,
            job=arguments.job,
            settings=arguments.settings,
        )
        do_work(work, device=arguments.device, name=arguments.name, parent=arguments.parent)


def _is_orphan(parent: int | None) -> bool:
    return parent is not None and os.getppid() != parent


def _end(*_: Any) -> None:
    """Exit in order, which gives the runs back; further signals are ignored.

    Python drops exceptions inside a destructor, so the next step also checks the event.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked_to_end.set()
    sys.exit(_STOPPED)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except SystemExit:
        if _asked_to_end.is_set():  # the runs are given back; a normal exit of torch takes seconds
            sys.stderr.flush()
            os._exit(_STOPPED)
        raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept; rerun to resume", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if (message := os_error_message(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(CANNOT_GO_ON)


if __name__ == "__main__":
    main()
