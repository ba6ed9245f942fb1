"""Read an ended run from the run store, and check its files against the recorded hashes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_study.errors import InputError
from lowrank_study.hashing import sha256_of_file
from lowrank_study.runs.limits import Limits, first_above
from lowrank_study.spec import RunSpec, from_mapping

STATUSES = ("done", "diverged", "stopped", "failed")


class DamagedRun(InputError):
    """An ended run whose record or specification can't be used; it counts as not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """An ended run of the store."""

    spec: RunSpec
    status: str
    """`done`, `diverged`, `stopped` early (a trial that was clearly behind) or `failed`."""
    record: Mapping[str, Any]
    """Metrics, parameters, seconds, memory and provenance; or the reason, if it is not done."""
    folder: Path

    def is_final(self, limits: Limits) -> bool:
        """Return whether the same specification and limits would end in the same way.

        A failed run is tried again. So is a trial that other limits stopped.
        """
        if self.status == "stopped":
            return first_above(self.record["curve"], limits) is not None
        return self.status != "failed"

    @property
    def checkpoint(self) -> Path:
        """Folder of the saved weights: a model, or an adapter in PEFT's layout."""
        return self.folder / "checkpoint"

    @property
    def checkpoint_sha256(self) -> str | None:
        """One SHA-256 over the names and hashes of the checkpoint's files.

        None for a run that is older than these hashes.
        """
        hashes = self._hashes("checkpoint/")
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest() if hashes else None

    def check_files(self, start: str) -> None:
        """Compare the run's files with the hashes that were recorded when it ended.

        Args:
            start: Start of the paths to check: `checkpoint/`, or a file's name. A run that is older
                than these hashes is not checked.

        Raises:
            InputError: A file is missing, can't be read, or differs from the one that the run
                wrote.
        """
        for path, recorded in self._hashes(start).items():
            file = self.folder / path
            remedy = f"remove the folder {self.folder} and run the sweep again"
            try:
                found = sha256_of_file(file)
            except OSError as error:
                raise InputError(f"{file} can't be read ({error.strerror}): {remedy}") from error
            if found != recorded:
                raise InputError(
                    f"{file} has changed since the run wrote it (SHA-256 {found[:12]}…, "
                    f"{recorded[:12]}… was recorded): {remedy}"
                )

    def _hashes(self, start: str) -> dict[str, str]:
        recorded = self.record.get("sha256", {})
        return {path: recorded[path] for path in sorted(recorded) if path.startswith(start)}


def read_run(folder: Path, run_id: str) -> TrainedRun | None:
    """Read an ended run from a folder; `None` if there is no record in it.

    Raises:
        DamagedRun: The folder does not hold that run's record and specification.
        InputError: A file can't be read.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    remedy = "run its sweep again, which moves it aside and trains the run again"
    try:
        record = json_in(path)
        whole = isinstance(record, dict) and record.get("status") in STATUSES
        if not whole or not isinstance(record.get("sha256", {}), dict):
            raise DamagedRun(f"{path} is damaged: {remedy}")
        spec = spec_in(folder / "spec.json", run_id, remedy=remedy)
    except DamagedRun:
        if not path.is_file():  # moved aside while it was read
            return None
        raise
    return TrainedRun(spec=spec, status=record["status"], record=record, folder=folder)


def state_in(folder: Path, run_id: str, limits: Limits) -> str:
    """Return whether the run in a folder is `final`, is to be trained `again`, or is `damaged`."""
    try:
        run = read_run(folder, run_id)
    except DamagedRun:
        return "damaged"
    if run is None:
        return "damaged"
    return "final" if run.is_final(limits) else "again"


def spec_in(path: Path, run_id: str, *, remedy: str) -> RunSpec:
    """Read a specification, and verify that the run's id was made from it.

    Raises:
        DamagedRun: The specification is missing or gives another id, as an older version may have
            written.
    """
    try:
        spec = from_mapping(json_in(path))
        name = spec.run_id
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DamagedRun(f"{path} is damaged: {remedy}") from None
    if name == run_id:
        return spec
    if name.rpartition("-")[2] == run_id.rpartition("-")[2]:  # the digests
        raise DamagedRun(
            f"{run_id} is not read: an older version trained it, under a name that other methods "
            f"shared; run its command again, which trains it as {name}"
        )
    raise DamagedRun(f"{path} is damaged: {remedy}")


def json_in(path: Path) -> Any:
    """Read JSON; return `None` if the file does not exist."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, FileNotFoundError):
        return None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
