"""Which rates were chosen, under which rule for α, and what the report says about them."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import pytest

from lowrank_study.answers.learning_rates import best_rates, rates_by_configuration, with_rules
from lowrank_study.reporting.sections import learning_rates, score
from lowrank_study.reporting.setting import SettingData, settings_data
from lowrank_study.reporting.study import checked
from lowrank_study.tasks.metric import ACCURACY
from tests.reporting.conftest import (
    build_study,
    said,
)

GRID = (1e-3, 3e-3, 9e-3)


def text_of(data: SettingData) -> str:
    return said(learning_rates.section(data))["Learning rates"]


def trial(rank: int | None, rate: float, accuracy: float, **more: object) -> dict[str, object]:
    return {
        "task": "rotten_tomatoes",
        "model": "all-MiniLM-L6-v2",
        "method": "lora" if rank else "full",
        "target": "attention_qv" if rank else None,
        "adapter_rank": rank,
        "alpha": 16.0 if rank else None,
        "scaling_rule": "alpha_over_rank" if rank else None,
        "learning_rate": rate,
        "seed": 1000,
        "status": "done",
        "validation_score": accuracy,
        "validation_loss": 0.5,
        **more,
    }


def trials() -> Iterator[dict[str, object]]:
    for rank, accuracies in ((2, (0.6, 0.7, 0.65)), (8, (0.7, 0.7, 0.6))):
        for rate, accuracy in zip(GRID, accuracies, strict=True):
            loss = 0.4 if rate == GRID[1] else 0.5
            yield trial(rank, rate, accuracy, validation_loss=loss)
    yield trial(None, 1e-4, 0.71)
    yield trial(None, 3e-4, 0.72)
    yield trial(None, 9e-4, 0.9, status="diverged")


@pytest.fixture
def tuned_data() -> SettingData:
    study = build_study(ranks=(2, 8), targets=("attention_qv",))
    return settings_data(checked(replace(study, rates=pd.DataFrame(list(trials())))))[0]


def test_the_best_accuracy_is_chosen_then_the_lower_loss_and_no_rate_that_lost_a_run(
    tuned_data: SettingData,
) -> None:
    chosen = tuned_data.rates[tuned_data.rates["chosen"]].set_index("method")["learning_rate"]
    assert list(chosen["lora"]) == [3e-3, 3e-3]
    assert chosen["full"] == 3e-4


def test_a_choice_that_the_seeds_do_not_bear_out_is_counted() -> None:
    seeds = (1000, 1001, 1002)
    clear = [
        trial(2, rate, accuracy + 0.01 * number, seed=seed)
        for rate, accuracy in ((1e-3, 0.6), (3e-3, 0.7))
        for number, seed in enumerate(seeds)
    ]
    tied = [
        trial(8, rate, accuracy, seed=seed)
        for rate, accuracies in ((1e-3, (0.6, 0.7, 0.8)), (3e-3, (0.72, 0.71, 0.7)))
        for seed, accuracy in zip(seeds, accuracies, strict=True)
    ]
    alone = [trial(8, 9e-3, 0.5)]  # one seed of the four is no comparison
    study = build_study(ranks=(2, 8), targets=("attention_qv",))
    frame = pd.DataFrame([*clear, *tied, *alone])
    [data] = settings_data(checked(replace(study, rates=frame)))
    behind = data.rates.set_index(["adapter_rank", "learning_rate"])
    assert behind.loc[(2, 1e-3), "behind"] == pytest.approx(0.1)
    assert behind.loc[(2, 1e-3), "behind_low_95"] == pytest.approx(0.1)
    assert behind.loc[(8, 1e-3), "behind_low_95"] < 0 < behind.loc[(8, 1e-3), "behind"]
    assert behind.loc[(8, 9e-3), ["behind_low_95"]].isna().all()
    assert "In 1 of 2 cases the chosen rate is not clearly better than" in text_of(data)


def test_a_configuration_of_two_rules_is_one_case_and_the_mixture_is_told() -> None:
    steps = {(2, 16.0): 0.010, (8, 16.0): 0.011, (2, 4.0): 0.012}
    rows = [
        trial(rank, rate, 0.7 - step * below + 0.001 * seed * below, seed=seed, alpha=alpha)
        for (rank, alpha), step in steps.items()
        for rate, below in ((1e-3, 0), (3e-3, 1))
        for seed in range(4)
    ]
    study = build_study(ranks=(2, 8), targets=("attention_qv",))
    other = study.runs[study.runs["adapter_rank"] == 2].assign(alpha=4.0)
    other = other.assign(run_id=other["run_id"] + "-other")
    runs = pd.concat([study.runs, other])
    [data] = settings_data(
        checked(replace(study, runs=runs, planned=len(runs), rates=pd.DataFrame(rows)))
    )
    assert "of 3 cases" in text_of(data)
    words = "trained at several values of α or scalings"
    assert words in score.section(data).figures[0].caption


def test_ratios_are_to_full_and_an_end_of_the_grid_is_told(tuned_data: SettingData) -> None:
    best = best_rates(tuned_data.rates).set_index("method")
    assert list(best.loc["lora", "ratio_to_full"]) == pytest.approx([10.0, 10.0])
    assert list(best.loc["lora", "inside"]) == [True, True]
    assert bool(best.loc["full", "inside"])  # above it a rate was tried, and lost its run
    assert best.loc["full", "rates_tried"] == 3


def test_a_run_that_follows_no_rule_is_kept() -> None:
    alone = trial(8, 1e-3, 0.7, alpha=64.0)
    ruled = with_rules(pd.DataFrame([trial(1, 1e-3, 0.7), trial(8, 1e-3, 0.7), alone]))
    assert sorted(ruled["rule"]) == ["α=16, α/r", "α=16, α/r", "α=64, α/r"]


def test_a_run_can_follow_two_rules_for_alpha() -> None:
    runs = pd.DataFrame(
        [
            trial(8, 1e-3, 0.7),
            trial(2, 1e-3, 0.7),
            trial(2, 1e-3, 0.7, alpha=4.0),
            trial(8, 1e-3, 0.7, scaling_rule="alpha_over_sqrt_rank"),
            trial(2, 1e-3, 0.7, scaling_rule="alpha_over_sqrt_rank"),
        ]
    )
    ruled = with_rules(runs)
    assert sorted(zip(ruled["rule"], ruled["adapter_rank"], strict=True)) == [
        *[("α=16, α/r", 2), ("α=16, α/r", 8), ("α=16, α/√r", 2), ("α=16, α/√r", 8)],
        *[("α=2r, α/r", 2), ("α=2r, α/r", 8)],
    ]


def test_one_rank_alone_follows_its_alpha() -> None:
    ruled = with_rules(pd.DataFrame([trial(8, 1e-3, 0.7)]))
    assert list(ruled["rule"]) == ["α=16, α/r"]


def test_nothing_is_drawn_or_said_where_no_rate_was_chosen() -> None:
    data = settings_data(checked(build_study(ranks=(2, 8))))[0]
    assert not len(data.rates)
    assert learning_rates.section(data) is None
    assert list(rates_by_configuration(pd.DataFrame(), ACCURACY).columns) == list(
        data.rates.columns
    )


def test_the_finding_and_the_figure_hold_the_numbers(tuned_data: SettingData) -> None:
    section = learning_rates.section(tuned_data)
    text = said(section)["Learning rates"]
    assert "the chosen rate is 0.003 for LoRA on attention_qv (α=16, α/r, median 10.0×" in text
    assert "Full fine-tuning’s rate is 0.0003." in text
    assert section is not None
    [figure] = section.figures
    assert len(figure.table.frame) == 9
    assert "0.001" in figure.wide
    assert "mathdefault" not in figure.wide
