"""Jobs: what workers do with the runs that they lease. Training is one, truncation another.

A job is a module with a function `run`, which ends every lease that it gets:

    def run(leases, work, *, device, advance):
        end_each(leases, work, lambda lease: ...)

Workers import it by its name, so any layer above this one can add jobs.
"""

import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lowrank_study.errors import InputError
from lowrank_study.files import os_error_message
from lowrank_study.results import jobs_folder, runs_folder
from lowrank_study.runs.leases import Lease, LeaseLost

TRAINING = "lowrank_study.sweeps.training_job"

Advance = Callable[[Lease, float], None]
"""Report the share of a run that is done; it raises if the worker has to stop."""


class Job(Protocol):
    """A module with a job."""

    def run(self, leases: Sequence[Lease], work: "Work", *, device: str, advance: Advance) -> None:
        """Do the job for runs that were leased together, and end every lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work that the workers of one command share: a job for each run of a sweep."""

    results: Path
    """Folder of the run store and of everything made from it."""
    sweep: str
    """Name under which the runs are planned in the store of the job."""
    job: str
    """Name of the job's module."""
    settings: Mapping[str, Any]
    """The job's own settings, of JSON's types."""

    @property
    def folder(self) -> Path:
        """Folder of the store in which the runs are planned, leased and ended."""
        if self.job == TRAINING:
            return runs_folder(self.results)
        return jobs_folder(self.results, self.job.rpartition(".")[2])

    def command(self, device: str, name: str) -> list[str]:
        """Return the command that starts a worker of that name in the store."""
        return [sys.executable, "-m", "lowrank_study.sweeps.worker", *self.arguments(device, name)]

    def arguments(self, device: str, name: str) -> list[str]:
        """Return the arguments of that command."""
        where = str(self.results.absolute())  # a relative path may begin with a dash
        found = ["--results", where, "--sweep", self.sweep, "--device", device, "--name", name]
        return [*found, "--job", self.job, "--settings", json.dumps(self.settings)]


def end_each(leases: Sequence[Lease], work: Work, do: Callable[[Lease], object]) -> None:
    """Do something for each leased run, and end its lease as done, or failed with the reason."""
    for lease in leases:
        try:
            do(lease)
        except Exception as error:
            end(lease, error)
        else:
            end(lease, {"settings": work.settings})


def end(lease: Lease, outcome: Mapping[str, Any] | Exception, *, status: str = "done") -> None:
    """Commit a leased run with its record, or as failed with the reason."""
    try:
        if isinstance(outcome, LeaseLost):
            raise outcome
        if isinstance(outcome, Exception):
            lease.commit(status="failed", record={"message": _reason(outcome)})
        else:
            lease.commit(status=status, record=outcome)
    except LeaseLost as lost:
        print(lost, file=sys.stderr)
    except Exception as error:
        if isinstance(outcome, Exception):
            raise
        end(lease, error)  # a failed run keeps no checkpoint, which makes room on a full disk


def _reason(error: Exception) -> str:
    """Return why a run failed; for a defect, also print the traceback to standard error."""
    if isinstance(error, InputError):
        return str(error)
    if message := os_error_message(error):
        return message
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"[:500]
