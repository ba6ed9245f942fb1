"""That the summary says what the tables say, and no more."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lowrank_study.reporting.figures import score_against_rank
from lowrank_study.reporting.findings import completeness, findings
from lowrank_study.reporting.tables import (
    SettingData,
    StudyTables,
    checked,
    settings_data,
)

MakeStudy = Callable[..., StudyTables]


def told(data: SettingData) -> dict[str, str]:
    return {finding.topic: finding.text for finding in findings(data)}


def texts(study: StudyTables) -> dict[str, str]:
    return told(settings_data(checked(study))[0])


def without_spectra(study: StudyTables) -> StudyTables:
    return replace(
        study, spectra=study.spectra.iloc[:0], singular_values=study.singular_values.iloc[:0]
    )


@pytest.fixture(scope="module")
def said(whole_data: SettingData) -> dict[str, str]:
    return told(whole_data)


def test_completeness_counts_every_fate(whole_data: SettingData) -> None:
    text = completeness(whole_data.study).text
    assert text.startswith("43 of 45 planned runs are done; 1 diverged and 1 failed.")


def test_completeness_of_a_done_run_without_accuracy(small_study: StudyTables) -> None:
    runs = small_study.runs.copy()
    runs.loc[3, "test_score"] = np.nan
    text = completeness(checked(replace(small_study, runs=runs))).text
    assert "1 done run has no test accuracy and is left out of every mean" in text


def test_what_was_left_out_is_said_first(small_study: StudyTables) -> None:
    left_out = ("left out: 12 of 300 rows of reviews.csv (4 %): an empty label",)
    text = completeness(checked(replace(small_study, left_out=left_out))).text
    assert ". Left out: 12 of 300 rows of reviews.csv (4 %): an empty label." in text


def test_runs_of_different_versions_are_counted(small_study: StudyTables) -> None:
    commits = {"a" * 40: "3 runs", "b" * 40 + "+changes": "1 run"}
    facts = {"commit": commits, "torch": {"2.6": "2 runs", "2.7": "2 runs"}, "python": "3.11.7"}
    text = completeness(checked(replace(small_study, provenance=facts))).text
    assert (
        "Runs of different versions are averaged: commit aaaaaaaaaa (3 runs) and "
        "bbbbbbbbbb+changes (1 run); torch 2.6 (2 runs) and 2.7 (2 runs)."
    ) in text
    assert "python" not in text
    alike = {"commit": "a" * 40, "processor": {"x": "2 runs", "y": "2 runs"}}
    text = completeness(checked(replace(small_study, provenance=alike))).text
    assert "versions" not in text


def test_runs_alone_and_in_packs_are_told_apart(small_study: StudyTables) -> None:
    runs = small_study.runs.assign(pack_size=4)
    assert "alone" not in completeness(checked(replace(small_study, runs=runs))).text
    runs.loc[runs.index[-1], "pack_size"] = 1
    text = completeness(checked(replace(small_study, runs=runs))).text
    assert "1 run was trained alone and other runs of the same configuration in packs" in text


def test_ranks_are_placed_by_the_interval_of_full(
    whole_data: SettingData, said: dict[str, str]
) -> None:
    accuracy = whole_data.accuracy
    full = accuracy.iloc[0]
    rows = accuracy[accuracy["target"] == "all_linear"]
    inside = rows[rows["mean_test_score"].between(full["test_low_95"], full["test_high_95"])]
    assert len(inside) == 3
    text = said["LoRA on all_linear"]
    assert text.startswith(
        "The mean accuracy of LoRA on all_linear lies inside full fine-tuning’s interval at ranks "
        "16, 32 and 64 and below it at ranks 1, 2, 4 and 8. The lowest rank inside, 16, has a mean "
    )
    first = inside.iloc[0]
    assert f"has a mean of {first['mean_test_score']:.3f} (3 seeds), " in text
    gap = 100 * (full["mean_test_score"] - first["mean_test_score"])
    assert f"{gap:.1f} points below full fine-tuning’s" in text
    assert f"{first['trainable_parameters']:,} parameters, 2.9\u202f% of the model’s." in text


def test_a_rank_above_that_falls_back_is_told(whole_study: StudyTables) -> None:
    runs = whole_study.runs.copy()
    runs.loc[(runs["target"] == "all_linear") & (runs["adapter_rank"] == 32), "test_score"] -= 0.1
    text = texts(replace(without_spectra(whole_study), runs=runs))["LoRA on all_linear"]
    assert "higher ranks fall below the interval again, so it is no threshold" in text


def test_ranks_that_all_lie_below_give_their_best(small_study: StudyTables) -> None:
    runs = small_study.runs.copy()
    runs.loc[runs["adapter_rank"] == 1, "test_score"] = [0.60, 0.61, 0.62]
    runs.loc[runs["adapter_rank"] == 4, "test_score"] = [0.65, 0.66, 0.67]
    full = 100 * (runs.loc[runs["method"] == "full", "test_score"].mean() - 0.66)
    assert texts(replace(without_spectra(small_study), runs=runs))["LoRA on attention_qv"] == (
        "The mean accuracy of LoRA on attention_qv lies below full fine-tuning’s interval at ranks "
        "1 and 4. The highest, 0.660 at rank 4 (3 seeds), is "
        f"{full:.1f} points below full fine-tuning’s."
    )


def test_ranks_that_are_all_on_one_side_are_a_range(said: dict[str, str]) -> None:
    assert said["LoRA on attention_qv"].startswith(
        "The mean accuracy of LoRA on attention_qv lies below full fine-tuning’s interval at all "
        "7 ranks from 1 to 64. The highest, 0."
    )


def test_the_answer_is_short_and_its_caveats_are_said_once(said: dict[str, str]) -> None:
    answers = [said["Full fine-tuning"], *(said[topic] for topic in said if "LoRA on" in topic)]
    assert len(answers) == 3
    for text in answers:
        assert len(text.split(". ")) <= 2
        assert len(text) < 330
    everything = " ".join(said.values())
    assert everything.count("Student t") == 1
    assert everything.count("rest on") == 1
    assert everything.count("too few to tell small differences") == 1
    interval = said["Full fine-tuning"]
    assert "(3 seeds, 95\u202f% interval over seeds 0.7" in interval


def test_nothing_is_called_significant_or_better(said: dict[str, str]) -> None:
    text = " ".join(said.values()).lower()
    assert "significant" not in text
    assert "better" not in text
    assert "neither was tested here" in text


def test_the_majority_class_is_the_ground_level(
    whole_data: SettingData, said: dict[str, str]
) -> None:
    full = whole_data.accuracy.iloc[0]
    above = 100 * (full["mean_test_score"] - 0.5037)
    text = said["Full fine-tuning"]
    assert f"{above:.1f} points above always answering the commonest class (0.504)" in text


@pytest.mark.parametrize(
    ("accuracy", "then"),
    [
        (0.99, "15 of the 15 configurations that train a ΔW too have a mean below its interval"),
        (0.51, "(0.504)."),
    ],
)
def test_the_head_alone_is_what_the_others_are_read_against(
    accuracy: float, then: str, make_study: MakeStudy
) -> None:
    study = make_study(losses=False)
    full = study.runs[study.runs["method"] == "full"]
    head = full.assign(
        method="head",
        test_score=[accuracy - 0.001, accuracy, accuracy + 0.001],
        run_id=[f"head-{name}" for name in full["run_id"]],
    )
    runs = pd.concat([study.runs, head], ignore_index=True)
    assert "The head alone" not in texts(study)
    text = texts(replace(study, runs=runs, planned=len(runs)))["The head alone"]
    assert text.startswith(f"Without any ΔW, a linear probe reaches a test accuracy of {accuracy}")
    assert then in text
    assert ("configurations" in text) == (accuracy == 0.99)


def test_an_adapter_without_a_rank_is_told_and_drawn(make_study: MakeStudy) -> None:
    study = make_study(ranks=(4,), losses=False)
    runs = study.runs.copy()
    mine = runs["target"] == "all_linear"
    runs.loc[mine, "method"] = "loha"
    runs.loc[mine, "adapter_rank"] = None
    study = replace(study, runs=runs)
    mean = runs.loc[mine, "test_score"].mean()
    assert (
        f"LOHA on all_linear reaches a test accuracy of {mean:.3f} (3 seeds"
        in (texts(study)["LOHA on all_linear"])
    )
    page = score_against_rank(settings_data(checked(study))[0]).wide
    assert ">attention_qv</text>" in page
    assert ">all_linear</text>" in page


def test_runs_that_learnt_nothing_are_named(make_study: MakeStudy) -> None:
    study = make_study(losses=False)
    assert "Runs that learnt nothing" not in texts(study)
    runs = study.runs.copy()
    mine = runs.index[(runs["method"] == "lora") & (runs["adapter_rank"] == 4)][:2]
    runs.loc[mine, "test_score"] = runs.loc[mine, "chance"]
    text = texts(replace(study, runs=runs))["Runs that learnt nothing"]
    assert "commonest class: 2 of 3 of LoRA on attention_qv at rank 4." in text


def test_energy_ranks_are_the_medians(whole_data: SettingData, said: dict[str, str]) -> None:
    full = whole_data.configurations.iloc[0]["median_energy_rank_90"]
    assert f"median 90\u202f% energy rank of {full:.0f} of at most 384" in said["Rank of ΔW, full"]
    assert "noise of the same shapes would read about 196 to 292" in said["Rank of ΔW, full"]
    assert "can’t have an energy rank above r" in said["Rank of ΔW, adapters"]


def test_what_is_not_resolvable_is_counted(said: dict[str, str]) -> None:
    assert said["Resolution"].startswith("6 of 1,068 matrices are not resolvable (key)")


def test_all_unresolvable_gives_no_rank(small_study: StudyTables) -> None:
    said = texts(replace(small_study, spectra=small_study.spectra.assign(resolvable=False)))
    assert not any(topic.startswith("Rank of") for topic in said)
    assert said["Resolution"].startswith(
        "180 of 180 matrices are not resolvable (query, key, value, attention_output, mlp_up and "
        "mlp_down)"
    )


def test_seeds_that_agree_are_an_interval_without_width(make_study: MakeStudy) -> None:
    study = make_study(ranks=(1, 4), targets=("attention_qv",), layers=1)
    full = study.runs["method"] == "full"
    study.runs.loc[full, "test_score"] = 0.5
    said = texts(study)
    assert "(3 seeds, 95" in said["Full fine-tuning"]
    assert "one seed" not in said["LoRA on attention_qv"]


def test_one_seed_allows_no_comparison(make_study: MakeStudy) -> None:
    said = texts(make_study(ranks=(1, 4), targets=("attention_qv",), seeds=1, layers=1))
    assert "(1 seed), " in said["Full fine-tuning"]
    assert "how much another seed would differ is not known" in said["Noise"]
    assert "interval" not in said["Full fine-tuning"] + said["Noise"]
    assert "can’t be said: full fine-tuning has one seed" in said["LoRA on attention_qv"]
    assert "rest on 1 seed each, too few" in said["Noise"]


def test_without_full_fine_tuning_nothing_is_compared(make_study: MakeStudy) -> None:
    said = texts(make_study(ranks=(1, 4), targets=("attention_qv",), full=False, layers=1))
    assert said["Full fine-tuning"].startswith("No run of full fine-tuning is done")
    assert "can’t be said: full fine-tuning has no done run" in said["LoRA on attention_qv"]
    assert "Cost" not in said


@pytest.mark.parametrize("column", ["peak_memory_bytes", "train_seconds"])
def test_what_was_not_measured_is_said(small_study: StudyTables, column: str) -> None:
    runs = small_study.runs.assign(**{column: np.nan})
    assert "not measured" in texts(replace(without_spectra(small_study), runs=runs))["Cost"]


def test_an_adapter_at_the_commonest_class_is_told(make_study: MakeStudy) -> None:
    study = make_study(ranks=(4,), targets=("attention_qv",), seeds=1, layers=1)
    runs = study.runs.copy()
    runs.loc[runs["adapter_rank"] == 4, "test_score"] = 0.5037
    text = texts(replace(study, runs=runs))["LoRA on attention_qv"]
    assert text.startswith(
        "LoRA on attention_qv reaches a test accuracy of 0.504 at rank 4 (1 seed), not above the "
        "commonest class (0.504)."
    )
