"""Measure the controls of a sweep and store them with its other results.

`results/controls/<sweep>.parquet` holds the table of `controls.py`. The runs on shuffled labels
are a separate sweep, `<sweep>_shuffled`. The measurements during training have a file of their
own. Neither is trained a second time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.answers.controls import RANKS, controls_of, rank_along_training
from lowrank_study.answers.full_runs import chosen_of_sweep
from lowrank_study.answers.tables import read_table
from lowrank_study.config.fields import Fields
from lowrank_study.errors import InputError
from lowrank_study.files import write_parquet
from lowrank_study.results import along_training_file, controls_file, runs_folder
from lowrank_study.runs.leases import Lease
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.sweeps.crew import run_jobs
from lowrank_study.sweeps.jobs import Advance, Work, end_each
from lowrank_study.sweeps.sweep import sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlsRequest:
    """Settings of `conf/measure_controls.yaml`."""

    sweep: str
    results: Path
    device: str
    launcher: str
    shuffled_seeds: int
    """Number of runs, in order of their seeds, that are also trained on shuffled labels."""
    directions: int
    """Largest number of leading directions to compare between two updates."""
    along_training: bool
    """Whether to train one run of each task and model again and measure it during training."""


def read_request(config: Mapping[str, Any]) -> ControlsRequest:
    """Read the settings of `conf/measure_controls.yaml`."""
    fields = Fields("", config)
    return ControlsRequest(
        sweep=fields.text("sweep"),
        results=fields.path_of("results"),
        device=fields.text("device"),
        launcher=fields.text("launcher"),
        shuffled_seeds=fields.integer("shuffled_seeds", at_least=0),
        directions=fields.integer("directions", at_least=1),
        along_training=fields.flag("along_training"),
    )


def measure_controls(request: ControlsRequest) -> pd.DataFrame:
    """Measure the controls of a sweep's full fine-tuning, store their table and return it."""
    chosen = chosen_of_sweep(request.sweep, request.results)
    shuffled = _on_shuffled_labels(chosen, request)
    along_training: dict[str, pd.DataFrame] = {}
    if request.along_training:
        along_training = _along_training([runs[0] for runs in chosen], request)
    parts = []
    for runs, on_shuffled in zip(chosen, shuffled, strict=True):
        parts.append(
            controls_of(runs, on_shuffled, results=request.results, directions=request.directions)
        )
        if request.along_training:
            parts.append(along_training[runs[0].spec.run_id])
    table = pd.concat(parts, ignore_index=True)
    table.attrs["made_from"] = _made_from([run for runs in (*chosen, *shuffled) for run in runs])
    write_parquet(controls_file(request.results, request.sweep), table)
    return table


def _along_training(
    runs: Sequence[TrainedRun], request: ControlsRequest
) -> dict[str, pd.DataFrame]:
    """Return the measurements of runs during training; workers make those that are missing."""
    if missing := [run for run in runs if _read_along_training(run, request.results) is None]:
        work = Work(results=request.results, sweep=request.sweep, job=__name__, settings={})
        run_jobs(
            missing,
            work,
            costs={run.spec.run_id: 1.0 for run in missing},
            launcher=request.launcher,
            device=request.device,
            workers=None,
        )
    tables = {run.spec.run_id: _read_along_training(run, request.results) for run in runs}
    return {run_id: table for run_id, table in tables.items() if table is not None}


def run(leases: Sequence[Lease], work: Work, *, device: str, advance: Advance) -> None:
    """Train leased runs again and store the measurements during training; workers call this."""
    store = RunStore(runs_folder(work.results))

    def train_again(lease: Lease) -> None:
        trained = store.load(lease.run_id)
        table = rank_along_training(trained, device=device, on_progress=partial(advance, lease))
        table.attrs["made_from"] = _made_from([trained])
        write_parquet(along_training_file(work.results, lease.run_id), table)

    end_each(leases, work, train_again)


def _read_along_training(run: TrainedRun, results: Path) -> pd.DataFrame | None:
    """Return the measurements of a run during training; None if its checkpoint has none."""
    path = along_training_file(results, run.spec.run_id)
    try:
        table = read_table(path, remedy="")
    except InputError:
        return None
    made_from = table.attrs.get("made_from", {run.spec.run_id: None})
    return table if made_from == _made_from([run]) else None


def _made_from(runs: Sequence[TrainedRun]) -> dict[str, str | None]:
    return {run.spec.run_id: run.checkpoint_sha256 for run in runs}


def _on_shuffled_labels(
    chosen: Sequence[Sequence[TrainedRun]], request: ControlsRequest
) -> list[list[TrainedRun]]:
    """Train some of the chosen runs again on shuffled labels and return those that are done."""
    wanted = [
        [
            replace(run.spec, train=replace(run.spec.train, shuffle_labels=True))
            for run in runs[: request.shuffled_seeds]
        ]
        for runs in chosen
    ]
    if not any(wanted):
        return [[] for _ in chosen]
    trained = sweep(
        [spec for specs in wanted for spec in specs],
        name=shuffled_sweep(request.sweep),
        results=request.results,
        question="What do the measures give for updates trained on shuffled labels?",
        device=request.device,
        launcher=request.launcher,
    )
    done = {run.spec.run_id: run for run in trained if run.status == "done"}
    return [[done[spec.run_id] for spec in specs if spec.run_id in done] for specs in wanted]


def shuffled_sweep(sweep: str) -> str:
    """Return the name of the sweep that repeats another one on shuffled labels."""
    return f"{sweep}_shuffled"


def read_controls(sweep: str, results: Path) -> pd.DataFrame | None:
    """Return the controls of a sweep, or None if they have not been measured."""
    path = controls_file(results, sweep)
    if not path.is_file():
        return None
    remedy = f"rerun analysis/measure_controls.py sweep={sweep}"
    table = read_table(path, remedy=remedy)
    older = dict.fromkeys(table["run_id"].dropna())  # files without hashes
    made_from = table.attrs.get("made_from", older)
    for run in RunStore(runs_folder(results)).ended(list(made_from)):
        if run.checkpoint_sha256 != made_from[run.spec.run_id]:
            raise InputError(
                f"{path} was made from an earlier checkpoint of {run.spec.run_id}: {remedy}"
            )
    # Files of earlier runs lack measures that were added since.
    return table.assign(**{name: math.nan for name in RANKS if name not in table})
