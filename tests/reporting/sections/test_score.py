"""The sentences and the figure of the score say what the tables say, and no more."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from lowrank_study.reporting.sections import cost, score
from lowrank_study.reporting.sections.noise import noise
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.study import StudyTables
from tests.reporting.conftest import (
    data_of,
    without_spectra,
)

MakeStudy = Callable[..., StudyTables]


def told(data: SettingData) -> dict[str, str]:
    findings = [
        score.full_fine_tuning(data),
        *score.linear_probe(data),
        *score.adapters(data),
        *score.learnt_nothing(data),
    ]
    return {item.topic: item.text for item in findings} | {"Noise": " ".join(noise(data))}


def texts(study: StudyTables) -> dict[str, str]:
    return told(data_of(study))


@pytest.fixture
def found(whole_data: SettingData) -> dict[str, str]:
    return told(whole_data)


def test_ranks_are_placed_by_the_interval_of_full(
    whole_data: SettingData, found: dict[str, str]
) -> None:
    accuracy = whole_data.scores
    full = accuracy.iloc[0]
    rows = accuracy[accuracy["target"] == "all_linear"]
    inside = rows[rows["mean_test_score"].between(full["test_low_95"], full["test_high_95"])]
    assert len(inside) == 3
    text = found["LoRA on all_linear"]
    assert text.startswith(
        "The mean accuracy of LoRA on all_linear lies inside full fine-tuning’s interval at ranks "
        "16 to 64 and below it at ranks 1 to 8. The lowest rank inside is 16: its mean is "
    )
    first = inside.iloc[0]
    assert f"its mean is {first['mean_test_score']:.3f} (3 seeds), " in text
    gap = 100 * (full["mean_test_score"] - first["mean_test_score"])
    assert f"{gap:.1f} percentage points below full fine-tuning’s" in text
    assert f"{first['trainable_parameters']:,} parameters, 2.9\u202f% of the model’s." in text


def test_a_rank_above_that_falls_back_is_told(whole_study: StudyTables) -> None:
    runs = whole_study.runs.copy()
    runs.loc[(runs["target"] == "all_linear") & (runs["adapter_rank"] == 32), "test_score"] -= 0.1
    text = texts(replace(without_spectra(whole_study), runs=runs))["LoRA on all_linear"]
    assert "Some higher ranks fall below the interval again, so it is not a threshold." in text


def test_ranks_that_all_lie_below_give_their_best(small_study: StudyTables) -> None:
    runs = small_study.runs.copy()
    runs.loc[runs["adapter_rank"] == 1, "test_score"] = [0.60, 0.61, 0.62]
    runs.loc[runs["adapter_rank"] == 4, "test_score"] = [0.65, 0.66, 0.67]
    full = 100 * (runs.loc[runs["method"] == "full", "test_score"].mean() - 0.66)
    assert texts(replace(without_spectra(small_study), runs=runs))["LoRA on attention_qv"] == (
        "The mean accuracy of LoRA on attention_qv lies below full fine-tuning’s interval at ranks "
        "1 and 4. The highest mean is 0.660 at rank 4 (3 seeds), "
        f"{full:.1f} percentage points below full fine-tuning’s."
    )


def test_ranks_that_are_all_on_one_side_are_a_range(found: dict[str, str]) -> None:
    assert found["LoRA on attention_qv"].startswith(
        "The mean accuracy of LoRA on attention_qv lies below full fine-tuning’s interval at "
        "ranks 1 to 64. The highest mean is 0."
    )


def test_the_answer_is_short_and_its_caveats_are_said_once(found: dict[str, str]) -> None:
    answers = [found["Full fine-tuning"], *(found[topic] for topic in found if "LoRA on" in topic)]
    assert len(answers) == 3
    for text in answers:
        assert len(text.split(". ")) <= 2
        assert len(text) < 330
    everything = " ".join(found.values())
    assert everything.count("Student t") == 1
    assert everything.count("The means are over") == 1
    assert everything.count("too few to resolve small differences") == 1
    interval = found["Full fine-tuning"]
    assert "(3 seeds, 95\u202f% interval over seeds 0.7" in interval


def test_nothing_is_called_significant_or_better(found: dict[str, str]) -> None:
    text = " ".join(found.values()).lower()
    assert "better" not in text
    assert "this report contains no significance test" in text


def test_chance_is_the_ground_level(whole_data: SettingData, found: dict[str, str]) -> None:
    full = whole_data.scores.iloc[0]
    above = 100 * (full["mean_test_score"] - 0.5037)
    text = found["Full fine-tuning"]
    chance = "chance (0.504, predicting the commonest class)"
    assert f"{above:.1f} percentage points above {chance}" in text


@pytest.mark.parametrize(
    ("accuracy", "then"),
    [
        (0.99, "15 of the 15 configurations that train more than the head have a mean below the"),
        (0.51, "0.6 percentage points above chance."),
    ],
)
def test_the_linear_probe_is_a_baseline(accuracy: float, then: str, make_study: MakeStudy) -> None:
    study = make_study(losses=False)
    full = study.runs[study.runs["method"] == "full"]
    head = full.assign(
        method="head",
        test_score=[accuracy - 0.001, accuracy, accuracy + 0.001],
        run_id=[f"head-{name}" for name in full["run_id"]],
    )
    runs = pd.concat([study.runs, head], ignore_index=True)
    assert "Linear probe" not in texts(study)
    text = texts(replace(study, runs=runs, planned=len(runs)))["Linear probe"]
    assert text.startswith(
        f"A linear probe, which trains only the head, reaches a test accuracy of {accuracy}"
    )
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
    page = score.section(data_of(study)).figures[0].wide
    assert ">attention_qv</text>" in page
    assert ">all_linear</text>" in page


def test_runs_that_learnt_nothing_are_named(make_study: MakeStudy) -> None:
    study = make_study(losses=False)
    assert "Runs that learnt nothing" not in texts(study)
    runs = study.runs.copy()
    mine = runs.index[(runs["method"] == "lora") & (runs["adapter_rank"] == 4)][:2]
    runs.loc[mine, "test_score"] = runs.loc[mine, "chance"]
    text = texts(replace(study, runs=runs))["Runs that learnt nothing"]
    assert "chance: 2 of 3 runs of LoRA on attention_qv at rank 4." in text


def test_seeds_that_agree_are_an_interval_without_width(make_study: MakeStudy) -> None:
    study = make_study(ranks=(1, 4), targets=("attention_qv",), layers=1)
    full = study.runs["method"] == "full"
    study.runs.loc[full, "test_score"] = 0.5
    found = texts(study)
    assert "(3 seeds, 95" in found["Full fine-tuning"]
    assert "one seed" not in found["LoRA on attention_qv"]


def test_one_seed_allows_no_comparison(make_study: MakeStudy) -> None:
    found = texts(make_study(ranks=(1, 4), targets=("attention_qv",), seeds=1, layers=1))
    assert "(1 seed), " in found["Full fine-tuning"]
    assert "cannot show how much another seed would differ" in found["Noise"]
    assert "interval" not in found["Full fine-tuning"] + found["Noise"]
    assert (
        "do not show which rank suffices: full fine-tuning has one seed"
        in found["LoRA on attention_qv"]
    )
    assert "are over 1 seed each, too few" in found["Noise"]


def test_without_full_fine_tuning_nothing_is_compared(make_study: MakeStudy) -> None:
    study = make_study(ranks=(1, 4), targets=("attention_qv",), full=False, layers=1)
    found = texts(study)
    assert found["Full fine-tuning"].startswith("No run of full fine-tuning is done")
    assert (
        "do not show which rank suffices: no run of full fine-tuning is done"
        in found["LoRA on attention_qv"]
    )
    assert cost.section(data_of(study)).findings == []


def test_an_adapter_at_the_commonest_class_is_told(make_study: MakeStudy) -> None:
    study = make_study(ranks=(4,), targets=("attention_qv",), seeds=1, layers=1)
    runs = study.runs.copy()
    runs.loc[runs["adapter_rank"] == 4, "test_score"] = 0.5037
    text = texts(replace(study, runs=runs))["LoRA on attention_qv"]
    assert text.startswith(
        "LoRA on attention_qv reaches a test accuracy of 0.504 at rank 4 (1 seed), not above "
        "chance (0.504, predicting the commonest class)."
    )


def test_every_seed_is_a_row_and_lost_runs_are_too(whole_data: SettingData) -> None:
    [figure] = score.section(whole_data).figures
    frame = figure.table.frame
    assert len(frame) == 45
    assert sorted(frame["status"].unique()) == ["diverged", "done", "failed"]
    assert frame.loc[frame["status"] == "done", "test_score"].notna().all()
    assert "diverged or failed" in figure.wide
    assert "chance: 0.504, below the axis" in figure.wide
