"""The report says which rank suffices as far as the tests show it."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.sections import sufficient_rank
from lowrank_study.reporting.sections.noise import noise
from lowrank_study.reporting.study import StudyTables
from tests.reporting.conftest import compared, data_of, said

LORA = "Sufficient rank, LoRA on attention_qv"


def told(study: StudyTables) -> dict[str, str]:
    return said(sufficient_rank.section(data_of(study)))


def caveats(study: StudyTables) -> str:
    return " ".join(noise(data_of(study)))


@pytest.mark.parametrize(
    ("decisions", "where"),
    [
        ({1: "i", 2: "i", 4: "o", 8: "o", 16: "s"}, "lies between 4 and 16"),
        ({1: "i", 2: "i", 4: "s", 8: "s"}, "is 4 among those tried"),
        ({1: "o", 2: "o", 4: "s"}, "is at most 4"),
        ({1: "s", 2: "s"}, "is at most 1, the lowest tried"),
        ({1: "i", 2: "o", 4: "o"}, "is above 1; no upper bound is shown"),
        ({1: "i", 2: "i"}, "is above every rank that was tried"),
        ({1: "o", 2: "o"}, "is undecided"),
    ],
)
def test_each_bound_is_given_if_it_is_shown(
    small_study: StudyTables, decisions: dict[int, str], where: str
) -> None:
    text = told(compared(small_study, decisions))[LORA]
    assert text.startswith(f"The sufficient rank of LoRA on attention_qv {where}. ")


def test_every_decision_is_listed(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "i", 2: "i", 4: "o", 8: "s", 16: "s", 32: "s"})
    assert told(study)[LORA].endswith(
        ". Ranks 8 to 32 are shown to lose less than 2.0 percentage points and ranks 1 and 2 are "
        "shown to lose more. Rank 4 is undecided. Rank 8 keeps 95.7\u202f% of full fine-tuning’s "
        "lead over chance, 95\u202f% interval 93.1\u202f% to 98.4\u202f% (basis: 6 seeds, 2,588 "
        "test examples)."
    )
    words = caveats(study)
    assert "Only sufficient and functional ranks and the linear probe are tested." in words
    assert "an error rate of 5\u202f%" in words
    assert "any of these 2 bounds is wrong is at most 10\u202f%" in words
    assert "no significance test" not in words


def test_a_rank_that_lost_runs_is_named(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "o", 4: "o", 16: "o", 64: "o"})
    frame = study.comparison.assign(lost=[1, 0, 1, 2])
    text = told(replace(study, comparison=frame))[LORA]
    assert "Ranks 1 to 64 are undecided at a margin of 2.0 percentage points." in text
    assert "Ranks 1, 16 and 64 lost 4 runs, so neither these ranks nor lower ones can be" in text


def test_a_high_rank_that_lies_below_a_lower_one_is_named(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "i", 8: "o", 128: "o"})
    frame = study.comparison.assign(
        upper_limit=[-0.03, -0.01, -0.025], score=[0.7, 0.76, 0.72], retention=[0.8, 0.97, 0.9]
    )
    text = told(replace(study, comparison=frame))[LORA]
    assert "Taken alone, rank 128 loses more than the margin although a lower rank does not" in text
    assert "Rank 8 keeps 97.0" in text


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (
            "s",
            "is shown to lose less than 2.0 percentage points, so the ranks that suffice do not "
            "show that the task needs any ΔW",
        ),
        ("i", "is shown to lose more than 2.0 percentage points"),
        ("o", "is neither shown to lose less than 2.0 percentage points nor to lose more"),
    ],
)
def test_the_linear_probe_is_tested_too(small_study: StudyTables, sign: str, words: str) -> None:
    study = compared(small_study, {1: "i", 4: "s"})
    probe = compared(small_study, {0: sign}, method="head", target="")
    both = replace(study, comparison=pd.concat([probe.comparison, study.comparison]))
    assert told(both)["Linear probe, tested"] == (
        f"The linear probe, which trains only the head, {words} (basis: 6 seeds, 2,588 test "
        "examples)."
    )
    assert "any of these 4 bounds is wrong is at most 20\u202f%" in caveats(both)


def test_a_truncated_update_is_tested_under_its_own_name(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "i", 4: "s"}, method="truncation", target="")
    assert told(study)["Functional rank, tested"].startswith(
        "The functional rank of full fine-tuning’s update is 4 among those tried."
    )


def test_keeping_up_with_chance_says_nothing(small_study: StudyTables) -> None:
    none = {"retention_low_95": math.nan, "retention_high_95": math.nan, "retention_bounded": False}
    text = told(compared(small_study, {1: "o"}, **none))[LORA]
    assert "Full fine-tuning is not shown to score above chance, so a rank that matches it" in text


def test_ranks_that_could_not_be_tested_are_named(small_study: StudyTables) -> None:
    untested = dict.fromkeys(["difference", "lower_limit", "upper_limit", "retention"], math.nan)
    study = compared(small_study, {1: "o", 4: "o"}, **untested)
    assert "can’t be tested: no rank has two done seeds" in told(study)[LORA]
    assert "contains no significance test" in caveats(study)


def test_without_a_comparison_there_is_no_section(small_study: StudyTables) -> None:
    assert sufficient_rank.section(data_of(compared(small_study, {}))) is None


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_whether_anything_was_tested(thin_study: StudyTables, tmp_path: Path) -> None:
    page = write_report(compared(thin_study, {1: "i", 4: "s"}), tmp_path).read_text()
    assert "contains no significance test" not in page
    assert "-1.94" in page
    table = pd.read_csv(tmp_path / "tables" / "sufficient_rank.csv")
    assert list(table["decision"]) == ["inferior", "sufficient"]
    assert list(table["lower_limit"]) == [-0.0194] * 2
    assert "sufficient" in (tmp_path / "tables" / "sufficient_rank.tex").read_text()
    assert "contains no significance test" in write_report(thin_study, tmp_path).read_text()
    assert not (tmp_path / "tables" / "sufficient_rank.csv").exists()
