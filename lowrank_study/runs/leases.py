"""Leases: the right to write one run, which one worker at a time holds and keeps by heartbeats.

Files in the run store's folder:

    .running/<run_id>/<token>/lease.json   who holds the run, its progress, a count of heartbeats
    .running/<run_id>/<token>/run/         what the worker writes; becomes the ended run
    .gone/                                 folders taken away from workers, being deleted

A worker takes a run by renaming a complete folder onto `.running/<run_id>`, which succeeds only
while that is absent or empty. A takeover renames the worker's `<token>` folder away. A commit
renames its `run` folder to the run's place in the store. Each of these succeeds once. Every path
that a worker writes to contains its own token, so a worker that was stopped, lost its run and woke
up can't change another worker's files.

Clocks are never compared. A lease is stale when a watcher has seen the same heartbeat for
`STALE_SECONDS` of its own clock. A dead process is noticed at once if it ran under this kernel and
in this process namespace; equal host names do not prove that.

This relies on what POSIX and NFS promise: the rename of a folder is atomic, replaces an absent or
empty folder, and refuses any other. No file locks are needed. If NFS loses a reply and sends the
request again, a rename that succeeded reports a failure, so a failed rename is looked up.
"""

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from lowrank_study.files import flush_to_disk, write_json
from lowrank_study.hashing import sha256_of_file
from lowrank_study.machine import is_alive, process_space
from lowrank_study.spec import RunSpec, to_mapping

HEARTBEAT_SECONDS = 1.0
STALE_SECONDS = 120.0
_LONGEST_GAP = 5.0
"""Longest silence that is counted between two looks, because the watcher itself may have been
suspended."""
_LEASE_BYTES = 1024
"""Constant size of a lease; overwriting it in place works even on a full disk."""
_TAKEN = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
"""Errors of a rename if another worker was first."""


class LeaseLost(RuntimeError):
    """Another worker has taken the run over, or its folder was removed."""


class Lease:
    """The right to write one run, kept by a heartbeat until the run is committed or released."""

    def __init__(
        self, spec: RunSpec, holder: Path, *, owner: Mapping[str, Any], store: Path
    ) -> None:
        self.spec = spec
        self.run_id = spec.run_id
        self.folder = holder / "run"
        """Where the run is written; it becomes the ended run's folder."""
        self.progress = 0.0
        """Share of the run that is done, shown to watchers of the store."""
        self._holder, self._gone, self._ended = holder, store / ".gone", store / self.run_id
        self._owner, self._beats = owner, 0
        self._over, self._lost = threading.Event(), threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    @property
    def token(self) -> str:
        """The name of this attempt at the run, used once."""
        return self._holder.name

    def advance(self, progress: float) -> None:
        """Report the share of the run that is done."""
        self.progress = progress
        if self._lost.is_set():
            raise self._loss()

    def commit(self, *, status: str, record: Mapping[str, Any]) -> None:
        """End the run: its folder and record become visible at once.

        Only a done run keeps its checkpoint and predictions. The record gets their SHA-256.

        Raises:
            LeaseLost: The run was taken over or has ended; what this attempt wrote is removed.
            OSError: Writing failed, as on a full disk. The lease is still held.
        """
        if status != "done":
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
            (self.folder / "predictions.parquet").unlink(missing_ok=True)
        try:
            hashes = sha256_of_results(self.folder)
            made = {"status": status, "attempt": self.token, "sha256": hashes}
            write_json(self.folder / "record.json", {**record, **made})
            for file in self.folder.rglob("*"):
                if file.is_file():
                    flush_to_disk(file)
        except FileNotFoundError:
            raise self._loss() from None
        # Writing may have recreated the folder of a worker that was taken over. Only the folder
        # that came with the lease has a specification.
        if not (self.folder / "spec.json").is_file():
            raise self._loss()
        try:
            os.rename(self.folder, self._ended)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if _attempt(self._ended) != self.token:
                raise self._loss() from None
        flush_to_disk(self._ended.parent)
        self.release()

    def release(self) -> None:
        """Give the run back, and delete what was not committed."""
        self._over.set()
        self._heart.join()
        take_away(self._holder, self._gone)
        with suppress(OSError):  # another worker has the run by now, or it was removed
            self._holder.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._over.is_set():
            self.release()

    def _loss(self) -> LeaseLost:
        self.release()
        return LeaseLost(
            f"{self.run_id}: another worker has taken it over, or its folder was removed; "
            "this attempt is dropped"
        )

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            self._beats += 1
            try:
                # Not created: a lease that was taken away must not come back.
                with (self._holder / "lease.json").open("r+b") as file:
                    file.write(lease_text(self._owner, beats=self._beats, progress=self.progress))
            except FileNotFoundError:
                self._lost.set()
                return
            except OSError:  # a network error may pass: try again at the next beat
                continue


class Leases:
    """Takes, watches and takes over the leases of a run store."""

    def __init__(self, folder: Path, *, worker: str) -> None:
        self._store = folder
        self._running, self._gone = folder / ".running", folder / ".gone"
        self._worker = worker
        self._watched: dict[str, _Watch] = {}

    def prepare(self) -> None:
        """Create the folders, and remove what dead workers left behind."""
        self._running.mkdir(parents=True, exist_ok=True)
        self._gone.mkdir(exist_ok=True)
        for left in entries(self._gone):
            _delete(left)
        for slot in entries(self._running):
            if not slot.name.startswith("."):
                self._is_free(slot.name)
                with suppress(OSError):  # a worker has the run
                    slot.rmdir()
            elif not self._is_held(slot / slot.name[1:]):  # its maker died before it took the run
                take_away(slot, self._gone)

    def run_ids(self) -> set[str]:
        """Return the runs that a living or dead worker has and has not ended."""
        return {path.name for path in entries(self._running) if not path.name.startswith(".")}

    def take(self, spec: RunSpec) -> Lease | None:
        """Take a run that no living worker holds; None if one does."""
        for _ in range(3):  # the cleanup of another process may remove a folder not yet in place
            if not self._is_free(spec.run_id):
                return None
            with suppress(FileNotFoundError):
                return self._take(spec)
        return None

    def _take(self, spec: RunSpec) -> Lease | None:
        token = uuid.uuid4().hex
        made, slot = self._running / f".{token}", self._running / spec.run_id
        owner = {"worker": self._worker, "pid": os.getpid(), "space": process_space()}
        try:
            made.mkdir()
            (made / token).mkdir()
            (made / token / "lease.json").write_bytes(lease_text(owner, beats=0, progress=0.0))
            (made / token / "run").mkdir()
            write_json(made / token / "run" / "spec.json", to_mapping(spec))
            os.rename(made, slot)
        except OSError as error:
            if not (slot / token).is_dir():
                shutil.rmtree(made, ignore_errors=True)
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return None
                raise
        return Lease(spec, slot / token, owner=owner, store=self._store)

    def held(self, run_id: str) -> bool:
        """Return whether a worker that may be alive has the run."""
        return any(self._is_held(holder) for holder in entries(self._running / run_id))

    def in_doubt(self, run_id: str) -> bool:
        """Return whether a worker has the run whose heartbeat has not been seen to change yet."""
        return any(
            self._is_held(holder) and not self._watch(holder).has_beaten
            for holder in entries(self._running / run_id)
        )

    def progress(self, run_id: str) -> float | None:
        """Return the share of a run that is done; None if no worker has it."""
        for holder in entries(self._running / run_id):
            with suppress(OSError):
                share = _parsed((holder / "lease.json").read_bytes()).get("progress")
                return share if isinstance(share, float) else 0.0
        return None

    def take_from(self, worker: str) -> list[str]:
        """Take all runs from a dead worker, and return them."""
        return [
            run_id
            for run_id in sorted(self.run_ids())
            for holder in entries(self._running / run_id)
            if _owner(holder) == worker and take_away(holder, self._gone)
        ]

    def _is_free(self, run_id: str) -> bool:
        """Take a run from dead workers, and return whether it is free now."""
        holders = entries(self._running / run_id)
        taken = [not self._is_held(h) and take_away(h, self._gone) for h in holders]
        return all(taken)

    def _is_held(self, holder: Path) -> bool:
        try:
            text = (holder / "lease.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return False  # a holder appears together with its lease: this one is a left-over
        except OSError:
            return True  # a network error says nothing about the worker
        lease = _parsed(text)
        if lease.get("space") == process_space() is not None and not is_alive(lease["pid"]):
            return False
        return self._watch(holder).silence(text) < STALE_SECONDS

    def _watch(self, holder: Path) -> "_Watch":
        return self._watched.setdefault(holder.name, _Watch())


class _Watch:
    """Measures for how long a lease has not changed, by this process's own clock."""

    def __init__(self) -> None:
        self.has_beaten = False
        self._text: bytes | None = None
        self._silent = self._looked = 0.0

    def silence(self, text: bytes) -> float:
        """Look at a lease, and return for how many seconds it has been unchanged."""
        now = time.monotonic()
        if text == self._text:
            self._silent += min(now - self._looked, _LONGEST_GAP)
        else:
            self.has_beaten = self._text is not None
            self._text, self._silent = text, 0.0
        self._looked = now
        return self._silent


def lease_text(owner: Mapping[str, Any], *, beats: int, progress: float) -> bytes:
    """Return the content of a lease, padded to a constant size."""
    text = json.dumps({**owner, "beats": beats, "progress": progress})
    return text.encode().ljust(_LEASE_BYTES - 1) + b"\n"


def take_away(holder: Path, gone: Path) -> bool:
    """Delete a worker's folder, renaming it first; return whether this call did it."""
    aside = gone / uuid.uuid4().hex
    try:
        os.rename(holder, aside)
    except FileNotFoundError:
        return False
    _delete(aside)
    return True


def sha256_of_results(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each checkpoint and predictions file, by its relative path."""
    files = [*(folder / "checkpoint").rglob("*"), folder / "predictions.parquet"]
    return {
        file.relative_to(folder).as_posix(): sha256_of_file(file)
        for file in sorted(files)
        if file.is_file()
    }


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        lease = json.loads(text)
    except ValueError:  # damaged: its worker counts as alive while the file changes
        return {}
    return lease if isinstance(lease, dict) and isinstance(lease.get("pid"), int) else {}


def _owner(holder: Path) -> object:
    with suppress(OSError):
        return _parsed((holder / "lease.json").read_bytes()).get("worker")
    return None


def _attempt(ended: Path) -> object:
    try:
        return json.loads((ended / "record.json").read_bytes()).get("attempt")
    except (OSError, ValueError, AttributeError):
        return None
