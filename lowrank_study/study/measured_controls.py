"""The controls of a sweep, measured and kept beside its other results.

    measure_controls(ControlsRequest(sweep="rank_sweep", ...))
    read_controls("rank_sweep", Path("results"))     # the table, or None

`results/controls/<sweep>.parquet` holds the table of `controls.py`. The run that is trained once
more is a file of its own beside it, so that this is done once.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.config import Fields
from lowrank_study.files import write_parquet
from lowrank_study.runs import RunStore
from lowrank_study.spec import FullFineTuning
from lowrank_study.study.controls import controls_of, rank_along_training
from lowrank_study.study.full_runs import chosen_of_sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlsRequest:
    """Of which sweep the controls are to be measured, and how."""

    sweep: str
    results: Path
    """Folder of the run store and of everything made from it."""
    device: str
    """`auto` (a GPU if there is one), or torch's name of a device."""
    shuffled: str
    """The sweep whose runs on shuffled labels are taken."""
    directions: int
    """Most leading directions of two updates that are compared."""
    along_training: bool
    """Whether a run of each task and model is trained once more, and measured meanwhile."""


def read_request(config: Mapping[str, Any]) -> ControlsRequest:
    """Read the settings of `conf/measure_controls.yaml`.

    Raises
    ------
    InputError
        A value that can't be, naming it and the valid ones.
    """
    fields = Fields("", config)
    sweep = fields.text("sweep")
    return ControlsRequest(
        sweep=sweep,
        results=Path(fields.text("results")).expanduser(),
        device=fields.text("device"),
        shuffled=fields.optional_text("shuffled") or sweep,
        directions=fields.integer("directions", at_least=1),
        along_training=fields.flag("along_training"),
    )


def measure_controls(request: ControlsRequest) -> pd.DataFrame:
    """Measure the controls of a sweep's full fine-tuning, keep and return their table.

    Raises
    ------
    InputError
        No such sweep, or no ended run of full fine-tuning in it.
    """
    chosen = chosen_of_sweep(request.sweep, request.results)
    store = RunStore(request.results / "runs")
    shuffled = [
        run
        for run in store.ended(store.sweep(request.shuffled))
        if run.spec.train.shuffle_labels
        and run.spec.train.read_test  # or its spectra were not measured
        and isinstance(run.spec.method, FullFineTuning)
        and run.status == "done"
    ]
    parts = []
    for runs in chosen:
        parts.append(
            controls_of(runs, shuffled, results=request.results, directions=request.directions)
        )
        if request.along_training:
            path = request.results / "controls" / f"training-{runs[0].spec.run_id}.parquet"
            if not path.is_file():
                write_parquet(path, rank_along_training(runs[0], device=request.device))
            parts.append(pd.read_parquet(path))
    table = pd.concat(parts, ignore_index=True)
    if shuffled and not (table["control"] == "shuffled_labels").any():
        warnings.warn(  # the other controls stand without it, and hours of training may be behind
            f"shuffled={request.shuffled}: its runs are left out, as they have other settings than "
            f"those of {request.sweep}, whose rate is "
            f"{chosen[0][0].spec.method.learning_rate:g}: train it at that method.learning_rate",
            stacklevel=2,
        )
    write_parquet(controls_file(request.sweep, request.results), table)
    return table


def controls_file(sweep: str, results: Path) -> Path:
    """Return where the controls of a sweep are kept."""
    return results / "controls" / f"{sweep}.parquet"


def read_controls(sweep: str, results: Path) -> pd.DataFrame | None:
    """Return the controls of a sweep, or None where they have not been measured."""
    path = controls_file(sweep, results)
    return pd.read_parquet(path) if path.is_file() else None
