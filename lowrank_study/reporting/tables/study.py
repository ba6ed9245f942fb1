"""What a report is written from, checked before anything is made of it.

    study = checked(StudyTables(title="...", runs=runs, spectra=spectra, ...))

Whoever makes the tables, what makes no sense is refused here, in one line,
so that nothing after this has to ask again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.reporting.tables.rows import CONFIGURATION, TUNING
from lowrank_study.runs.store import STATUSES

RUN_COLUMNS = {
    **dict.fromkeys(["run_id", "task", "model", "method", "target", "status", "message"], "text"),
    **dict.fromkeys(["adapter_rank", "seed", "test_examples", "steps"], "whole"),
    **dict.fromkeys(["alpha", "learning_rate"], "real"),
    "scaling_rule": "text",
    **dict.fromkeys(["validation_score", "test_score", "test_macro_f1"], "share"),
    **dict.fromkeys(["train_score", "chance"], "share"),
    **dict.fromkeys(["validation_loss", "test_loss", "train_loss"], "real"),
    **dict.fromkeys(["trainable_parameters", "adapted_parameters", "total_parameters"], "whole"),
    **dict.fromkeys(["checkpoint_bytes", "peak_memory_bytes", "pack_size"], "whole"),
    **dict.fromkeys(["train_seconds", "evaluate_seconds", "examples_per_second"], "real"),
    "precision": "text",
}
SPECTRA_COLUMNS = {
    **dict.fromkeys(["run_id", "module", "role", "storage_dtype"], "text"),
    **dict.fromkeys(["layer", "out_features", "in_features"], "whole"),
    **dict.fromkeys(["frobenius_norm", "base_frobenius_norm", "relative_norm"], "real"),
    **dict.fromkeys(["numerical_rank", "stable_rank", "effective_rank"], "real"),
    **dict.fromkeys(["energy_rank_90", "energy_rank_95", "energy_rank_99"], "real"),
    **dict.fromkeys(["participation_ratio", "sigma1_over_sigma10", "mp_edge"], "real"),
    **dict.fromkeys(["rank_above_mp_edge", "gavish_donoho_rank", "rounding_floor"], "real"),
    "resolvable": "flag",
}
COMPARISON_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target", "decision"], "text"),
    **dict.fromkeys(["adapter_rank", "seeds", "lost", "examples"], "whole"),
    **dict.fromkeys(["margin", "difference", "standard_error", "degrees_of_freedom"], "real"),
    **dict.fromkeys(["score", "score_low_95", "score_high_95", "chance"], "share"),
    **dict.fromkeys(["low_95", "high_95", "lower_limit", "upper_limit"], "real"),
    **dict.fromkeys(["retention", "retention_low_95", "retention_high_95"], "real"),
    "retention_bounded": "flag",
}
SINGULAR_VALUE_COLUMNS = {
    **dict.fromkeys(["run_id", "module", "role"], "text"),
    **dict.fromkeys(["layer", "index"], "whole"),
    "singular_value": "real",
}
TRUNCATION_COLUMNS = {
    **dict.fromkeys(["run_id", "scope", "part"], "text"),
    **dict.fromkeys(["kept_rank", "kept_directions", "examples"], "whole"),
    **dict.fromkeys(["energy_kept", "test_score"], "real"),
}
CONTROL_COLUMNS = {
    **dict.fromkeys(["task", "model", "control", "run_id", "other_run_id"], "text"),
    **dict.fromkeys(["module", "role"], "text"),
    **dict.fromkeys(["step", "layer", "out_features", "in_features", "directions"], "whole"),
    "resolvable": "flag",
    **dict.fromkeys(["relative_norm", "energy_rank_90", "energy_rank_99"], "real"),
    **dict.fromkeys(["effective_rank", "stable_rank", "participation_ratio"], "real"),
    **dict.fromkeys(["gavish_donoho_rank", "similarity_right", "similarity_left"], "real"),
    **dict.fromkeys(["similarity_right_chance", "similarity_left_chance"], "real"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTables:
    """Everything a report is written from."""

    title: str
    """what the study is called"""
    question: str
    """what it asks, in one sentence"""
    runs: pd.DataFrame
    """one row a run, whatever became of it; see `RUN_COLUMNS`"""
    spectra: pd.DataFrame
    """one row a weight matrix of a run: the ranks of its update; see `SPECTRA_COLUMNS`"""
    singular_values: pd.DataFrame
    """one row a singular value of an update; see `SINGULAR_VALUE_COLUMNS`"""
    comparison: pd.DataFrame
    """one row a rank that was tested against full fine-tuning; see `COMPARISON_COLUMNS`"""
    planned: int
    """how many runs the sweep planned; a report needs a row for each"""
    provenance: Mapping[str, object]
    """commit, versions, hashes, machine; may be nested"""
    rates: pd.DataFrame | None = None
    """one row a run that chose a learning rate, with the columns of `runs`"""
    truncation: pd.DataFrame | None = None
    """one row a run of full fine-tuning and cut of its update; see `TRUNCATION_COLUMNS`"""
    controls: pd.DataFrame | None = None
    """one row a matrix or pair under a control; see `CONTROL_COLUMNS`"""
    left_out: tuple[str, ...] = ()
    """everything in the runs' data, updates or plan that was not used, one sentence each"""


def checked(study: StudyTables) -> StudyTables:
    """Give the study with sorted, typed tables, or say what is wrong with it.

    But for `rates`, which is as `runs_table` gave it.

    Raises:
        InputError: a column is missing or not of its type, a status is unknown, a run
            appears twice, an accuracy is not a share, two runs can't be told apart, no
            run is done, or a planned one has not ended.
    """
    runs = typed_table(study.runs, RUN_COLUMNS, "runs").sort_values("run_id", ignore_index=True)
    spectra = typed_table(study.spectra, SPECTRA_COLUMNS, "spectra")
    values = typed_table(study.singular_values, SINGULAR_VALUE_COLUMNS, "singular values")
    comparison = typed_table(study.comparison, COMPARISON_COLUMNS, "comparison")
    _check_runs(runs)
    _check_plan(len(runs), study.planned)
    truncation = _optional(study.truncation, TRUNCATION_COLUMNS, "truncation")
    tables = {"spectra": spectra, "singular values": values, "truncation": truncation}
    for name, frame in tables.items():
        if frame is None:
            continue
        strangers = sorted(set(frame["run_id"]) - set(runs["run_id"]))
        if strangers:
            raise InputError(
                f"the {name} table names run {strangers[0]!r}, which the runs table lacks: "
                f"give the tables of one and the same study"
            )
    return replace(
        study,
        runs=runs,
        spectra=spectra.sort_values(["run_id", "module"], ignore_index=True),
        singular_values=values.sort_values(["run_id", "module", "index"], ignore_index=True),
        comparison=comparison,
        truncation=truncation,
        controls=_optional(study.controls, CONTROL_COLUMNS, "controls"),
    )


def _optional(
    frame: pd.DataFrame | None, columns: Mapping[str, str], name: str
) -> pd.DataFrame | None:
    """Give a table that may be absent, or empty, which is the same."""
    return typed_table(frame, columns, name) if frame is not None and len(frame) else None


def typed_table(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    """Give a copy of a table with its columns in their kinds.

    Raises:
        InputError: a column is missing, or holds something else.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(
            f"the {name} table lacks the column(s) {', '.join(missing)}: it needs "
            f"{', '.join(columns)}"
        )
    table = frame.reset_index(drop=True).copy()
    for column, kind in columns.items():
        try:
            table[column] = _as_kind(table[column], kind)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the column {column} of the {name} table does not hold {_KINDS[kind]}: {error}"
            ) from error
    return table


_KINDS = {
    "text": "text",
    "whole": "whole numbers",
    "real": "numbers",
    "share": "numbers",
    "flag": "true or false",
}


def _as_kind(column: "pd.Series[Any]", kind: str) -> "pd.Series[Any]":
    match kind:
        case "text":
            return column.astype(object).where(column.notna(), None).map(_text).astype(object)
        case "whole":
            return pd.to_numeric(column).astype("Int64")
        case "flag":
            return column.astype("boolean").fillna(False).astype(bool)
        case _:
            return pd.to_numeric(column).astype("Float64").astype(float)


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)


def _check_plan(ended: int, planned: int) -> None:
    """Refuse a study that is not whole: those that end last are not like those that end first."""
    if ended < planned:
        verb = "has" if planned - ended == 1 else "have"
        raise InputError(
            f"{planned - ended} of the {planned} planned runs {verb} not ended: a report needs "
            f"every run done, diverged or failed; run experiments/train.py with the sweep's "
            f"settings again, which goes on with the rest"
        )
    if ended > planned:
        raise InputError(
            f"the runs table has {ended} runs, and {planned} were planned: give the tables of "
            f"one and the same study"
        )


def _check_runs(runs: pd.DataFrame) -> None:
    unknown = sorted(set(runs["status"]) - set(STATUSES))
    if unknown:
        raise InputError(f"status {unknown[0]!r} is unknown: a run is one of {', '.join(STATUSES)}")
    twice = runs["run_id"][runs["run_id"].duplicated()]
    if len(twice):
        raise InputError(f"run {twice.iloc[0]!r} appears twice: a run has one row")
    for column, kind in RUN_COLUMNS.items():
        if kind == "share":
            wrong = runs[(runs[column] < 0) | (runs[column] > 1)]
            if len(wrong):
                raise InputError(
                    f"{column} of run {wrong['run_id'].iloc[0]!r} is "
                    f"{wrong[column].iloc[0]:g}: give a share between 0 and 1"
                )
    done = runs[runs["status"] == "done"]
    if not len(done):
        counts = ", ".join(
            f"{(runs['status'] == status).sum()} {status}" for status in STATUSES[1:]
        )
        raise InputError(
            f"none of the {len(runs)} runs is done ({counts}): a report needs at least one "
            f"finished run; look at the messages of the runs and run the sweep again"
        )
    if not done["test_score"].notna().any():
        raise InputError(
            f"none of the {len(done)} done runs has a test accuracy: evaluate them first"
        )
    same = done[done.duplicated([*CONFIGURATION, *TUNING, "seed"], keep=False)]
    if len(same):
        first, second = list(same.sort_values([*CONFIGURATION, *TUNING, "seed"])["run_id"])[:2]
        raise InputError(
            f"runs {first!r} and {second!r} have the same task, model, method, target, rank, "
            f"alpha, scaling, learning rate and seed, and differ in something else (data_seed, "
            f"train_size): report them as two studies"
        )
