"""The run store: which runs are planned, running and ended; safe against crashes and races.

Under the store's folder:

    <run_id>/             an ended run: spec.json, record.json, checkpoint/, predictions.parquet
    .planned/<run_id>.json   its specification, waiting for a worker; `.alone` beside it: never
                             to be packed again, as its pack's worker has died
    .running/<run_id>/       being written by the worker whose lease.json lies in it
    .sweeps/<name>.json      which run ids a sweep consists of, and how they are packed

An ended run appears by one rename of a complete folder, so nothing killed half-way looks
finished. A worker claims a run by creating its folder in `.running`, which only one can do;
the claim of a dead worker is taken over.

    >>> store = RunStore(Path("results/runs"))
    >>> store.plan("ranks", [[spec]], question="Which rank is enough?")
    >>> with store.claim(store.sweep("ranks")) as claim:
    ...     claim.commit(status="done", record={...})
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lowrank_study.errors import InputError
from lowrank_study.files import flush_to_disk, write_whole
from lowrank_study.spec import RunSpec, from_mapping, to_mapping

HEARTBEAT_SECONDS = 1.0
STALE_SECONDS = 120.0
STATUSES = ("done", "diverged", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """An ended run, as the store gives it."""

    spec: RunSpec
    status: str
    """`done`, `diverged` or `failed`."""
    record: Mapping[str, Any]
    """What was measured: metrics, parameters, seconds, memory, provenance, or the reason."""
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Folder of the saved weights: a model, or an adapter in PEFT's layout."""
        return self.folder / "checkpoint"


class RunStore:
    """Plans, claims and ends runs in one folder, for any number of processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._planned = folder / ".planned"
        self._running = folder / ".running"
        self._sweeps = folder / ".sweeps"
        self._takeover = FileLock(folder / ".takeover.lock")

    def plan(self, sweep: str, packs: Iterable[Sequence[RunSpec]], *, question: str) -> list[str]:
        """Plan the runs of a sweep that have not ended yet, and return all its run ids.

        The same specification twice is one run. A failed run is planned again; a diverged one
        has ended, since the same specification would diverge again.

        Parameters
        ----------
        sweep
            Its name.
        packs
            Its runs: those in one pack are best trained together.
        question
            What it asks, in one sentence.
        """
        packs = [list(pack) for pack in packs]
        by_id = {spec.run_id: spec for pack in packs for spec in pack}
        for folder in (self._planned, self._running, self._sweeps):
            folder.mkdir(parents=True, exist_ok=True)
        for run_id, spec in by_id.items():
            if self._ended(run_id) and self.load(run_id).status == "failed":
                shutil.rmtree(_moved_aside(self.folder / run_id))
            if not self._ended(run_id):
                write_json(self._planned / f"{run_id}.json", to_mapping(spec))
        packed = [[spec.run_id for spec in pack] for pack in packs]
        write_json(self._sweeps / f"{sweep}.json", {"question": question, "packs": packed})
        return list(by_id)

    def sweep(self, name: str) -> list[str]:
        """Return the run ids of a sweep, in the order they were planned.

        Raises
        ------
        InputError
            No sweep of that name was planned here.
        """
        return list(dict.fromkeys(run_id for pack in self.packs(name) for run_id in pack))

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that were planned here."""
        return sorted(path.stem for path in self._sweeps.glob("*.json"))

    def question(self, name: str) -> str:
        """Return what a sweep asks, in one sentence."""
        return str(self._read_sweep(name)["question"])

    def claim(self, run_ids: Iterable[str]) -> "Claim | None":
        """Claim the first of these runs that is free; `None` if none is."""
        for run_id in run_ids:
            if self._ended(run_id) or not (self._planned / f"{run_id}.json").is_file():
                continue
            folder = self._running / run_id
            if folder.is_dir() and _is_stale(folder):
                with self._takeover:  # or the second to see it takes over from the first
                    if _is_stale(folder):
                        shutil.rmtree(_moved_aside(folder), ignore_errors=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            if self._ended(run_id):  # between the first look and the claim
                folder.rmdir()
                continue
            return Claim(self, run_id, folder)
        return None

    def claim_pack(self, packs: Sequence[Sequence[str]]) -> "list[Claim]":
        """Claim what is free of the first pack that has free runs; [] if none has."""
        for pack in packs:
            alone = [run_id for run_id in pack if (self._planned / f"{run_id}.alone").exists()]
            for run_ids in ([r for r in pack if r not in alone], *([r] for r in alone)):
                if claims := [claim for run_id in run_ids if (claim := self.claim([run_id]))]:
                    return claims
        return []

    def planned_spec(self, run_id: str) -> RunSpec:
        """Return the specification of a planned run."""
        return from_mapping(json.loads((self._planned / f"{run_id}.json").read_text()))

    def load(self, run_id: str) -> TrainedRun:
        """Return an ended run."""
        folder = self.folder / run_id
        record = json.loads((folder / "record.json").read_text())
        spec = from_mapping(json.loads((folder / "spec.json").read_text()))
        return TrainedRun(spec=spec, status=record["status"], record=record, folder=folder)

    def ended(self, run_ids: Sequence[str]) -> list[TrainedRun]:
        """Return those of the runs that have ended, in the given order."""
        return [self.load(run_id) for run_id in run_ids if self._ended(run_id)]

    def left(self, specs: Iterable[RunSpec]) -> list[RunSpec]:
        """Return those of the runs that a sweep would train, each once: not ended, or failed."""
        unique = {spec.run_id: spec for spec in specs}
        over = {run.spec.run_id for run in self.ended(list(unique)) if run.status != "failed"}
        return [spec for run_id, spec in unique.items() if run_id not in over]

    def held(self, run_ids: Iterable[str]) -> bool:
        """Whether a living worker, of whatever machine, is at one of these runs."""
        folders = [self._running / run_id for run_id in run_ids]
        return any(folder.is_dir() and not _is_stale(folder) for folder in folders)

    def progress(self, run_ids: Iterable[str]) -> dict[str, float]:
        """Return for every ended or running one of the runs the share of it that is done."""
        shares = {}
        for run_id in run_ids:
            if self._ended(run_id):
                shares[run_id] = 1.0
            elif lease := _read_lease(self._running / run_id):
                shares[run_id] = min(float(lease["progress"]), 0.999)
        return shares

    def end_runs_of(self, pid: int, reason: str) -> int:
        """End as failed the run of a worker process of this host that has died.

        Runs of a pack are given back instead, each to be tried alone: only one of them may have
        been the cause, and it costs the others nothing.

        Returns
        -------
        How many runs that were.
        """
        held = [folder for folder in self._running.glob("*") if _is_held_by(folder, pid)]
        for folder in held:
            shutil.rmtree(_moved_aside(folder), ignore_errors=True)
            if len(held) > 1:
                (self._planned / f"{folder.name}.alone").touch()
            elif claim := self.claim([folder.name]):
                claim.commit(status="failed", record={"message": reason})
        return len(held)

    def packs(self, name: str) -> list[list[str]]:
        """Return the run ids of a sweep by pack, as it was last planned."""
        packs: list[list[str]] = self._read_sweep(name)["packs"]
        return packs

    def _read_sweep(self, name: str) -> dict[str, Any]:
        path = self._sweeps / f"{name}.json"
        if not path.is_file():
            known = self.sweeps() or ["none yet"]
            raise InputError(
                f"no sweep {name!r} in {self.folder}: planned ones are {', '.join(known)}"
            )
        planned: dict[str, Any] = json.loads(path.read_text())
        return planned

    def _ended(self, run_id: str) -> bool:
        return (self.folder / run_id / "record.json").is_file()


class Claim:
    """The right to write one run, kept alive by a heartbeat until it is committed or released."""

    def __init__(self, store: RunStore, run_id: str, folder: Path) -> None:
        self.run_id = run_id
        self.folder = folder
        self.spec = store.planned_spec(run_id)
        self.progress = 0.0
        """Share of the run that is done, shown to whoever watches the store."""
        self._store = store
        self._token = uuid.uuid4().hex
        self._over = threading.Event()
        self._write_lease()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def commit(self, *, status: str, record: Mapping[str, Any]) -> None:
        """End the run: everything in its folder, with its record, becomes visible at once.

        Raises
        ------
        RuntimeError
            The claim was lost to another worker, which took this one for dead.
        """
        assert status in STATUSES, status
        self._stop_heart()
        if not self._is_mine():
            raise RuntimeError(f"run {self.run_id}: the claim was lost, its result is dropped")
        if status != "done":
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        write_json(self.folder / "spec.json", to_mapping(self.spec))
        write_json(self.folder / "record.json", {"status": status, **record})
        for file in self.folder.rglob("*"):
            if file.is_file():
                flush_to_disk(file)
        (self.folder / "lease.json").unlink()
        os.rename(self.folder, self._store.folder / self.run_id)
        flush_to_disk(self._store.folder)
        for suffix in ("json", "alone"):
            (self._store._planned / f"{self.run_id}.{suffix}").unlink(missing_ok=True)

    def release(self) -> None:
        """Give the run back unfinished; what was written of it is removed."""
        self._stop_heart()
        if self._is_mine():
            shutil.rmtree(_moved_aside(self.folder), ignore_errors=True)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._over.is_set():
            self.release()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            if not self._is_mine():  # taken over by a worker that took this one for dead
                return
            with contextlib.suppress(OSError):  # the disk is full, say: commit will notice
                self._write_lease()

    def _is_mine(self) -> bool:
        lease = _read_lease(self.folder)
        return lease is not None and lease["token"] == self._token

    def _stop_heart(self) -> None:
        self._over.set()
        self._heart.join()

    def _write_lease(self) -> None:
        lease = {"pid": os.getpid(), "host": socket.gethostname(), "token": self._token}
        write_json(self.folder / "lease.json", {**lease, "progress": self.progress}, flush=False)


def write_json(path: Path, value: Any, *, flush: bool = True) -> None:
    """Write JSON so that a reader sees the old file or the whole new one."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_whole(path, text.encode(), flush=flush)


def _moved_aside(folder: Path) -> Path:
    """Rename a folder that is to go, so that it is gone at once for everybody else."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
    return aside


def _read_lease(folder: Path) -> dict[str, Any] | None:
    try:
        lease: dict[str, Any] = json.loads((folder / "lease.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return lease


def _is_held_by(folder: Path, pid: int) -> bool:
    lease = _read_lease(folder)
    return lease is not None and (lease["pid"], lease["host"]) == (pid, socket.gethostname())


def _is_stale(folder: Path) -> bool:
    """Whether the worker that holds a claim is dead, or has been silent for too long."""
    try:
        seen = (folder / "lease.json").stat().st_mtime
    except FileNotFoundError:
        try:
            seen = folder.stat().st_mtime  # claimed a moment ago, or killed before its lease
        except FileNotFoundError:
            return False
    lease = _read_lease(folder)
    if lease and lease["host"] == socket.gethostname() and not _is_alive(lease["pid"]):
        return True
    return time.time() - seen > STALE_SECONDS  # of a living process here: its pid is another's now


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
