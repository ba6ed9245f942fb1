"""The workers of one command: start them, watch them, replace crashed ones, end them with it."""

import math
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Self

from lowrank_study.errors import InputError, Unfinished
from lowrank_study.machine import interrupted_by_sigterm
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.sweeps.jobs import Work
from lowrank_study.sweeps.launch import Launcher, Place, Process, launcher_of
from lowrank_study.sweeps.progress import Display
from lowrank_study.sweeps.worker import CANNOT_GO_ON

_POLL_SECONDS, _LAST_POLL_SECONDS = 0.5, 0.05
"""Seconds between two looks at the store: while runs are trained, and after all have ended."""
_SECONDS_TO_END = 10.0
_HOPELESS = (2, CANNOT_GO_ON)
"""Exit codes after which a replacement would end in the same way."""
_MOST_FRUITLESS = 3
"""How often workers are started again without any run having ended in between."""


def run_workers(
    work: Work,
    costs: Mapping[str, float],
    *,
    launcher: str,
    places: Sequence[Place],
    display: Display,
) -> None:
    """Let workers do planned work, and watch them until all runs have ended.

    Raises:
        Unfinished: No worker is left, but some runs have not ended.
        InputError: The sweep's plan was removed meanwhile.
    """
    store, run_ids = RunStore(work.folder), list(costs)
    shares = store.progress(run_ids)
    stage = display.stage(work.sweep, costs, shares)
    with interrupted_by_sigterm(), Crew(store, work, launcher_of(launcher), places) as crew:
        while crew.is_at_work(run_ids):
            have_ended = sum(shares.values()) == len(run_ids)
            time.sleep(_LAST_POLL_SECONDS if have_ended else _POLL_SECONDS)
            if not store.has_plan(work.sweep):
                raise InputError(
                    f"{store.folder}: the plan of sweep={work.sweep} no longer exists; check "
                    "whether the folder was removed, then rerun to start again"
                )
            shares = store.progress(run_ids)
            stage.show(shares)
        stage.show(store.progress(run_ids))
    if left := len(run_ids) - len(store.ended(run_ids)):
        raise Unfinished(
            f"{left} of {len(run_ids)} runs have not ended, and no worker is left: see the lines "
            "above for the reason; the same command resumes"
        )


class Crew:
    """The workers of a sweep, one per place: replaced after a crash, ended with this process."""

    def __init__(
        self, store: RunStore, work: Work, launcher: Launcher, places: Sequence[Place]
    ) -> None:
        self._store, self._work = store, work
        self._launcher, self._places = launcher, places
        self._workers: list[_Worker] = []
        self._fruitless, self._left = 0, math.inf

    def _start(self, place: Place) -> "_Worker":
        name = uuid.uuid4().hex
        return _Worker(name, self._launcher.start(self._work, place, name))

    def __enter__(self) -> Self:
        for place in self._places:
            self._workers.append(self._start(place))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.ask_to_end()
        until = time.monotonic() + _SECONDS_TO_END
        for worker in self._workers:
            worker.process.end(until=until)
            self._store.give_back_runs_of(worker.name)

    def is_at_work(self, run_ids: Sequence[str]) -> bool:
        """Replace ended workers while runs are left, and return whether any worker has them.

        This may also be a worker of another command, or one that was started by hand.
        """
        for number, worker in enumerate(self._workers):
            # The run of a crashed worker has failed; another worker continues with the others.
            if worker.has_crashed and self._store.end_runs_of(worker.name, worker.why_ended):
                self._workers[number] = self._start(self._places[number])
        held = self._store.held(run_ids)
        if any(worker.process.exit_code is None for worker in self._workers):
            return True
        free = self._store.free(run_ids)
        if not free or any(worker.process.exit_code in _HOPELESS for worker in self._workers):
            return held
        # The workers that had these runs have died, or ours ended before they took any.
        self._fruitless = self._fruitless + 1 if len(free) >= self._left else 1
        self._left = len(free)
        if self._fruitless > _MOST_FRUITLESS:
            return held
        self._workers = [self._start(place) for place in self._places[: len(free)]]
        return True


class _Worker:
    """A started worker and its name in the store."""

    def __init__(self, name: str, process: Process) -> None:
        self.name, self.process = name, process

    @property
    def has_crashed(self) -> bool:
        """Whether it ended without finishing its work."""
        return self.process.exit_code not in (None, 0, *_HOPELESS)

    @property
    def why_ended(self) -> str:
        """Say how a crashed worker ended."""
        code = self.process.exit_code or 0
        if code < 0:
            names = {each.value: each.name for each in signal.Signals}
            name = names.get(-code, f"signal {-code}")
            return f"its worker process was ended by {name} (out of memory?)"
        return f"its worker process ended with exit code {code}"


def run_jobs(
    runs: Sequence[TrainedRun],
    work: Work,
    *,
    costs: Mapping[str, float],
    launcher: str,
    device: str,
    workers: int | None,
) -> None:
    """Let workers do a job on ended runs, and wait for all of them.

    A job writes its results into its own files, and skips what they already contain.
    """
    store = RunStore(work.folder)
    waiting = {run.spec.run_id: run.spec for run in runs}
    with Display() as display:
        while waiting:
            store.forget(waiting)
            store.plan(work.sweep, [[spec] for spec in waiting.values()], question="")
            places = launcher_of(launcher).places(workers, device, len(waiting))
            left = {run_id: costs[run_id] for run_id in waiting}
            run_workers(work, left, launcher=launcher, places=places, display=display)
            ended = store.ended(list(waiting))
            if failed := [run.record["message"] for run in ended if run.status == "failed"]:
                raise InputError("; ".join(dict.fromkeys(failed)))
            for run in ended:  # another command may have done it with other settings
                if run.record["settings"] == work.settings:
                    del waiting[run.spec.run_id]
