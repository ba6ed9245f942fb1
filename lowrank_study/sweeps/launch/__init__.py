"""Launchers: ways to start workers. Each is one file here, chosen by `launcher=NAME`.

A launcher is a module with four functions (`Launcher`):

    def prepare(): ...                        # use the time while data are checked
    def call(function, *arguments): ...       # call a function where torch is loaded
    def places(workers, device, jobs): ...    # where to run workers, at most one per job
    def start(work, place, name): ...         # start one worker, and return its `Process`

The crew (`sweeps/crew.py`) watches the workers, replaces crashed ones and ends them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar, cast

from lowrank_study.errors import InputError
from lowrank_study.sweeps.jobs import Work

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one worker runs."""

    cores: str
    """The cores to stay on, such as `0` or `2,3`; empty for any."""
    device: str
    """torch's name of a device, or `auto`."""


class Process(Protocol):
    """A worker that was started."""

    @property
    def exit_code(self) -> int | None:
        """Return None while it runs; a negative number is the signal that ended it."""

    def ask_to_end(self) -> None:
        """Ask it to give its runs back and end."""

    def end(self, *, until: float) -> None:
        """Wait for its end until a time of the monotonic clock; then kill it."""


class Launcher(Protocol):
    """A module of this package."""

    def prepare(self) -> None:
        """Use the time while the command checks its data; this may do nothing."""

    def call(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Return the result of a module's function that needs torch; raise its exception."""

    def places(self, workers: int | None, device: str, jobs: int) -> list[Place]:
        """Return the places of the workers; None takes as many workers as the device can use."""

    def start(self, work: Work, place: Place, name: str) -> Process:
        """Start a worker, which has a unique name in the store."""


def launcher_of(name: str) -> Launcher:
    """Return the launcher of that name."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    if name not in known:
        raise InputError(f"launcher={name!r}: valid are {', '.join(known)}")
    return cast(Launcher, importlib.import_module(f"{__name__}.{name}"))
