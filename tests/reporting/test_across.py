"""The part of a report that compares tasks at different distances from pretraining."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.reporting.across import across_tasks, distances
from lowrank_study.reporting.composition import compose
from lowrank_study.reporting.report import write_composed
from lowrank_study.reporting.setting import settings_data
from lowrank_study.reporting.study import StudyTables, checked
from tests.reporting.conftest import compared, said

BITS = {"gsm_eng": 200.0, "gsm_fra": 390.0, "gsm_swh": 610.0}
"""Bits of the base model for a document of each task."""


@pytest.fixture
def study(make_study: Callable[..., StudyTables]) -> StudyTables:
    """Return a study in which rank 8 is needed for one task and rank 1 for the others."""
    made = make_study(ranks=(1, 8), targets=("attention_qv",), tasks=tuple(BITS), losses=False)
    parts = []
    for task in BITS:
        decisions = {1: "i" if task == "gsm_swh" else "s", 8: "s"}
        parts.append(compared(made, decisions).comparison.assign(task=task))
    runs = made.runs.assign(base_bits=made.runs["task"].map(BITS))
    return replace(made, runs=runs, comparison=pd.concat(parts, ignore_index=True))


def test_tasks_come_in_the_order_of_their_distance(study: StudyTables) -> None:
    table = distances(settings_data(checked(study)))
    assert table is not None
    assert table["task"].drop_duplicates().tolist() == ["gsm_eng", "gsm_fra", "gsm_swh"]
    assert table["distance"].drop_duplicates().tolist() == pytest.approx([1.0, 1.95, 3.05])
    assert len(table) == 6


def test_the_ranks_that_suffice_are_told_in_that_order(study: StudyTables) -> None:
    told = said(across_tasks(settings_data(checked(study))))
    assert told["Distance"] == (
        "The base model needs 200 bits for a document of gsm_eng. It needs 1.95 times as many for "
        "gsm_fra and 3.05 times as many for gsm_swh."
    )
    assert told["LoRA on attention_qv"] == (
        "The lowest rank that is shown to suffice is rank 1 for gsm_eng, rank 1 for gsm_fra and "
        "rank 8 for gsm_swh."
    )
    assert told["LoRA on attention_qv at rank 8"].startswith("It keeps ")


def test_it_begins_the_report(study: StudyTables, tmp_path: Path) -> None:
    report = compose(study)
    assert report.parts[0].title == "Across tasks"
    assert len(report.parts[0].answer) == 2
    page = write_composed(report, tmp_path).read_text()
    assert page.index("Across tasks") < page.index("gsm_eng on")
    assert (tmp_path / "figures" / "across_tasks.svg").is_file()


def test_few_tasks_and_tasks_without_a_base_model_have_no_such_part(study: StudyTables) -> None:
    without = replace(study, runs=study.runs.drop(columns="base_bits"))
    assert across_tasks(settings_data(checked(without))) is None
    settings = settings_data(checked(study))
    assert across_tasks(settings[:2]) is None
