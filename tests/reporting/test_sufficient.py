"""That the report says which rank suffices as far as it was shown, and refuses half a sweep."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.answers.sufficient_rank import COMPARISON_COLUMNS
from lowrank_study.errors import InputError
from lowrank_study.reporting import contents
from lowrank_study.reporting.findings import findings
from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.tables import StudyTables, checked, settings_data

SIGN = {"s": "sufficient", "i": "inferior", "o": "open"}
NOT_TESTED = dict.fromkeys(["difference", "lower_limit", "upper_limit", "retention"], math.nan)


def compared(study: StudyTables, decisions: dict[int, str], **other: object) -> StudyTables:
    """Give the study with a comparison of LoRA on attention_qv that came out like this."""
    rows = [
        {
            "task": "rotten_tomatoes",
            "model": "all-MiniLM-L6-v2",
            "method": "lora",
            "target": "attention_qv",
            "adapter_rank": rank,
            "margin": 0.02,
            "seeds": 6,
            "lost": 0,
            "examples": 2588,
            "score": 0.771,
            "score_low_95": 0.752,
            "score_high_95": 0.79,
            "difference": -0.0123,
            "standard_error": 0.004,
            "degrees_of_freedom": 12.0,
            "low_95": -0.021,
            "high_95": -0.004,
            "lower_limit": -0.0194,
            "upper_limit": -0.0052,
            "decision": SIGN[sign],
            "chance": 0.504,
            "retention": 0.957,
            "retention_low_95": 0.931,
            "retention_high_95": 0.984,
            "retention_bounded": True,
            **other,
        }
        for rank, sign in decisions.items()
    ]
    frame = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
    empty = {"spectra": study.spectra.iloc[:0], "singular_values": study.singular_values.iloc[:0]}
    return replace(study, comparison=frame, **empty)


def told(study: StudyTables) -> dict[str, str]:
    return {finding.topic: finding.text for finding in findings(settings_data(checked(study))[0])}


@pytest.mark.parametrize(
    ("decisions", "where"),
    [
        ({1: "i", 2: "i", 4: "o", 8: "o", 16: "s"}, "lies between 4 and 16"),
        ({1: "i", 2: "i", 4: "s", 8: "s"}, "is 4 of those tried"),
        ({1: "o", 2: "o", 4: "s"}, "is at most 4"),
        ({1: "s", 2: "s"}, "is at most 1, the lowest tried"),
        ({1: "i", 2: "o", 4: "o"}, "is above 1, and no upper end is shown"),
        ({1: "i", 2: "i"}, "is none of those tried"),
        ({1: "o", 2: "o"}, "can’t be told"),
    ],
)
def test_both_ends_are_said_where_they_are_shown(
    small_study: StudyTables, decisions: dict[int, str], where: str
) -> None:
    text = told(compared(small_study, decisions))["Sufficient rank, LoRA on attention_qv"]
    start = "At a margin of 2.0 points, the sufficient rank of LoRA on attention_qv "
    assert text.startswith(f"{start}{where}: ")


def test_what_is_shown_is_listed(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "i", 2: "i", 4: "o", 8: "s", 16: "s", 32: "s"})
    said = told(study)
    assert said["Sufficient rank, LoRA on attention_qv"].endswith(
        ": ranks 8 to 32 are shown to lose less and ranks 1 and 2 are shown to lose more; "
        "rank 4 is left open (6 seeds, 2,588 test examples). At rank 8 it keeps "
        "95.7\u202f% of what full fine-tuning has above the commonest class (95\u202f% interval "
        "93.1\u202f% to 98.4\u202f%)."
    )
    assert "tested are sufficient ranks" in said["Noise"]
    assert "at most 5\u202f% of the time, one of these 2 at most 10\u202f%" in said["Noise"]
    assert "neither was tested" not in said["Noise"]


def test_a_rank_that_lost_runs_is_named(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "o", 4: "o", 16: "o", 64: "o"})
    frame = study.comparison.assign(lost=[1, 0, 1, 2])
    text = told(replace(study, comparison=frame))["Sufficient rank, LoRA on attention_qv"]
    assert "ranks 1 to 64 are left open" in text
    assert "ranks 1, 16 and 64 lost 4 runs, and can’t be shown to suffice, nor can lower" in text


def test_a_high_rank_that_lies_below_a_lower_one_is_named(small_study: StudyTables) -> None:
    study = compared(small_study, {1: "i", 8: "o", 128: "o"})
    frame = study.comparison.assign(
        upper_limit=[-0.03, -0.01, -0.025], score=[0.7, 0.76, 0.72], retention=[0.8, 0.97, 0.9]
    )
    text = told(replace(study, comparison=frame))["Sufficient rank, LoRA on attention_qv"]
    assert "by itself rank 128 would be shown to lose more" in text
    assert "At rank 8 it keeps 97.0" in text


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ("s", "is shown to lose less: what ranks suffice says nothing of ΔW"),
        ("i", "is shown to lose more"),
        ("o", "is not shown to lose less, nor more"),
    ],
)
def test_the_head_alone_is_tested_too(small_study: StudyTables, sign: str, words: str) -> None:
    study = compared(small_study, {1: "i", 4: "s"})
    head = compared(small_study, {0: sign}, method="head", target="")
    both = pd.concat([head.comparison, study.comparison], ignore_index=True)
    said = told(replace(study, comparison=both))
    assert said["The head alone, tested"] == (
        "At a margin of 2.0 points, a linear probe, without any ΔW, "
        f"{words} (6 seeds, 2,588 test examples)."
    )
    assert "one of these 4 at most 20\u202f%" in said["Noise"]


def test_to_keep_up_with_chance_is_said_to_be_nothing(small_study: StudyTables) -> None:
    none = {"retention_low_95": math.nan, "retention_high_95": math.nan, "retention_bounded": False}
    text = told(compared(small_study, {1: "o"}, **none))["Sufficient rank, LoRA on attention_qv"]
    assert text.endswith(
        " Full fine-tuning is not shown to lie above the commonest class: to keep up with it says "
        "nothing of the rank."
    )


def test_what_could_not_be_tested_is_said(small_study: StudyTables) -> None:
    said = told(compared(small_study, {1: "o", 4: "o"}, **NOT_TESTED))
    text = said["Sufficient rank, LoRA on attention_qv"]
    assert "can’t be tested: no rank has two seeds" in text
    assert "neither was tested here" in said["Noise"]


def test_nothing_is_said_where_nothing_was_compared(small_study: StudyTables) -> None:
    assert not any(topic.startswith("Sufficient") for topic in told(compared(small_study, {})))


def test_the_table_is_written_and_the_page_says_what_was_tested(
    thin_study: StudyTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "FIGURES", ())
    path = write_report(compared(thin_study, {1: "i", 4: "s"}), tmp_path)
    page = path.read_text(encoding="utf-8")
    assert "contains no significance test" not in page
    assert "-1.94" in page
    table = pd.read_csv(tmp_path / "tables" / "sufficient_rank.csv")
    assert list(table["decision"]) == ["inferior", "sufficient"]
    assert list(table["lower_limit"]) == [-0.0194] * 2
    assert "sufficient" in (tmp_path / "tables" / "sufficient_rank.tex").read_text()
    assert "contains no significance test" in write_report(thin_study, tmp_path).read_text()
    assert not (tmp_path / "tables" / "sufficient_rank.csv").exists()


@pytest.mark.parametrize(
    ("planned", "words"),
    [
        (11, "2 of the 11 planned runs have not ended: .*train.py.* goes on with the rest"),
        (8, "has 9 runs, and 8 were planned"),
    ],
)
def test_a_report_needs_every_planned_run(
    thin_study: StudyTables, tmp_path: Path, planned: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        write_report(replace(thin_study, planned=planned), tmp_path / "report")
    assert not (tmp_path / "report").exists()
