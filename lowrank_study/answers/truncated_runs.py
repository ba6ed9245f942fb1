"""Evaluate the truncated updates of a sweep's full fine-tuning and store the predictions.

The evaluations of a run are one file, `results/truncation/<run_id>.parquet`, with one row per
truncation and test example. The file is replaced as a whole after every evaluation, so an
interrupted command resumes with the next one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.answers.full_runs import chosen_of_sweep
from lowrank_study.answers.functional_rank import SCOPES, TRUNCATION_KEY, read_truncation
from lowrank_study.answers.truncation import (
    Truncation,
    TunedModel,
    check_recorded,
    decompose,
    energy_kept,
    threads_of,
    truncations_of,
    tuned_matrices,
)
from lowrank_study.config.fields import Fields
from lowrank_study.errors import InputError
from lowrank_study.files import write_parquet
from lowrank_study.results import runs_folder, truncation_file
from lowrank_study.runs.leases import Lease
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.sweeps.crew import run_jobs
from lowrank_study.sweeps.jobs import Advance, Work, end_each
from lowrank_study.tasks import Predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateRequest:
    """Settings of `conf/truncate.yaml`."""

    sweep: str
    results: Path
    device: str
    workers: int | None
    """Number of processes; `None` is one per core."""
    launcher: str
    scopes: tuple[str, ...]
    """Some of `SCOPES`."""
    ranks: tuple[int, ...] | None
    """Ranks of the scope `all`; `None` is 0, 1, 2, 4 … The full rank is always added."""
    seeds_of_parts: int | None
    """Number of seeds for which single layers and roles are evaluated; `None` is all."""

    def scopes_of(self, position: int) -> tuple[str, ...]:
        """Return the scopes for the run at this position in the order of seeds."""
        few = self.seeds_of_parts is not None and position >= self.seeds_of_parts
        return tuple(scope for scope in self.scopes if not (few and scope in ("layers", "roles")))


def read_request(config: Mapping[str, Any]) -> TruncateRequest:
    """Read the settings of `conf/truncate.yaml`."""
    fields = Fields("", config)
    scopes = fields.names("scopes")
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise InputError(f"scopes={list(scopes)}: give one or more of {', '.join(SCOPES)}")
    ranks = fields.value("ranks")
    whole = isinstance(ranks, list) and all(type(rank) is int and rank >= 0 for rank in ranks)
    if ranks is not None and not whole:
        raise InputError(f"ranks={ranks!r}: give a list of whole numbers from 0 on, or null")
    return TruncateRequest(
        sweep=fields.text("sweep"),
        results=fields.path_of("results"),
        device=fields.text("device"),
        workers=fields.optional_integer("workers", at_least=1),
        launcher=fields.text("launcher"),
        scopes=scopes,
        ranks=None if ranks is None else tuple(ranks),
        seeds_of_parts=fields.optional_integer("seeds_of_parts", at_least=0),
    )


def truncate_sweep(request: TruncateRequest) -> list[TrainedRun]:
    """Evaluate the truncated updates of a sweep's full fine-tuning, and return its runs.

    Raises:
        InputError: There is no such sweep, it has no ended run of full fine-tuning, or a checkpoint
            is not what its record says.
        Unfinished: No worker is left, but some evaluations are missing.
    """
    scopes = {
        run.spec.run_id: request.scopes_of(position)
        for runs in chosen_of_sweep(request.sweep, request.results)
        for position, run in enumerate(runs)
    }
    work = Work(
        results=request.results,
        sweep=request.sweep,
        job=__name__,
        settings={
            "scopes": {run_id: list(each) for run_id, each in scopes.items()},
            "ranks": None if request.ranks is None else list(request.ranks),
        },
    )
    runs = RunStore(runs_folder(request.results)).ended(list(scopes))
    run_jobs(
        runs,
        work,
        costs={run_id: float(len(each)) for run_id, each in scopes.items()},
        launcher=request.launcher,
        device=request.device,
        workers=request.workers,
    )
    return runs


def run(leases: Sequence[Lease], work: Work, *, device: str, advance: Advance) -> None:
    """Evaluate leased runs; workers call this."""
    store = RunStore(runs_folder(work.results))

    def truncate(lease: Lease) -> None:
        truncate_run(
            store.load(lease.run_id),
            work.results,
            work.settings["scopes"][lease.run_id],
            work.settings["ranks"],
            device,
            on_progress=partial(advance, lease),
        )

    end_each(leases, work, truncate)


def truncate_run(
    run: TrainedRun,
    results: Path,
    scopes: Sequence[str],
    ranks: Sequence[int] | None,
    device: str,
    *,
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Evaluate the truncations of a run that its file lacks.

    A file made from another checkpoint of the run is replaced. The model without truncation is
    evaluated first and compared with the run's record.
    """
    path = truncation_file(results, run.spec.run_id)
    try:
        table = read_truncation(run, results)
    except InputError:
        table = None
    known = set() if table is None else set(_keys(table))
    with tuned_matrices(run) as (pairing, matrices):
        wanted = truncations_of(matrices, scopes=scopes, ranks=ranks)
        missing = [one for one in wanted if (one.scope, one.part, one.kept_rank) not in known]
        if not missing:
            return
        model = TunedModel(run, pairing, device)
        updates = [decompose(pairing, matrix) for matrix in matrices]
    with threads_of(run):
        whole = model.predict()
        check_recorded(run, whole)
        for done, truncation in enumerate(missing):
            kept = [truncation.kept(update) for update in updates]
            if all(k == update.matrix.side for k, update in zip(kept, updates, strict=True)):
                predictions = whole
            else:
                model.keep(updates, kept)
                predictions = model.predict()
            rows = _rows(truncation, sum(kept), energy_kept(updates, kept), predictions)
            table = rows if table is None else pd.concat([table, rows], ignore_index=True)
            table.attrs["made_from"] = run.checkpoint_sha256
            write_parquet(path, table)
            on_progress((done + 1) / len(missing))


def _rows(
    truncation: Truncation, directions: int, energy: float, predictions: Predictions
) -> pd.DataFrame:
    count = len(predictions.labels)
    read = dict.fromkeys(["label", *predictions.task.score_columns])
    return pd.DataFrame(
        {
            "scope": truncation.scope,
            "part": truncation.part,
            "kept_rank": pd.array([truncation.kept_rank] * count, dtype="Int64"),
            "kept_directions": directions,
            "energy_kept": energy,
            "example": np.arange(count),
            **{name: predictions.columns[name] for name in read},
        }
    )


def _keys(table: pd.DataFrame) -> list[tuple[str, str, int | None]]:
    rows = table[TRUNCATION_KEY].drop_duplicates().itertuples(index=False, name=None)
    return [(scope, part, None if pd.isna(k) else int(k)) for scope, part, k in rows]
