"""The run store: which runs are planned, running and ended. It survives crashes and races.

Under the store's folder:

    <run_id>/                an ended run: spec.json, record.json, checkpoint/, predictions.parquet
    .planned/<run_id>.json   its specification, for the workers
    .planned/<run_id>.alone  train it by itself, because a worker died while training its pack
    .running/                the runs that workers have leased (`leases.py`)
    .sweeps/<name>.json      which runs a sweep consists of, how they are packed, their limits
    .sweeps/<name>.looks     when its ranks are tested, if seeds are added to it
    .aside/                  damaged runs, moved out of the way of a new attempt

An ended run appears by one rename of a complete folder, so a killed process leaves nothing that
looks finished. A path is never deleted by name if another process may have replaced it meanwhile.

    >>> store = RunStore(Path("results/runs"))
    >>> store.plan("ranks", [[spec]], question="Which rank is enough?")
    >>> with store.lease(store.sweep("ranks")) as lease:
    ...     lease.commit(status="done", record={...})
"""

import os
import sys
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowrank_study.errors import InputError
from lowrank_study.files import write_json
from lowrank_study.runs.ended import (
    STATUSES,
    DamagedRun,
    TrainedRun,
    json_in,
    read_run,
    spec_in,
    state_in,
)
from lowrank_study.runs.leases import Lease, LeaseLost, Leases, entries, take_away
from lowrank_study.runs.limits import Limits
from lowrank_study.spec import RunSpec, to_mapping

__all__ = ["STATUSES", "DamagedRun", "RunStore", "TrainedRun"]


class RunStore:
    """Plans, leases and ends runs in a folder, which several processes may share."""

    def __init__(self, folder: Path, *, worker: str | None = None) -> None:
        self.folder = folder
        self._planned = folder / ".planned"
        self._sweeps = folder / ".sweeps"
        self._aside, self._gone = folder / ".aside", folder / ".gone"
        self._leases = Leases(folder, worker=worker or uuid.uuid4().hex)
        self._printed: set[str] = set()

    def plan(
        self,
        sweep: str,
        packs: Iterable[Sequence[RunSpec]],
        *,
        question: str,
        limits: Mapping[str, Limits] = {},
    ) -> list[str]:
        """Plan the runs of a sweep that have not ended yet, and return all its run ids.

        The same specification twice is one run. A failed run is planned again; a diverged one
        has ended, since the same specification would diverge again. A damaged run is moved
        aside and planned again. Any number of processes may plan the same runs at once.

        Args:
            sweep: Name of the sweep. Other runs that were planned under this name before are no
                longer part of it.
            limits: Run id → limits above which the run is stopped. A run that other limits stopped
                is planned again.
        """
        packs = [list(pack) for pack in packs]
        by_id = {spec.run_id: spec for pack in packs for spec in pack}
        for folder in (self._planned, self._sweeps, self._aside):
            folder.mkdir(parents=True, exist_ok=True)
        self._leases.prepare()
        for run_id, spec in by_id.items():
            self._put_back(run_id, limits.get(run_id, {}))
            write_json(self._planned / f"{run_id}.json", to_mapping(spec))
            self._clear(run_id, limits.get(run_id, {}))
        packed = [[spec.run_id for spec in pack] for pack in packs]
        earlier = [run_id for run_id in self._ever_planned(sweep) if run_id not in by_id]
        write_json(
            self._sweeps / f"{sweep}.json",
            {"question": question, "packs": packed, "earlier": earlier, "limits": limits},
        )
        return list(by_id)

    def sweep(self, name: str) -> list[str]:
        """Return the run ids of a sweep, in the order they were planned."""
        return list(dict.fromkeys(run_id for pack in self.packs(name) for run_id in pack))

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that were planned here."""
        return sorted(path.stem for path in self._sweeps.glob("*.json"))

    def question(self, name: str) -> str:
        """Return what a sweep asks, in one sentence."""
        return str(self._read_sweep(name)["question"])

    def packs(self, name: str) -> list[list[str]]:
        """Return the run ids of a sweep by pack, as it was last planned."""
        packs: list[list[str]] = self._read_sweep(name)["packs"]
        return packs

    def limits(self, name: str) -> dict[str, Limits]:
        """Return the limits above which runs of a sweep are stopped, by run id."""
        found = self._read_sweep(name).get("limits", {})
        return {
            run_id: {int(step): loss for step, loss in limits.items()}
            for run_id, limits in found.items()
        }

    def earlier(self, name: str) -> list[str]:
        """Return the runs that were planned under a sweep's name and are no longer part of it."""
        return [str(run_id) for run_id in self._read_sweep(name).get("earlier", [])]

    def fix_looks(
        self, sweep: str, looks: Mapping[str, Any] | None, run_ids: Collection[str]
    ) -> None:
        """Write when the ranks of a sweep are tested, before these runs have scores.

        Args:
            sweep: Name of the sweep.
            looks: The plan, of JSON's types; None if all seeds are planned at once.
            run_ids: All runs that the sweep may have.

        Raises:
            InputError: Some of the runs were scored in this sweep under another plan.
        """
        path = self._sweeps / f"{sweep}.looks"
        if (earlier := self.looks(sweep)) == looks:
            return
        mine = [run_id for run_id in self._ever_planned(sweep) if run_id in run_ids]
        if scored := sum(run.status == "done" for run in self.ended(mine)):
            raise InputError(
                f"sweep={sweep} has {scored} run(s) with scores, and was planned with "
                f"{_in_words(earlier)}, not {_in_words(looks)}: a plan that changes after scores "
                "were seen has a higher error rate; keep the plan, or give another sweep=NAME and "
                "seeds without scores"
            )
        if looks is None:
            path.unlink(missing_ok=True)
        else:
            write_json(path, looks)

    def looks(self, name: str) -> dict[str, Any] | None:
        """Return when the ranks of a sweep are tested; None if all seeds are planned at once."""
        path = self._sweeps / f"{name}.looks"
        if not path.is_file():
            return None
        looks = json_in(path)
        if not isinstance(looks, dict) or not {"seeds", "spending"} <= looks.keys():
            raise InputError(f"{path} is damaged: restore it, or train under another sweep=NAME")
        return looks

    def has_plan(self, name: str) -> bool:
        """Return whether the sweep is planned; false if the folder was removed while it ran."""
        return (self._sweeps / f"{name}.json").is_file()

    def planned_spec(self, run_id: str) -> RunSpec | None:
        """Return the specification by which a run is planned; None if it is missing or damaged."""
        try:
            return spec_in(self._planned / f"{run_id}.json", run_id, remedy="")
        except DamagedRun:
            return None

    def lease(self, run_ids: Iterable[str]) -> Lease | None:
        """Lease the first of these runs that is free; None if no run is free.

        A run is free if it is planned, has not ended, and no worker that may be alive has it.
        """
        for run_id in run_ids:
            planned = self._planned / f"{run_id}.json"
            if self._is_over(run_id) or not planned.is_file():
                continue
            try:
                spec = spec_in(planned, run_id, remedy="plan its sweep again")
            except DamagedRun as error:
                self._tell(str(error))
                continue
            lease = self._leases.take(spec)
            if lease is None:
                continue
            if self._is_over(run_id):  # it ended between the first look and the lease
                lease.release()
                continue
            self._clear(run_id, {})
            return lease
        return None

    def lease_pack(self, packs: Sequence[Sequence[str]]) -> list[Lease]:
        """Lease the free runs of the first pack that has any; return [] if no run is free."""
        for pack in packs:
            alone = [run_id for run_id in pack if (self._planned / f"{run_id}.alone").exists()]
            for run_ids in ([r for r in pack if r not in alone], *([r] for r in alone)):
                if leases := [lease for run_id in run_ids if (lease := self.lease([run_id]))]:
                    return leases
        return []

    def forget(self, run_ids: Iterable[str]) -> None:
        """Delete ended runs, so that the next plan includes them again."""
        for run_id in run_ids:
            take_away(self.folder / run_id, self._gone)

    def load(self, run_id: str) -> TrainedRun:
        """Return an ended run.

        Raises:
            InputError: The run has not ended, or its record or specification is damaged or can't be
                read.
        """
        run = read_run(self.folder / run_id, run_id)
        if run is None:
            raise InputError(f"{self.folder / run_id}: no such run has ended; run its sweep")
        return run

    def ended(self, run_ids: Sequence[str]) -> list[TrainedRun]:
        """Return the runs that have ended, in the given order.

        Damaged runs count as not ended and are reported on standard error.
        """
        found = []
        for run_id in run_ids:
            try:
                run = read_run(self.folder / run_id, run_id)
            except DamagedRun as error:
                self._tell(str(error))
                continue
            if run is not None:
                found.append(run)
        return found

    def left(self, specs: Iterable[RunSpec], limits: Mapping[str, Limits] = {}) -> list[RunSpec]:
        """Return the runs that `plan` would plan, each once."""
        unique = {spec.run_id: spec for spec in specs}
        ended = {run.spec.run_id: run for run in self.ended(list(unique))}
        final = {name for name, run in ended.items() if run.is_final(limits.get(name, {}))}
        return [spec for run_id, spec in unique.items() if run_id not in final]

    def free(self, run_ids: Iterable[str]) -> list[str]:
        """Return the runs that have not ended and that no living worker has."""
        running = self._leases.run_ids()
        return [
            run_id
            for run_id in run_ids
            if not self._is_over(run_id) and not (run_id in running and self._leases.held(run_id))
        ]

    def held(self, run_ids: Iterable[str]) -> bool:
        """Return whether a worker on any machine has one of these runs and may be alive."""
        running = self._leases.run_ids()
        held = [self._leases.held(run_id) for run_id in run_ids if run_id in running]
        return any(held)  # look at all of them: silence is counted between looks

    def in_doubt(self, run_ids: Iterable[str]) -> bool:
        """Return whether one of these runs is held by a worker not yet seen alive."""
        running = self._leases.run_ids()
        doubts = [self._leases.in_doubt(run_id) for run_id in run_ids if run_id in running]
        return any(doubts)

    def progress(self, run_ids: Iterable[str]) -> dict[str, float]:
        """Return run id → share done of all runs that have ended or are running."""
        shares, running = {}, self._leases.run_ids()
        for run_id in run_ids:
            if (self.folder / run_id / "record.json").is_file():
                shares[run_id] = 1.0
            elif run_id in running and (share := self._leases.progress(run_id)) is not None:
                shares[run_id] = min(share, 0.999)
        return shares

    def end_runs_of(self, worker: str, reason: str) -> int:
        """End the run of a dead worker as failed, and return the number of its runs.

        Runs of a pack are given back instead and trained alone, because one of them may have been
        the cause.
        """
        run_ids = self.give_back_runs_of(worker)
        for run_id in run_ids:
            if len(run_ids) > 1:
                (self._planned / f"{run_id}.alone").touch()
            elif lease := self.lease([run_id]):
                with lease, suppress(LeaseLost):
                    lease.commit(status="failed", record={"message": reason})
        return len(run_ids)

    def give_back_runs_of(self, worker: str) -> list[str]:
        """Free the runs of a worker that was ended, and return them."""
        return self._leases.take_from(worker)

    def _ever_planned(self, name: str) -> list[str]:
        try:
            return [*self.sweep(name), *self.earlier(name)]
        except InputError:  # a new name, or a damaged file, which is about to be replaced
            return []

    def _read_sweep(self, name: str) -> dict[str, Any]:
        path = self._sweeps / f"{name}.json"
        if not path.is_file():
            known = self.sweeps()
            hint = f"planned sweeps: {', '.join(known)}" if known else "no sweep is planned there"
            raise InputError(f"no sweep {name!r} in {self.folder}: {hint}")
        planned = json_in(path)
        try:
            whole = all(type(run_id) is str for pack in planned["packs"] for run_id in pack)
            whole = whole and isinstance(planned["question"], str)
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise InputError(f"{path} is damaged: run the command that trained this sweep again")
        sweep: dict[str, Any] = planned
        return sweep

    def _is_over(self, run_id: str) -> bool:
        try:
            return read_run(self.folder / run_id, run_id) is not None
        except DamagedRun:
            return False

    def _clear(self, run_id: str, limits: Limits) -> None:
        """Make way for a new attempt: delete a run that is not final, move a damaged one aside.

        The folder is renamed before it is read; a run that another process has ended meanwhile goes
        back to its place.
        """
        folder = self.folder / run_id
        if state_in(folder, run_id, limits) == "final" or not entries(folder):
            return
        aside = self._aside / f"{run_id}.{uuid.uuid4().hex[:8]}"
        try:
            os.rename(folder, aside)
        except FileNotFoundError:  # another planner was first
            return
        match state_in(aside, run_id, limits):
            case "again":
                take_away(aside, self._gone)
            case "damaged" if aside.exists():  # another planner may have handled it
                self._tell(f"{folder} is damaged: moved to {aside}; the run is planned again")
            case _:
                self._put_back(run_id, limits)

    def _put_back(self, run_id: str, limits: Limits) -> None:
        """Finish what a killed planner left: restore final runs, delete those to train again."""
        for aside in self._aside.glob(f"{run_id}.*"):
            match state_in(aside, run_id, limits):
                case "again":
                    take_away(aside, self._gone)
                case "final":
                    with suppress(OSError):  # another one is in its place by now
                        os.rename(aside, self.folder / run_id)

    def _tell(self, message: str) -> None:
        if message not in self._printed:
            self._printed.add(message)
            print(message, file=sys.stderr)


def _in_words(looks: Mapping[str, Any] | None) -> str:
    if looks is None:
        return "all seeds at once"
    return f"stopping={{{', '.join(f'{name}: {value}' for name, value in looks.items())}}}"
