"""Run the work in this process, in one worker: for debuggers, profilers and tests."""

from collections.abc import Callable

from lowrank_study.sweeps.jobs import Work
from lowrank_study.sweeps.launch import Arguments, Place, Result
from lowrank_study.sweeps.worker import do_work


class EndedWork:
    """A worker that has already ended."""

    exit_code = 0

    def ask_to_end(self) -> None:
        """Do nothing: it has ended."""

    def end(self, *, until: float) -> None:
        """Do nothing: it has ended."""


def prepare() -> None:
    """Do nothing: this process loads its libraries when it needs them."""


def call(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """Call a function here."""
    return function(*arguments, **named)


def places(workers: int | None, device: str, jobs: int) -> list[Place]:
    """Return one place."""
    return [Place(cores="", device=device)]


def start(work: Work, place: Place, name: str) -> EndedWork:
    """Do all the work that is free, and return when none is left."""
    do_work(work, device=place.device, name=name)
    return EndedWork()
