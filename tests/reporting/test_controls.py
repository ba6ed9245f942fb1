"""Truncated updates and controls in a report: tables, figures, sentences."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.controls import CONTROL_COLUMNS
from lowrank_study.answers.functional_rank import TRUNCATION_COLUMNS, score_by_kept_rank
from lowrank_study.errors import InputError
from lowrank_study.reporting.figures import drawing, functional_rank, rank_along_training
from lowrank_study.reporting.findings import findings
from lowrank_study.reporting.shown_tables import tables_of_setting
from lowrank_study.reporting.tables import SettingData, StudyTables, checked, settings_data
from lowrank_study.reporting.tables.controls import (
    control_overlap,
    control_ranks,
    training_ranks,
)

LOSS = {0: 0.20, 1: 0.10, 4: 0.05, 16: 0.001, 384: 0.0}
"""Kept rank → what is lost of the run's accuracy."""


@pytest.fixture(scope="module", autouse=True)
def without_pdf() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "pdf_of", lambda canvas: b"")
        yield


def truncation_of(study: StudyTables, *, seeds: int = 3) -> pd.DataFrame:
    """Make up the truncated updates of a study's full fine-tuning."""
    rows: list[tuple[object, ...]] = []
    full = study.runs[(study.runs["method"] == "full") & (study.runs["seed"] < seeds)]
    for run_id, accuracy in zip(full["run_id"], full["test_score"], strict=True):
        cuts = [("all", "", k, 12 * k, k / 384, loss) for k, loss in LOSS.items()]
        cuts.append(("noise_cut", "", None, 100, 0.8, 0.01))
        if run_id.endswith("s0"):
            cuts += [("layers", part, None, 300, 0.2, loss) for part, loss in
                     (("outside", 0.15), ("10", 0.11), ("2", 0.12))]  # fmt: skip
            cuts += [("roles", part, None, 300, 0.2, loss) for part, loss in
                     (("value", 0.06), ("query", 0.07))]  # fmt: skip
        rows += [(run_id, *cut[:5], accuracy - cut[5], 1000) for cut in cuts]
    return pd.DataFrame(rows, columns=list(TRUNCATION_COLUMNS)).astype({"kept_rank": "Int64"})


def controls_of(study: StudyTables) -> pd.DataFrame:
    """Make up the controls of a study: ranks 10 for training, 190 for noise, and so on."""
    run_id = study.runs["run_id"].iloc[0]
    base = {"task": study.runs["task"].iloc[0], "model": study.runs["model"].iloc[0]}
    base |= {"run_id": run_id, "resolvable": True, "out_features": 384, "in_features": 384}
    rows = []
    for layer in (0, 1, None):
        for role in ("query", "value"):
            place = {**base, "module": f"{layer}.{role}", "layer": layer, "role": role}
            for control, rank in (("trained", 10), ("noise", 190), ("weight_decay", 150)):
                rank += 0 if layer is not None else 1000
                ranks = {"energy_rank_90": rank, "gavish_donoho_rank": rank // 10}
                rows.append({**place, **ranks, "control": control})
            for step in (1, 2, 4):
                rows.append(
                    {**place, "control": "training", "step": step, "energy_rank_90": 100 // step,
                     "resolvable": (step, role) != (1, "value")}
                )  # fmt: skip
            for k in (1, 2):
                pair = {"directions": k, "similarity_right_chance": k / 384,
                        "similarity_left_chance": k / 512}  # fmt: skip
                found = {"similarity_right": 0.3 * k, "similarity_left": 0.2 * k}
                noise = {"similarity_right": 0.003, "similarity_left": 0.002}
                rows.append({**place, **pair, "control": "seeds", **found})
                rows.append({**place, **pair, "control": "noise_pair", **noise})
    return pd.DataFrame(rows, columns=list(CONTROL_COLUMNS)).astype(
        {"layer": "Int64", "step": "Int64", "directions": "Int64", "resolvable": "boolean"}
    )


@pytest.fixture(scope="module")
def data(thin_study: StudyTables) -> SettingData:
    study = replace(
        thin_study, truncation=truncation_of(thin_study), controls=controls_of(thin_study)
    )
    return settings_data(checked(study))[0]


def kept_ranks(data: SettingData) -> pd.DataFrame:
    return score_by_kept_rank(data.study.truncation, data.runs)


def told(data: SettingData) -> dict[str, str]:
    return {finding.topic: finding.text for finding in findings(data)}


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
    full = data.accuracy[data.accuracy["method"] == "full"].iloc[0]
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


def test_the_figure_has_the_cuts_and_the_adapters(data: SettingData) -> None:
    figure = functional_rank(data)
    assert figure is not None
    frame = figure.table.frame
    assert frame.loc[frame["method"] == "full", "scope"].tolist() == ["all"] * 5 + ["noise_cut"]
    assert frame.loc[frame["method"] == "lora", "adapter_rank"].tolist() == [1, 4]
    assert "k = 0: head, biases and norms alone" in figure.wide
    assert "LoRA on attention_qv, trained" in figure.wide


def test_the_finding_gives_every_level(data: SettingData) -> None:
    text = told(data)["The update, cut"]
    full = data.accuracy[data.accuracy["method"] == "full"].iloc[0]["mean_test_score"]
    assert f"mean test accuracy of {full:.3f} (3 seeds)" in text
    assert f"cut to its best rank 1, {full - 0.1:.3f}" in text
    assert f"head, biases and norms tuned alone, {full - 0.2:.3f}" in text
    assert "From rank 16 on" in text
    assert "at rank 16 it is 0.1 points below the same seeds’ uncut" in text
    assert "Trained at rank 1 in place of cut to it" in text
    assert "100 of 4,608 directions" in text
    seed0 = truncation_of(data.study).query("scope == 'layers' and part == '10'")
    best = seed0["test_score"].iloc[0]
    assert f"layer 10 ({best:.3f}, 1 seed) and the role value (" in text


def test_a_mean_that_leaves_the_interval_again_is_no_threshold(thin_study: StudyTables) -> None:
    table = truncation_of(thin_study)
    table.loc[table["kept_rank"] == 16, "test_score"] -= 0.3
    table.loc[table["kept_rank"] == 4, "test_score"] += LOSS[4]
    [one] = settings_data(checked(replace(thin_study, truncation=table)))
    assert "Below the full rank, no mean lies inside" in told(one)["The update, cut"]


def test_one_seed_is_not_compared(thin_study: StudyTables) -> None:
    table = truncation_of(thin_study, seeds=1)
    [one] = settings_data(checked(replace(thin_study, truncation=table)))
    assert "One seed gives no interval" in told(one)["The update, cut"]
    assert functional_rank(one) is not None


def test_controls_are_condensed_inside_the_layers(data: SettingData) -> None:
    ranks = control_ranks(data).set_index(["control", "role"])
    assert ranks.loc[("noise", ""), "n"] == 4
    assert ranks.loc[("noise", "query"), "n"] == 2
    assert ranks["median_energy_rank_90"].max() == 190
    overlap = control_overlap(data).set_index(["control", "role", "directions"])
    assert overlap.loc[("seeds", "", 2), "median_similarity_right"] == pytest.approx(0.6)
    steps = training_ranks(data).set_index(["step", "role"])
    assert steps.loc[(1, ""), ["n", "resolvable"]].tolist() == [4, 2]
    assert np.isnan(steps.loc[(1, "value"), "median_energy_rank_90"])


def test_controls_are_told_and_drawn(data: SettingData) -> None:
    said = told(data)
    assert "10 (1) of full fine-tuning’s updates, 190 (19) of Gaussian noise" in said["Controls"]
    assert "150 (15) of weight decay alone" in said["Controls"]
    assert (
        "0.300 and 0.200 for the first direction (by chance 0.003 and 0.002; 0.003 and 0.002 of "
        "two noises)"
    ) in said["Overlap of seeds"]
    assert "is 100 at step 1 and 25 at step 4; lowest, 25 at step 4" in said["Rank along training"]
    figure = rank_along_training(data)
    assert figure is not None
    assert set(figure.table.frame["step"]) == {1, 2, 4}
    assert (figure.table.frame["role"] == "").sum() == 3  # what the sentence is of
    names = {table.name for table in tables_of_setting(data)}
    assert names >= {"score_by_kept_rank", "control_ranks", "control_overlap"}


def test_a_study_without_them_says_nothing_of_them(thin_study: StudyTables) -> None:
    empty = truncation_of(thin_study).iloc[:0]
    for study in (thin_study, replace(thin_study, truncation=empty)):
        [one] = settings_data(checked(study))
        assert functional_rank(one) is None
        assert rank_along_training(one) is None
        assert not {"Functional rank", "Controls", "Overlap of seeds"} & set(told(one))
        names = {table.name for table in tables_of_setting(one)}
        assert not {"score_by_kept_rank", "control_ranks", "control_overlap"} & names


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
