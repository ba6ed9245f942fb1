"""Costs are medians, and ratios to full fine-tuning's."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lowrank_study.answers.scores import score_by_rank
from lowrank_study.reporting.sections import cost
from lowrank_study.reporting.sections.cost import cost_by_method
from lowrank_study.reporting.study import StudyTables
from lowrank_study.tasks.metric import ACCURACY
from tests.reporting.conftest import (
    data_of,
    said,
    without_spectra,
)

MakeStudy = Callable[..., StudyTables]
pytestmark = pytest.mark.usefixtures("undrawn")


def test_costs_are_ratios_of_medians(whole_study: StudyTables) -> None:
    runs = whole_study.runs
    table = cost_by_method(runs, score_by_rank(runs, ACCURACY))
    row = table[(table["target"] == "attention_qv") & (table["adapter_rank"] == 8)].iloc[0]
    mine = runs[(runs["target"] == "attention_qv") & (runs["adapter_rank"] == 8)]
    full = runs[runs["method"] == "full"]
    ratio = mine["train_seconds"].median() / full["train_seconds"].median()
    assert row["train_seconds_ratio"] == pytest.approx(ratio, rel=1e-12)
    assert row["trainable_parameters"] == 6 * 2 * 8 * 768 + 770


def test_costs_without_full_fine_tuning_have_no_ratio(make_study: MakeStudy) -> None:
    runs = make_study(ranks=(1,), full=False).runs
    table = cost_by_method(runs, score_by_rank(runs, ACCURACY))
    assert table["train_seconds_ratio"].isna().all()
    assert table["train_seconds"].notna().all()


@pytest.mark.parametrize(
    ("column", "words"),
    [("peak_memory_bytes", "peak memory"), ("train_seconds", "training time")],
)
def test_what_was_not_measured_is_said(small_study: StudyTables, column: str, words: str) -> None:
    runs = small_study.runs.assign(**{column: np.nan})
    study = replace(without_spectra(small_study), runs=runs)
    assert f"Not measured: {words}." in said(cost.section(data_of(study)))["Cost"]
