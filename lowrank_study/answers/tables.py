"""Tidy tables of ended runs and their spectra: one row per run, matrix or singular value."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra.measures import shown_in
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.tables import singular_values_table, spectra_table
from lowrank_study.sweeps.measured_spectra import read_spectra

RUN_COLUMNS = {
    **dict.fromkeys(["run_id", "task", "model", "method", "target", "status", "message"], "text"),
    **dict.fromkeys(["adapter_rank", "seed", "test_examples", "steps"], "whole"),
    **dict.fromkeys(["alpha", "learning_rate"], "real"),
    "scaling_rule": "text",
    **dict.fromkeys(["validation_score", "test_score", "train_score", "chance"], "score"),
    "test_macro_f1": "share",
    **dict.fromkeys(["validation_loss", "test_loss", "train_loss"], "real"),
    **dict.fromkeys(["trainable_parameters", "adapted_parameters", "total_parameters"], "whole"),
    **dict.fromkeys(["checkpoint_bytes", "peak_memory_bytes", "pack_size"], "whole"),
    **dict.fromkeys(["train_seconds", "evaluate_seconds", "examples_per_second"], "real"),
    "precision": "text",
}
"""The columns of `runs_table` that a report needs."""
SPECTRA_COLUMNS = {
    **dict.fromkeys(["run_id", "module", "role", "storage_dtype"], "text"),
    **dict.fromkeys(["layer", "out_features", "in_features"], "whole"),
    "numerical_rank": "real",
    **{measure.name: "real" for measure in shown_in("sweep")},
    "resolvable": "flag",
}
SINGULAR_VALUE_COLUMNS = {
    **dict.fromkeys(["run_id", "module", "role"], "text"),
    **dict.fromkeys(["layer", "index"], "whole"),
    "singular_value": "real",
}

_RECORDED = (
    *("total_parameters", "checkpoint_bytes", "train_seconds", "evaluate_seconds"),
    *("examples_per_second", "peak_memory_bytes", "pack_size"),
)

Spectra = Mapping[str, Sequence[Spectrum]]
"""Spectra by run id."""


def read_table(path: Path, *, remedy: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a Parquet file."""
    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as a table: {remedy}") from error


def runs_table(runs: Sequence[TrainedRun]) -> pd.DataFrame:
    """Return one row per run, whatever its status; absent values are NA.

    Only full fine-tuning measures the base model, so `chance` and `base_bits` are the same for all
    runs of a setting where theirs are absent.
    """
    table = pd.DataFrame([_row(run) for run in runs])
    measured = ["chance", "base_bits"]
    of_setting = table.groupby(["task", "model"])[measured].transform("first")
    return table.fillna({name: of_setting[name] for name in measured})


def without_folders(message: str) -> str:
    """Shorten absolute paths to their last part, as tables are published and paths name people."""
    return re.sub(r"(?<![\w:/.])(?:/[^/\s'\"]+)+(?=/)", "…", message)


def _row(run: TrainedRun) -> dict[str, Any]:
    spec, record, method = run.spec, run.record, run.spec.method
    metric, lora = spec.task.metric, method.lora
    test, validation = record.get("test", {}), record.get("validation") or {}
    return {
        "run_id": spec.run_id,
        "task": spec.task.name,
        "model": spec.model.name,
        "method": method.label,
        "adapter_rank": method.adapter_rank,
        "target": method.target_label,
        "alpha": lora.alpha if lora else None,
        "scaling": lora.scaling if lora else None,
        "scaling_rule": lora.scaling_rule if lora else None,
        "learning_rate": method.learning_rate,
        "seed": spec.seed,
        "data_seed": spec.data_seed,
        "status": run.status,
        "message": without_folders(message) if (message := record.get("message")) else message,
        "validation_score": validation.get(metric.name),
        "validation_loss": validation.get("loss"),
        "test_score": test.get(metric.name),
        "test_macro_f1": test.get("macro_f1"),
        "test_loss": test.get("loss"),
        **{
            f"test_score_{name}": of_set.get(metric.name)
            for name, of_set in record.get("test_sets", {}).items()
        },
        **_answer_scores(run),
        "train_loss": record.get("train", {}).get("loss"),
        "train_score": record.get("train", {}).get(metric.name),
        "chance": metric.baseline_level(record),
        "base_bits": _base_bits(record),
        "test_examples": record.get("examples", {}).get("test"),
        "steps": record.get("steps"),
        "trainable_parameters": record.get("trainable_parameters"),
        "adapted_parameters": (record.get("adapter_parameters") or None) if lora else None,
        **{name: record.get(name) for name in _RECORDED},
        "precision": spec.train.precision,
    }


def _base_bits(record: Mapping[str, Any]) -> float | None:
    """Return the base model's loss in bits per test document."""
    tokens, base = record.get("predicted_tokens", {}).get("test"), record.get("base", {})
    if not tokens or "nats_per_token" not in base:
        return None
    whole: float = base["nats_per_token"] * tokens / math.log(2)
    return whole / int(record["examples"]["test"])


def _answer_scores(run: TrainedRun) -> dict[str, float | None]:
    """Return the mean scores of generated answers: of the test split, its sets, the base model."""
    if (scored := run.spec.task.second_scores) is None:
        return {}
    of = {"test": run.record.get("test", {}), "base": run.record.get("base", {})}
    of |= {f"test_{name}": found for name, found in run.record.get("test_sets", {}).items()}
    return {f"answer_score_{name}": found.get(scored.metric.name) for name, found in of.items()}


def spectra_tables(runs: Sequence[TrainedRun], results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the spectra of the runs (one row per matrix) and all their singular values."""
    spectra = _spectra(runs, results)
    return _rows(spectra, spectra_table), _rows(spectra, singular_values_table)


def ranks_table(runs: Sequence[TrainedRun], results: Path) -> pd.DataFrame:
    """Return the spectra of the runs, one row per matrix, without the singular values."""
    return _rows(_spectra(runs, results), spectra_table)


def _spectra(runs: Sequence[TrainedRun], results: Path) -> Spectra:
    found = {run.spec.run_id: read_spectra(run, results) for run in runs}
    return {run_id: spectra for run_id, spectra in found.items() if spectra is not None}


def _rows(
    spectra: Spectra, table: Callable[[str, Sequence[Spectrum]], pd.DataFrame]
) -> pd.DataFrame:
    tables = [table(run_id, measured) for run_id, measured in spectra.items()]
    return pd.concat(tables, ignore_index=True) if tables else table("", [])
