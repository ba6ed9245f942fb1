"""What fine-tuning forgets: the loss of a sweep's models on texts outside their task.

The texts are the test split of a language modelling task. Every model reads them in fp32, with its
adapter merged, as a user would load it. `results/forgetting/<run_id>.parquet` holds one row per
document; `base-<model>.parquet` holds those of the model before fine-tuning.

Losses are in bits per byte: Σ loss / Σ bytes over all documents. Shape suffixes: S seeds, E
documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn

from lowrank_study.answers.paired_scores import Configuration, configuration_of, is_reference
from lowrank_study.answers.statistics import MeanEstimate, paired_difference
from lowrank_study.answers.tables import read_table
from lowrank_study.config.fields import Fields
from lowrank_study.config.task import read_task
from lowrank_study.data.splits import Splits, load_splits
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.errors import InputError
from lowrank_study.files import write_parquet
from lowrank_study.loaded import model_folder, weights_sha256
from lowrank_study.results import forgetting_file, runs_folder
from lowrank_study.runs.leases import Lease
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import BaseModel
from lowrank_study.sweeps.crew import run_jobs
from lowrank_study.sweeps.jobs import Advance, Work, end_each
from lowrank_study.sweeps.settings import check_alike
from lowrank_study.tasks.language_modelling import LanguageModelling
from lowrank_study.training.batches import extreme_texts
from lowrank_study.training.evaluate import batch_tokens, predict
from lowrank_study.training.fit import torch_device
from lowrank_study.training.models import load_model, tuned_model
from lowrank_study.training.packing import Pack

FORGETTING_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target"], "text"),
    **dict.fromkeys(["adapter_rank", "n"], "whole"),
    "texts": "text",
    "documents": "whole",
    **dict.fromkeys(["base_bits_per_byte", "bits_per_byte"], "real"),
    **dict.fromkeys(["change", "change_low_95", "change_high_95"], "real"),
    **dict.fromkeys(["to_full", "to_full_low_95", "to_full_high_95"], "real"),
}
"""`change` is that to the model before fine-tuning, `to_full` the difference from full fine-tuning
of the same seeds."""
_COLUMNS = ["label", "loss", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingRequest:
    """Settings of `conf/measure_forgetting.yaml`."""

    sweep: str
    results: Path
    texts: LanguageModelling
    """The task whose test split is read."""
    task: Mapping[str, Any]
    """Its settings, as workers read them again."""
    device: str
    launcher: str
    workers: int | None
    """Number of processes; `None` is one per core."""


def read_request(config: Mapping[str, Any]) -> ForgettingRequest:
    """Read the settings of `conf/measure_forgetting.yaml`."""
    fields = Fields("", config)
    return ForgettingRequest(
        sweep=fields.text("sweep"),
        results=fields.path_of("results"),
        texts=_texts(config["task"]),
        task=config["task"],
        device=fields.text("device"),
        launcher=fields.text("launcher"),
        workers=fields.optional_integer("workers", at_least=1),
    )


def _texts(settings: Mapping[str, Any]) -> LanguageModelling:
    task = read_task(Fields("task", settings))
    if not isinstance(task, LanguageModelling):
        raise InputError(
            f"task={task.name}: forgetting is measured on whole texts: give task=grimm_tales, or "
            "your own as task=texts task.source=FILE"
        )
    return task


# ---------------------------------------------------------------- measured


def measure_forgetting(request: ForgettingRequest) -> list[TrainedRun]:
    """Measure the models of a sweep that have not been measured, and return its runs.

    Raises:
        InputError: There is no such sweep, or it has no done run of a language model.
        Unfinished: No worker is left, but some models were not measured.
    """
    store = RunStore(runs_folder(request.results))
    ended = store.ended(store.sweep(request.sweep))
    runs = [run for run in ended if run.status == "done" and run.spec.train.read_test]
    if not runs or not runs[0].spec.task.scores_tokens:
        raise InputError(
            f"sweep={request.sweep}: it has no done run of a language model; train one as "
            "docs/language_models.md describes"
        )
    check_alike(runs, sweep=request.sweep)
    for model in {run.spec.model.name: run.spec.model for run in runs}.values():
        _measure_base(model, request)
    work = Work(
        results=request.results,
        sweep=request.sweep,
        job=__name__,
        settings={"task": request.task},
    )
    run_jobs(
        runs,
        work,
        costs={run.spec.run_id: 1.0 for run in runs},
        launcher=request.launcher,
        device=request.device,
        workers=request.workers,
    )
    return runs


def run(leases: Sequence[Lease], work: Work, *, device: str, advance: Advance) -> None:
    """Measure the models of leased runs; workers call this."""
    store, texts = RunStore(runs_folder(work.results)), _texts(work.settings["task"])

    def measure(lease: Lease) -> None:
        trained = store.load(lease.run_id)
        splits = load_splits(texts, model_folder(trained.spec.model))
        path = forgetting_file(work.results, lease.run_id)
        made_from = {"weights": trained.checkpoint_sha256, "texts": splits.sha256}
        if _made_from(path) != made_from:
            trained.check_files("checkpoint/")
            model = tuned_model(trained.spec, trained.checkpoint)
            _write(path, model, trained.spec.model, texts, splits, device, made_from)
        advance(lease, 1.0)

    end_each(leases, work, measure)


def _measure_base(model: BaseModel, request: ForgettingRequest) -> None:
    folder = model_folder(model)
    splits = load_splits(request.texts, folder)
    path = forgetting_file(request.results, f"base-{model.name}")
    made_from = {"weights": weights_sha256(model, folder), "texts": splits.sha256}
    if _made_from(path) != made_from:
        base = load_model(LanguageModelling, folder, number_of_labels=0, dropout=None)
        _write(path, base, model, request.texts, splits, request.device, made_from)


def _made_from(path: Path) -> Any:
    try:
        return read_table(path, remedy="").attrs.get("made_from")
    except InputError:
        return None


def _write(
    path: Path,
    model: nn.Module,
    base: BaseModel,
    texts: LanguageModelling,
    splits: Splits,
    device: str,
    made_from: Mapping[str, str | None],
) -> None:
    """Read the texts in fp32, and write one row per document."""
    on = torch_device(device)
    model = model.to(on).requires_grad_(False)
    pack = Pack(
        [model],
        device=on,
        pad_id=padding_id(model_folder(base)),
        sample=extreme_texts((splits.test,), 8),
        reference=False,
    )
    predictions = predict(
        texts,
        partial(pack.scores_of, 0),
        splits.test,
        tokens=batch_tokens(model, precision="fp32", reference=False),
        device=on,
        precision="fp32",
    )
    table = pd.DataFrame({name: predictions.columns[name] for name in _COLUMNS})
    table.attrs.update(made_from=dict(made_from), texts=texts.name)
    write_parquet(path, table)


# ---------------------------------------------------------------- condensed


def forgetting_table(runs: Sequence[TrainedRun], results: Path) -> pd.DataFrame | None:
    """Return one row per configuration; None if its forgetting was not measured.

    Intervals cover seeds and documents (`paired_difference`). A run whose losses are missing, or
    are those of other texts than the base model's, is left out.

    Args:
        runs: Runs at one learning rate per configuration.
    """
    found: dict[Configuration, dict[int, npt.NDArray[np.float64]]] = {}
    bases: dict[str, pd.DataFrame] = {}
    for run in runs:
        path = forgetting_file(results, run.spec.run_id)
        base_path = forgetting_file(results, f"base-{run.spec.model.name}")
        if not (path.is_file() and base_path.is_file()):
            continue
        remedy = f"delete it and run analysis/measure_forgetting.py again for {run.spec.run_id}"
        rows, base = (read_table(each, remedy=remedy) for each in (path, base_path))
        same_texts = rows.attrs["made_from"]["texts"] == base.attrs["made_from"]["texts"]
        if same_texts and rows.attrs["made_from"]["weights"] == run.checkpoint_sha256:
            bases[run.spec.model.name] = base
            found.setdefault(configuration_of(run.spec), {})[run.spec.seed] = _bits(rows)
    full = {
        (run.spec.task.name, run.spec.model.name): configuration_of(run.spec)
        for run in runs
        if is_reference(run.spec)
    }
    made = [
        _row(key, scores, bases[key[1]], found.get(full[key[:2]], {}) if key[:2] in full else {})
        for key, scores in found.items()
    ]
    return pd.DataFrame(made, columns=list(FORGETTING_COLUMNS)) if made else None


def _bits(rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the bits per byte of each document."""
    return (rows["loss"] / (math.log(2) * rows["bytes"])).to_numpy(np.float64)


def _row(
    key: Configuration,
    scores: Mapping[int, npt.NDArray[np.float64]],
    base: pd.DataFrame,
    full: Mapping[int, npt.NDArray[np.float64]],
) -> dict[str, Any]:
    weights_E, base_E = base["bytes"].to_numpy(np.float64), _bits(base)
    scores_SE = np.stack([scores[seed] for seed in sorted(scores)])
    change = paired_difference(scores_SE - base_E, width=math.inf, weights_E=weights_E)
    shared = sorted(scores.keys() & full.keys())
    differences = [scores[seed] - full[seed] for seed in shared]
    to_full = None
    if differences and full is not scores:
        to_full = paired_difference(np.stack(differences), width=math.inf, weights_E=weights_E)
    level = float(np.average(base_E, weights=weights_E))
    return {
        **dict(zip(("task", "model", "method", "target"), key[:4], strict=True)),
        "adapter_rank": key[4] or None,
        "n": len(scores),
        "texts": base.attrs["texts"],
        "documents": len(base),
        "base_bits_per_byte": level,
        "bits_per_byte": level + change.mean,
        **_interval("change", change),
        **_interval("to_full", to_full),
    }


def _interval(name: str, estimate: MeanEstimate | None) -> dict[str, float]:
    low, high = estimate.interval() if estimate else (math.nan, math.nan)
    mean = estimate.mean if estimate else math.nan
    return {name: mean, f"{name}_low_95": low, f"{name}_high_95": high}
