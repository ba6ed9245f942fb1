"""A study whose tables make no sense is refused in one line."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.errors import InputError
from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.study import StudyTables, checked
from tests.reporting.conftest import (
    truncation_of,
)


def with_runs(study: StudyTables, **columns: object) -> StudyTables:
    return replace(study, runs=study.runs.assign(**columns))


def test_a_study_without_a_finished_run_is_refused(small_study: StudyTables) -> None:
    with pytest.raises(InputError, match=r"none of the 9 runs is done \(9 diverged\)"):
        checked(with_runs(small_study, status="diverged"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"status": "running"}, "status 'running' is unknown: a run is one of done"),
        ({"run_id": "same"}, "run 'same' appears twice"),
        ({"test_score": 78.2}, "is 78.2: give a share between 0 and 1"),
        ({"test_score": math.nan}, "none of the 9 done runs has a test score"),
        ({"seed": 0}, "have the same task, model, method, target, rank, alpha"),
        ({"seed": "x"}, "the column seed of the runs table does not hold whole numbers"),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    small_study: StudyTables, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        checked(with_runs(small_study, **columns))


def test_a_missing_column_is_named(small_study: StudyTables) -> None:
    with pytest.raises(InputError, match=r"the spectra table lacks the column\(s\) stable_rank"):
        checked(replace(small_study, spectra=small_study.spectra.drop(columns="stable_rank")))


def test_spectra_of_a_stranger_are_refused(small_study: StudyTables) -> None:
    spectra = small_study.spectra.assign(run_id="stranger")
    with pytest.raises(InputError, match="names run 'stranger', which the runs table lacks"):
        checked(replace(small_study, spectra=spectra))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("run_id", "stranger", "names run 'stranger'"), ("kept_rank", "many", "whole numbers")],
)
def test_a_table_that_makes_no_sense_is_refused(
    thin_study: StudyTables, column: str, value: str, words: str
) -> None:
    table: Callable[..., pd.DataFrame] = truncation_of(thin_study).astype(object).assign
    with pytest.raises(InputError, match=words):
        checked(replace(thin_study, truncation=table(**{column: value})))


@pytest.mark.parametrize(
    ("planned", "words"),
    [
        (11, "2 of the 11 planned runs have not ended: .*rerun experiments/train.py .* to resume"),
        (8, "has 9 runs, but 8 were planned"),
    ],
)
def test_a_report_needs_every_planned_run(
    thin_study: StudyTables, tmp_path: Path, planned: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        write_report(replace(thin_study, planned=planned), tmp_path / "report")
    assert not (tmp_path / "report").exists()
