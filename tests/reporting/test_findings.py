"""That the summary says what the tables say, and no more."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lowrank_study.reporting.figures import SettingData
from lowrank_study.reporting.findings import completeness, findings
from lowrank_study.reporting.tables import (
    StudyTables,
    accuracy_by_rank,
    checked,
    rank_by_configuration,
    rank_by_module,
    settings_of,
    spectra_of_chosen,
)

MakeStudy = Callable[..., StudyTables]


def data_of(study: StudyTables) -> SettingData:
    study = checked(study)
    accuracy = accuracy_by_rank(study.runs)
    spectra = spectra_of_chosen(study, accuracy)
    return SettingData(
        study=study,
        setting=settings_of(study.runs)[0],
        suffix="",
        accuracy=accuracy,
        spectra=spectra,
        modules=rank_by_module(spectra),
        configurations=rank_by_configuration(spectra),
    )


def texts(study: StudyTables) -> dict[str, str]:
    return {finding.topic: finding.text for finding in findings(data_of(study))}


def test_completeness_counts_every_fate(whole_study: StudyTables) -> None:
    text = completeness(checked(whole_study)).text
    assert text.startswith("43 of 47 planned runs are done; 1 diverged, 1 failed and 2 not run.")


def test_completeness_of_a_done_run_without_accuracy(small_study: StudyTables) -> None:
    runs = small_study.runs.copy()
    runs.loc[3, "test_accuracy"] = np.nan
    text = completeness(checked(replace(small_study, runs=runs))).text
    assert "1 done run has no test accuracy and is left out of every mean" in text


def test_ranks_are_placed_by_the_interval_of_full(whole_study: StudyTables) -> None:
    accuracy = accuracy_by_rank(whole_study.runs)
    full = accuracy.iloc[0]
    rows = accuracy[accuracy["target"] == "all_linear"]
    inside = rows[rows["mean_test_accuracy"].between(full["test_low_95"], full["test_high_95"])]
    assert len(inside) == 3
    text = texts(whole_study)["LoRA on all_linear"]
    assert text.startswith(
        "Mean accuracy lies inside full fine-tuning’s interval at ranks 16, 32 and 64 "
        "and below it at ranks 1, 2, 4 and 8."
    )
    first = inside.iloc[0]
    assert f"mean {first['mean_test_accuracy']:.3f} over 3 seeds" in text
    assert f"{first['trainable_parameters']:,} parameters, 2.9\u202f% of the model’s" in text


def test_a_rank_above_that_falls_back_is_told(whole_study: StudyTables) -> None:
    runs = whole_study.runs.copy()
    runs.loc[(runs["target"] == "all_linear") & (runs["adapter_rank"] == 32), "test_accuracy"] -= (
        0.1
    )
    text = texts(replace(whole_study, runs=runs))["LoRA on all_linear"]
    assert "Higher ranks fall below the interval again" in text


def test_nothing_is_called_significant_or_better(whole_study: StudyTables) -> None:
    text = " ".join(texts(whole_study).values()).lower()
    assert "significant" not in text
    assert "better" not in text
    assert "neither was tested here" in text


def test_the_majority_class_is_the_ground_level(whole_study: StudyTables) -> None:
    full = accuracy_by_rank(whole_study.runs).iloc[0]
    above = 100 * (full["mean_test_accuracy"] - 0.5037)
    text = texts(whole_study)["Full fine-tuning"]
    assert f"{above:.1f} points above always answering the commonest class (0.504)" in text


def test_energy_ranks_are_the_medians(whole_study: StudyTables) -> None:
    said = texts(whole_study)
    full = data_of(whole_study).configurations.iloc[0]["median_energy_rank_90"]
    assert f"median 90\u202f% energy rank of {full:.0f} of at most 384" in said["Rank of ΔW, full"]
    assert "noise of the same shapes would read 196 to 292" in said["Rank of ΔW, full"]
    assert "can’t have an energy rank above r" in said["Rank of ΔW, adapters"]


def test_what_is_not_resolvable_is_counted(whole_study: StudyTables) -> None:
    text = texts(whole_study)["Resolution"]
    assert text.startswith("6 of 1,068 matrices are not resolvable (key)")


def test_all_unresolvable_gives_no_rank(small_study: StudyTables) -> None:
    said = texts(replace(small_study, spectra=small_study.spectra.assign(resolvable=False)))
    assert not any(topic.startswith("Rank of") for topic in said)
    assert said["Resolution"].startswith("180 of 180 matrices are not resolvable")


def test_one_seed_allows_no_comparison(make_study: MakeStudy) -> None:
    said = texts(make_study(ranks=(1, 4), targets=("attention_qv",), seeds=1))
    assert "how much another seed would differ is not known" in said["Full fine-tuning"]
    assert "can’t be said: full fine-tuning has one seed" in said["LoRA on attention_qv"]
    assert "rest on 1 seed each, too few" in said["Noise"]


def test_without_full_fine_tuning_nothing_is_compared(make_study: MakeStudy) -> None:
    said = texts(make_study(ranks=(1, 4), targets=("attention_qv",), full=False))
    assert said["Full fine-tuning"].startswith("No run of full fine-tuning is done")
    assert "can’t be said: full fine-tuning has no done run" in said["LoRA on attention_qv"]
    assert "Cost" not in said


@pytest.mark.parametrize("column", ["peak_memory_bytes", "train_seconds"])
def test_what_was_not_measured_is_said(small_study: StudyTables, column: str) -> None:
    runs = small_study.runs.assign(**{column: np.nan})
    assert "not measured" in texts(replace(small_study, runs=runs))["Cost"]
