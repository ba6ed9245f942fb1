"""The tables that a report is written from, checked once.

    study = checked(StudyTables(title="...", runs=runs, spectra=spectra, ...))

Tables that make no sense are refused here, so that no other module has to check them again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from lowrank_study.answers.columns import typed_table
from lowrank_study.answers.controls import CONTROL_COLUMNS
from lowrank_study.answers.curves import CURVE_COLUMNS
from lowrank_study.answers.forgetting import FORGETTING_COLUMNS
from lowrank_study.answers.functional_rank import TRUNCATION_COLUMNS
from lowrank_study.answers.rows import CONFIGURATION, TUNING
from lowrank_study.answers.sufficient_rank import COMPARISON_COLUMNS
from lowrank_study.answers.tables import RUN_COLUMNS, SINGULAR_VALUE_COLUMNS, SPECTRA_COLUMNS
from lowrank_study.answers.test_sets import SET_COLUMNS, SetScores
from lowrank_study.errors import InputError
from lowrank_study.runs.store import STATUSES
from lowrank_study.tasks.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTables:
    """Everything a report is written from."""

    title: str
    """what the study is called"""
    question: str
    """what it asks, in one sentence"""
    metric: Metric
    """what the score is: its name, unit and chance level"""
    runs: pd.DataFrame
    """one row a run, done or not; see `RUN_COLUMNS`"""
    spectra: pd.DataFrame
    """one row a weight matrix of a run: the ranks of its update; see `SPECTRA_COLUMNS`"""
    singular_values: pd.DataFrame
    """one row a singular value of an update; see `SINGULAR_VALUE_COLUMNS`"""
    comparison: pd.DataFrame
    """one row a rank that was tested against full fine-tuning; see `COMPARISON_COLUMNS`"""
    test_sets: tuple[SetScores, ...]
    """scores of each test set by each metric; empty without test sets and generated answers"""
    planned: int
    """how many runs the sweep planned; a report needs a row for each"""
    provenance: Mapping[str, object]
    """commit, versions, hashes, machine; may be nested"""
    rates: pd.DataFrame | None
    """one row a run that chose a learning rate, with the columns of `runs`"""
    truncation: pd.DataFrame | None
    """one row a run of full fine-tuning and truncation; see `TRUNCATION_COLUMNS`"""
    controls: pd.DataFrame | None
    """one row a matrix or pair under a control; see `CONTROL_COLUMNS`"""
    forgetting: pd.DataFrame | None
    """one row a configuration whose loss outside the task was measured; see `FORGETTING_COLUMNS`"""
    curves: pd.DataFrame | None
    """one row an evaluation of a run of a language model; see `CURVE_COLUMNS`"""
    left_out: tuple[str, ...]
    """everything in the runs' data, updates or plan that was not used, one sentence each"""


_FLOORS = dict.fromkeys(["mp_edge", "rounding_floor"], "real")
"""Columns that only figures need."""


def checked(study: StudyTables) -> StudyTables:
    """Return the study with sorted, typed tables; `rates` stays as `runs_table` gave it.

    Raises:
        InputError: A column is missing or has the wrong type, a status is unknown, a run appears
            twice, a score is outside its limits, two runs can't be told apart, no run is done, or
            a planned run has not ended.
    """
    runs = typed_table(study.runs, RUN_COLUMNS, "runs").sort_values("run_id", ignore_index=True)
    spectra = typed_table(study.spectra, {**SPECTRA_COLUMNS, **_FLOORS}, "spectra")
    values = typed_table(study.singular_values, SINGULAR_VALUE_COLUMNS, "singular values")
    comparison = typed_table(study.comparison, COMPARISON_COLUMNS, "comparison")
    _check_runs(runs, study.metric)
    _check_plan(len(runs), study.planned)
    truncation = _optional(study.truncation, TRUNCATION_COLUMNS, "truncation")
    curves = _optional(study.curves, CURVE_COLUMNS, "curves")
    tables = {
        "spectra": spectra,
        "singular values": values,
        "truncation": truncation,
        "curves": curves,
    }
    for name, frame in tables.items():
        if frame is None:
            continue
        strangers = sorted(set(frame["run_id"]) - set(runs["run_id"]))
        if strangers:
            raise InputError(
                f"the {name} table names run {strangers[0]!r}, which the runs table lacks: "
                "give tables of the same study"
            )
    return replace(
        study,
        runs=runs,
        spectra=spectra.sort_values(["run_id", "module"], ignore_index=True),
        singular_values=values.sort_values(["run_id", "module", "index"], ignore_index=True),
        comparison=comparison,
        test_sets=tuple(
            replace(each, table=typed_table(each.table, SET_COLUMNS, "test sets"))
            for each in study.test_sets
        ),
        truncation=truncation,
        controls=_optional(study.controls, CONTROL_COLUMNS, "controls"),
        forgetting=_optional(study.forgetting, FORGETTING_COLUMNS, "forgetting"),
        curves=curves,
    )


def _optional(
    frame: pd.DataFrame | None, columns: Mapping[str, str], name: str
) -> pd.DataFrame | None:
    """Return a typed table, or None for an absent or empty one."""
    return typed_table(frame, columns, name) if frame is not None and len(frame) else None


def _check_plan(ended: int, planned: int) -> None:
    """Refuse an unfinished study: late finishers are a biased sample."""
    if ended < planned:
        verb = "has" if planned - ended == 1 else "have"
        raise InputError(
            f"{planned - ended} of the {planned} planned runs {verb} not ended: a report needs "
            "every run done, diverged or failed; rerun experiments/train.py with the sweep's "
            "settings to resume"
        )
    if ended > planned:
        raise InputError(
            f"the runs table has {ended} runs, but {planned} were planned: give tables of the "
            "same study"
        )


def _check_runs(runs: pd.DataFrame, metric: Metric) -> None:
    unknown = sorted(set(runs["status"]) - set(STATUSES))
    if unknown:
        raise InputError(f"status {unknown[0]!r} is unknown: a run is one of {', '.join(STATUSES)}")
    twice = runs["run_id"][runs["run_id"].duplicated()]
    if len(twice):
        raise InputError(f"run {twice.iloc[0]!r} appears twice: a run has one row")
    limits = {
        "share": (0.0, 1.0, "a share between 0 and 1"),
        "score": (metric.lowest, metric.highest, metric.valid),
    }
    for column, kind in RUN_COLUMNS.items():
        if kind not in limits:
            continue
        lowest, highest, valid = limits[kind]
        wrong = runs[(runs[column] < lowest) | (runs[column] > highest)]
        if len(wrong):
            raise InputError(
                f"{column} of run {wrong['run_id'].iloc[0]!r} is "
                f"{wrong[column].iloc[0]:g}: give {valid}"
            )
    done = runs[runs["status"] == "done"]
    if not len(done):
        ended = runs["status"].value_counts()
        counts = ", ".join(f"{ended[each]} {each}" for each in STATUSES if each in ended)
        raise InputError(
            f"none of the {len(runs)} runs is done ({counts}): a report needs at least one "
            "done run; read the messages of the runs and rerun the sweep"
        )
    if not done["test_score"].notna().any():
        raise InputError(f"none of the {len(done)} done runs has a test score: evaluate them first")
    same = done[done.duplicated([*CONFIGURATION, *TUNING, "seed"], keep=False)]
    if len(same):
        first, second = list(same.sort_values([*CONFIGURATION, *TUNING, "seed"])["run_id"])[:2]
        raise InputError(
            f"runs {first!r} and {second!r} have the same task, model, method, target, rank, "
            "alpha, scaling, learning rate and seed, but differ in something else (data_seed, "
            "train_size): report them as two studies"
        )
