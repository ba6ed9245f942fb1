"""The report shows each test set by loss and by answers, and says what intervals exclude."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.answers.test_sets import SET_COLUMNS, SetScores
from lowrank_study.reporting.display import NARROW_SPACE
from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.sections import test_sets
from lowrank_study.reporting.study import StudyTables
from lowrank_study.tasks.metric import NATS_PER_TOKEN, Metric
from lowrank_study.tasks.scoring import ANSWER_SCORE, EXACT_MATCH
from tests.reporting.conftest import compared, data_of, said

Interval = tuple[float, float]
INTERVAL = f"The 95{NARROW_SPACE}% interval of the difference between LoRA on attention_qv and"


def set_scores(
    metric: Metric,
    intervals: dict[int, Interval],
    *,
    names: Sequence[str] = ("held-out", "known"),
    gain_low: float = 0.4,
    full: bool = True,
) -> SetScores:
    """Make up the scores of full fine-tuning and ranks with these intervals on each set."""
    setting = {"task": "rotten_tomatoes", "model": "all-MiniLM-L6-v2", "n": 3, "base": 0.9}
    setting |= {"mean": 0.25, "sd": 0.01, "low_95": 0.23, "high_95": 0.27}
    setting["cut_off"] = 0.1 if metric.points_per_unit == 100 else float("nan")
    rows = []
    for name in names:
        if full:
            rows.append({**setting, "method": "full", "test_set": name})
        for rank, (low, high) in intervals.items():
            ends = {"difference_low_95": low, "difference_high_95": high, "gain_low_95": gain_low}
            adapter = {"method": "lora", "target": "attention_qv", "adapter_rank": rank}
            pairs = {"pairs": 3, "examples": 40, "difference": (low + high) / 2}
            rows.append({**setting, **adapter, "test_set": name, **pairs, **ends})
    return SetScores(metric=metric, table=pd.DataFrame(rows, columns=list(SET_COLUMNS)))


def with_sets(study: StudyTables, *scores: SetScores) -> StudyTables:
    return replace(study, test_sets=scores)


RANKS = {1: (-0.4, -0.2), 2: (-0.3, -0.1), 4: (-0.1, 0.1), 8: (0.1, 0.2)}


@pytest.mark.usefixtures("undrawn")
def test_each_set_is_told_by_loss_and_by_answers(small_study: StudyTables) -> None:
    scores = (set_scores(NATS_PER_TOKEN, RANKS), set_scores(EXACT_MATCH, {1: (-0.4, 0.0)}))
    found = test_sets.section(data_of(with_sets(small_study, *scores)))
    assert found is not None
    assert found.title == "Loss and exact match of each test set against adapter rank"
    assert said(found) == {
        **dict.fromkeys(
            ["Loss, held-out", "Loss, known"],
            "Full fine-tuning has a mean loss of 0.250 (3 seeds, 40 test examples); the base "
            f"model has 0.900. {INTERVAL} full fine-tuning lies on the worse side of 0 at ranks 1 "
            "and 2, contains 0 at rank 4 and lies on the better side of 0 at rank 8.",
        ),
        **dict.fromkeys(
            ["Exact match, held-out", "Exact match, known"],
            "Full fine-tuning has a mean exact match of 0.250 (3 seeds, 40 test examples); the "
            f"base model has 0.900. {INTERVAL} full fine-tuning contains 0 at rank 1.",
        ),
    }
    [loss, answers] = found.tables
    names = [[column.name for column in table.columns] for table in (loss, answers)]
    assert "cut_off" in names[1]
    assert "cut_off" not in names[0]
    kinds = [{c.kind for c in t.columns if c.name == "difference"} for t in (loss, answers)]
    assert kinds == [{"decimal"}, {"points"}]
    assert "positive where the adapter has less" in loss.note
    assert "positive where the adapter has more" in answers.note


@pytest.mark.usefixtures("undrawn")
def test_a_rank_that_matches_what_learnt_nothing_shows_nothing(small_study: StudyTables) -> None:
    scores = set_scores(EXACT_MATCH, {4: (-0.1, 0.1)}, names=[""], gain_low=-0.01)
    found = test_sets.section(data_of(with_sets(small_study, scores)))
    text = said(found)["Exact match"]
    assert "It is not shown to be above the base model, so a rank that matches it shows" in text
    assert found is not None
    assert found.title == "Exact match against adapter rank"
    assert "test_set" not in {column.name for column in found.tables[0].columns}


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_compared_is_said(small_study: StudyTables) -> None:
    nan = float("nan")
    scores = set_scores(ANSWER_SCORE, {4: (nan, nan)}, names=["a"], gain_low=nan)
    text = said(test_sets.section(data_of(with_sets(small_study, scores))))["Answer score, a"]
    assert text.endswith("and full fine-tuning can’t be given at rank 4.")
    alone = set_scores(EXACT_MATCH, {}, names=["a"])
    assert "interval" not in str(said(test_sets.section(data_of(with_sets(small_study, alone)))))
    without = set_scores(EXACT_MATCH, {4: (nan, nan)}, names=["a"], full=False, gain_low=nan)
    text = said(test_sets.section(data_of(with_sets(small_study, without))))["Exact match, a"]
    assert text == (
        "No run of full fine-tuning is done, so nothing is compared with it; the base model has "
        "0.900."
    )


@pytest.mark.usefixtures("undrawn")
def test_only_a_tested_study_refers_to_the_test(small_study: StudyTables) -> None:
    study = with_sets(small_study, set_scores(NATS_PER_TOKEN, RANKS))
    tested = with_sets(compared(small_study, {1: "i", 4: "s"}), *study.test_sets)
    for each, is_tested in ((study, False), (tested, True)):
        found = test_sets.section(data_of(each))
        assert found is not None
        assert ("Which rank suffices?" in " ".join(found.reading)) == is_tested


def test_a_study_without_sets_or_answers_has_no_such_section(small_study: StudyTables) -> None:
    assert test_sets.section(data_of(small_study)) is None
    elsewhere = set_scores(NATS_PER_TOKEN, RANKS)
    elsewhere.table["task"] = "another"
    assert test_sets.section(data_of(with_sets(small_study, elsewhere))) is None


def test_figure_and_tables_are_written(thin_study: StudyTables, tmp_path: Path) -> None:
    study = with_sets(
        thin_study, set_scores(NATS_PER_TOKEN, RANKS), set_scores(EXACT_MATCH, {1: (-0.4, 0.0)})
    )
    page = write_report(study, tmp_path).read_text()
    svg = (tmp_path / "figures" / "test_sets.svg").read_text()
    assert all(text in svg for text in ("test loss (nats per token)", "test exact match", "known"))
    assert "<summary>Table: Exact match by test set</summary>" in page
    loss = pd.read_csv(tmp_path / "tables" / "test_sets_nats_per_token.csv")
    assert loss["difference_low_95"].tolist()[1:5] == [low for low, _ in RANKS.values()]
    assert (tmp_path / "tables" / "test_sets_exact_match.tex").is_file()
    assert r"\input{tables/test_sets_exact_match.tex}" in (tmp_path / "report.tex").read_text()
