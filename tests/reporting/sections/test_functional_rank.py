"""Truncated updates: table, figure and sentences."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.functional_rank import score_by_kept_rank
from lowrank_study.reporting.sections import functional_rank
from lowrank_study.reporting.setting import SettingData, settings_data
from lowrank_study.reporting.study import StudyTables, checked
from tests.reporting.conftest import LOSS, data_of, said, truncation_of


@pytest.fixture
def data(thin_study: StudyTables) -> SettingData:
    return data_of(replace(thin_study, truncation=truncation_of(thin_study)))


def kept_ranks(data: SettingData) -> pd.DataFrame:
    return score_by_kept_rank(data.study.truncation, data.runs)


def text_of(data: SettingData) -> str:
    return " ".join(said(functional_rank.section(data)).values())


def test_cuts_are_condensed_over_seeds_in_their_order(data: SettingData) -> None:
    table = kept_ranks(data)
    assert table["scope"].tolist() == ["all"] * 5 + ["noise_cut"] + ["layers"] * 3 + ["roles"] * 2
    assert table["kept_rank"].dropna().tolist() == list(LOSS)
    assert table.loc[table["scope"] == "layers", "part"].tolist() == ["2", "10", "outside"]
    assert table.loc[table["scope"] == "roles", "part"].tolist() == ["query", "value"]
    assert table["n"].tolist() == [3] * 6 + [1] * 5
    of_all = table[table["scope"] == "all"]
    np.testing.assert_allclose(of_all["mean_difference"], [-loss for loss in LOSS.values()])
    # Every seed loses the same, so that nothing is left to spread.
    np.testing.assert_allclose(of_all["difference_low_95"], of_all["mean_difference"])
    full = data.scores[data.scores["method"] == "full"].iloc[0]
    assert of_all["mean_test_score"].iloc[-1] == pytest.approx(full["mean_test_score"])
    assert of_all["test_low_95"].iloc[-1] == pytest.approx(full["test_low_95"])


def test_a_truncation_that_was_stopped_shows_no_rank_of_few_seeds(
    thin_study: StudyTables,
) -> None:
    cuts = truncation_of(thin_study)
    last = cuts["run_id"].iloc[-1]
    stopped = cuts[(cuts["run_id"] != last) | (cuts["scope"] != "all") | (cuts["kept_rank"] != 4)]
    study = replace(thin_study, truncation=stopped.reset_index(drop=True))
    table = kept_ranks(settings_data(checked(study))[0])
    ranks = table.loc[table["scope"] == "all", "kept_rank"].tolist()
    assert ranks == [rank for rank in LOSS if rank != 4]


def test_the_figure_has_the_truncations_and_the_adapters(data: SettingData) -> None:
    section = functional_rank.section(data)
    assert section is not None
    [figure] = section.figures
    frame = figure.table.frame
    assert frame.loc[frame["method"] == "full", "scope"].tolist() == ["all"] * 5 + ["noise_cut"]
    assert frame.loc[frame["method"] == "lora", "adapter_rank"].tolist() == [1, 4]
    assert "k = 0: only head, biases and norms" in figure.wide
    assert "LoRA on attention_qv, trained" in figure.wide
    assert [table.name for table in section.tables] == ["score_by_kept_rank"]


@pytest.mark.usefixtures("undrawn")
def test_the_finding_gives_every_level(data: SettingData) -> None:
    text = text_of(data)
    full = data.scores[data.scores["method"] == "full"].iloc[0]["mean_test_score"]
    assert f"mean test accuracy of {full:.3f} (3 seeds)" in text
    assert f"ΔW truncated to rank 1 it has {full - 0.1:.3f}" in text
    assert f"the tuned head, biases and norms alone give {full - 0.2:.3f}" in text
    assert "From rank 16 on" in text
    assert "At rank 16 the mean is 0.1 percentage points below the same seeds’ whole update" in text
    assert "Training at rank 1 reaches" in text
    assert "They are 100 of 4,608 directions and hold 80" in text
    seed0 = truncation_of(data.study).query("scope == 'layers' and part == '10'")
    best = seed0["test_score"].iloc[0]
    assert f"layer 10 ({best:.3f}, 1 seed) and the role value (" in text


@pytest.mark.usefixtures("undrawn")
def test_a_mean_that_leaves_the_interval_again_is_no_threshold(thin_study: StudyTables) -> None:
    table = truncation_of(thin_study)
    table.loc[table["kept_rank"] == 16, "test_score"] -= 0.3
    table.loc[table["kept_rank"] == 4, "test_score"] += LOSS[4]
    [one] = settings_data(checked(replace(thin_study, truncation=table)))
    assert "Every mean below the full rank lies outside" in text_of(one)


@pytest.mark.usefixtures("undrawn")
def test_one_seed_is_not_compared(thin_study: StudyTables) -> None:
    table = truncation_of(thin_study, seeds=1)
    [one] = settings_data(checked(replace(thin_study, truncation=table)))
    assert "With one seed there is no interval" in text_of(one)
