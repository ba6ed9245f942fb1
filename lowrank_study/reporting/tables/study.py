"""What a report is written from, checked before anything is made of it.

    study = checked(StudyTables(title="...", runs=runs, spectra=spectra, ...))

Whoever makes the tables, what makes no sense is refused here, in one line,
so that nothing after this has to ask again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from lowrank_study.answers.columns import typed_table
from lowrank_study.answers.controls import CONTROL_COLUMNS
from lowrank_study.answers.functional_rank import TRUNCATION_COLUMNS
from lowrank_study.answers.rows import CONFIGURATION, TUNING
from lowrank_study.answers.sufficient_rank import COMPARISON_COLUMNS
from lowrank_study.answers.tables import RUN_COLUMNS, SINGULAR_VALUE_COLUMNS, SPECTRA_COLUMNS
from lowrank_study.errors import InputError
from lowrank_study.runs.store import STATUSES


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
