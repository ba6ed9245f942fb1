"""The truncated updates of a sweep's full fine-tuning: evaluated and kept.

    truncate_sweep(read_request({"sweep": "rank_sweep", ...}))

A run's evaluations are one Parquet file, `results/truncation/<run_id>.parquet`, one row a cut
and test text. It is replaced as a whole after every evaluation, so that a stopped command goes
on with the next one.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

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
from lowrank_study.machine import cores_of_workers, end_with_parent, free_cores
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.sweeps.progress import SweepProgress
from lowrank_study.training.evaluate import Predictions
from lowrank_study.training.fit import torch_device


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateRequest:
    """Which updates of a sweep are to be truncated, and how."""

    sweep: str
    results: Path
    """Folder of the run store and of everything made from it."""
    device: str
    """`auto` (a GPU if there is one), or torch's name of a device."""
    workers: int | None
    """Processes that evaluate at the same time; `None` is one a core."""
    scopes: tuple[str, ...]
    """Of `SCOPES`."""
    ranks: tuple[int, ...] | None
    """Ranks kept in the scope `all`; `None` is 0, 1, 2, 4 … and the full one."""
    seeds_of_parts: int | None
    """Of how many seeds single layers and roles are evaluated; `None` is all."""

    def scopes_of(self, position: int) -> tuple[str, ...]:
        """Return the scopes of the run at this position in the order of seeds."""
        few = self.seeds_of_parts is not None and position >= self.seeds_of_parts
        return tuple(scope for scope in self.scopes if not (few and scope in ("layers", "roles")))


def read_request(config: Mapping[str, Any]) -> TruncateRequest:
    """Read the settings of `conf/truncate.yaml`.

    Raises
    ------
    InputError
        A value that can't be, naming it and the valid ones.
    """
    fields = Fields("", config)
    scopes = fields.names("scopes")
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise InputError(f"scopes={list(scopes)}: valid are {', '.join(SCOPES)}")
    ranks = fields.value("ranks")
    whole = isinstance(ranks, list) and all(type(rank) is int and rank >= 0 for rank in ranks)
    if ranks is not None and not whole:
        raise InputError(f"ranks={ranks!r}: a list of whole numbers from 0 on is needed, or null")
    return TruncateRequest(
        sweep=fields.text("sweep"),
        results=fields.path_of("results"),
        device=fields.text("device"),
        workers=fields.optional_integer("workers", at_least=1),
        scopes=scopes,
        ranks=None if ranks is None else tuple(ranks),
        seeds_of_parts=fields.optional_integer("seeds_of_parts", at_least=0),
    )


def truncate_sweep(request: TruncateRequest) -> list[TrainedRun]:
    """Evaluate the truncated updates of a sweep's full fine-tuning, and return its runs.

    Raises
    ------
    InputError
        No such sweep, no ended run of full fine-tuning, or a checkpoint that is not what its
        record says.
    """
    chosen = chosen_of_sweep(request.sweep, request.results)
    jobs = [
        (run, request.results, request.scopes_of(position), request.ranks, request.device)
        for runs in chosen
        for position, run in enumerate(runs)
    ]
    costs = {run.spec.run_id: float(len(scopes)) for run, _, scopes, _, _ in jobs}
    shares: dict[str, float] = {}
    on_cpu = torch_device(request.device).type == "cpu"
    count = min(request.workers or len(free_cores()), len(jobs)) if on_cpu else 1
    with SweepProgress(f"{request.sweep}: truncated", costs, shares) as progress:

        def ended(run_id: str) -> None:
            shares[run_id] = 1.0
            progress.show(shares)

        if count == 1:
            for job in jobs:
                ended(truncate_run(*job))
            return [job[0] for job in jobs]
        context = get_context("spawn")
        places: Any = context.Queue()
        for cores in cores_of_workers(count):
            places.put(cores)
        with ProcessPoolExecutor(count, context, _begin, (places, os.getpid())) as pool:
            try:
                for future in as_completed([pool.submit(truncate_run, *job) for job in jobs]):
                    ended(future.result())
            except BaseException:
                for process in active_children():  # files appear whole: none is damaged
                    process.terminate()
                pool.shutdown(cancel_futures=True)
                raise
    return [job[0] for job in jobs]


def _begin(places: Any, parent: int) -> None:
    """Keep a worker on its cores: one process per core is faster than one with two threads.

    It ends with its parent, which alone receives Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

    cores = places.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    threadpool_limits(len(cores))
    torch.set_num_threads(len(cores))


def truncate_run(
    run: TrainedRun,
    results: Path,
    scopes: Sequence[str],
    ranks: Sequence[int] | None,
    device: str,
) -> str:
    """Evaluate the cuts of a run that its file lacks, and return its id.

    A file that was made from another checkpoint of the run is replaced. The model without any
    truncation is evaluated first, and compared with the run's record.
    """
    path = truncation_file(results, run.spec.run_id)
    try:
        table = read_truncation(run, results)
    except InputError:
        table = None
    known = set() if table is None else set(_keys(table))
    with tuned_matrices(run) as (pairing, matrices):
        cuts = truncations_of(matrices, scopes=scopes, ranks=ranks)
        missing = [cut for cut in cuts if (cut.scope, cut.part, cut.kept_rank) not in known]
        if not missing:
            return run.spec.run_id
        model = TunedModel(run, pairing, device)
        updates = [decompose(pairing, matrix) for matrix in matrices]
    with threads_of(run):
        whole = model.predict()
        check_recorded(run, whole)
        for cut in missing:
            kept = [cut.kept(update) for update in updates]
            if all(k == update.matrix.side for k, update in zip(kept, updates, strict=True)):
                predictions = whole
            else:
                model.keep(updates, kept)
                predictions = model.predict()
            rows = _rows(cut, sum(kept), energy_kept(updates, kept), predictions)
            table = rows if table is None else pd.concat([table, rows], ignore_index=True)
            table.attrs["made_from"] = run.checkpoint_sha256
            write_parquet(path, table)
    return run.spec.run_id


def _rows(
    cut: Truncation, directions: int, energy: float, predictions: Predictions
) -> pd.DataFrame:
    count = len(predictions.labels)
    return pd.DataFrame(
        {
            "scope": cut.scope,
            "part": cut.part,
            "kept_rank": pd.array([cut.kept_rank] * count, dtype="Int64"),
            "kept_directions": directions,
            "energy_kept": energy,
            "example": np.arange(count),
            "label": predictions.labels,
            "predicted": predictions.predicted,
        }
    )


def _keys(table: pd.DataFrame) -> list[tuple[str, str, int | None]]:
    rows = table[TRUNCATION_KEY].drop_duplicates().itertuples(index=False, name=None)
    return [(scope, part, None if pd.isna(k) else int(k)) for scope, part, k in rows]
