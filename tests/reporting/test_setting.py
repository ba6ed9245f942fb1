"""The tables of a setting say what the runs say."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lowrank_study.answers.scores import chosen_runs, score_by_rank
from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.reporting.study import StudyTables
from lowrank_study.tasks.metric import ACCURACY
from tests.reporting.conftest import data_of

MakeStudy = Callable[..., StudyTables]


def test_accuracy_is_that_of_the_done_runs(whole_study: StudyTables) -> None:
    table = score_by_rank(whole_study.runs, ACCURACY)
    runs = whole_study.runs
    row = table[(table["target"] == "all_linear") & (table["adapter_rank"] == 64)].iloc[0]
    mine = runs[(runs["target"] == "all_linear") & (runs["adapter_rank"] == 64)]
    done = mine.loc[mine["status"] == "done", "test_score"]
    assert (row["runs"], row["n"], row["diverged"], row["failed"]) == (3, 2, 1, 0)
    assert row["mean_test_score"] == pytest.approx(done.mean(), rel=1e-14)
    assert row["sd_test_score"] == pytest.approx(done.std(ddof=1), rel=1e-12)
    assert len(table) == 15
    assert table.iloc[0]["method"] == "full"


def test_one_seed_has_a_mean_but_no_spread(make_study: MakeStudy) -> None:
    table = score_by_rank(make_study(ranks=(1,), seeds=1).runs, ACCURACY)
    assert (table["n"] == 1).all()
    assert table["mean_test_score"].notna().all()
    assert table[["sd_test_score", "test_low_95", "test_high_95"]].isna().all(axis=None)


def two_rates(study: StudyTables, *, validation: float, test: float) -> pd.DataFrame:
    runs = study.runs
    other = runs.copy()
    other["run_id"] += "-other"
    other["learning_rate"] *= 3
    other["validation_score"] = validation
    other["test_score"] = test
    return pd.concat([runs, other], ignore_index=True)


def test_the_rate_is_chosen_by_validation_and_not_by_test(small_study: StudyTables) -> None:
    better = score_by_rank(two_rates(small_study, validation=0.99, test=0.1), ACCURACY)
    worse = score_by_rank(two_rates(small_study, validation=0.01, test=0.99), ACCURACY)
    assert (better.loc[better["chosen"], "mean_test_score"] < 0.11).all()
    assert (worse.loc[worse["chosen"], "mean_test_score"] < 0.9).all()
    assert better["chosen"].sum() == worse["chosen"].sum() == 3


def test_a_rate_that_diverged_is_chosen_only_for_want_of_another(small_study: StudyTables) -> None:
    runs = two_rates(small_study, validation=0.99, test=0.9)
    runs.loc[runs["run_id"].str.endswith("s0-other"), "status"] = "diverged"
    table = score_by_rank(runs, ACCURACY)
    assert (table.loc[table["chosen"], "diverged"] == 0).all()
    runs.loc[~runs["run_id"].str.endswith("other") & (runs["seed"] == 1), "status"] = "diverged"
    table = score_by_rank(runs, ACCURACY)
    assert (table.loc[table["chosen"], "mean_test_score"] > 0.89).all()


def test_lost_runs_stay_among_the_chosen(whole_study: StudyTables) -> None:
    chosen = chosen_runs(whole_study.runs, score_by_rank(whole_study.runs, ACCURACY))
    assert set(chosen["status"]) == {"done", "diverged", "failed"}
    assert len(chosen) == len(whole_study.runs)


def test_the_interval_is_students() -> None:
    values = np.array([0.70, 0.72, 0.75, 0.71])
    low, high = interval_of_mean(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, rel=1e-12)


def test_equal_seeds_give_an_interval_of_no_width_and_one_seed_none() -> None:
    assert interval_of_mean(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)
    assert all(math.isnan(edge) for edge in interval_of_mean(np.array([0.5])))


def test_the_best_row_follows_the_direction_of_the_metric(small_study: StudyTables) -> None:
    rows = [{"mean_test_score": 0.2}, {"mean_test_score": 0.9}]
    lower = replace(small_study, metric=replace(ACCURACY, higher_is_better=False))
    assert data_of(small_study).best(rows) == rows[1]
    assert data_of(lower).best(rows) == rows[0]
