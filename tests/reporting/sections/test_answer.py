"""The answer says in at most five lines which rank suffices and how sure that is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import pytest

from lowrank_study.reporting.sections.answer import UNDECIDED, answer
from lowrank_study.reporting.study import StudyTables
from tests.reporting.conftest import compared, data_of, without_spectra

MakeStudy = Callable[..., StudyTables]


def both(study: StudyTables, *parts: tuple[str, dict[int, str]]) -> list[str]:
    tables = [compared(study, signs, target=target).comparison for target, signs in parts]
    return answer(data_of(replace(without_spectra(study), comparison=pd.concat(tables))))


def test_the_tests_come_first_then_their_certainty_then_the_scores(
    small_study: StudyTables,
) -> None:
    full = small_study.runs.loc[small_study.runs["method"] == "full", "test_score"].mean()
    lines = both(small_study, ("mlp", {1: "o", 8: "o"}), ("qv", {1: "i", 4: "o", 8: "s"}))
    assert lines[:3] == [
        "Rank 8 suffices for LoRA on qv; rank 1 does not and rank 4 is undecided.",
        "No rank is shown to suffice for LoRA on mlp; ranks 1 and 8 are undecided.",
        "A rank suffices if its test accuracy is less than 2.0 percentage points below full "
        "fine-tuning’s. For each method, the risk of wrongly calling a rank sufficient is at most "
        "5\u202f% (6 seeds, 2,588 test examples).",
    ]
    assert lines[3] == UNDECIDED
    assert lines[4].startswith(
        f"Test accuracy of all-MiniLM-L6-v2 on rotten_tomatoes: full fine-tuning {full:.3f} (95"
    )
    assert lines[4].endswith("chance 0.504.")
    assert len(lines) == 5


def test_methods_with_the_same_outcome_share_a_line(small_study: StudyTables) -> None:
    lines = both(small_study, ("mlp", {1: "s"}), ("qv", {1: "s"}))
    assert lines[0] == "Rank 1, the lowest tried, suffices for LoRA on mlp and LoRA on qv."


def test_many_outcomes_are_counted(small_study: StudyTables) -> None:
    signs = [{1: "s"}, {1: "o"}, {1: "i"}, {1: "i", 2: "s"}, {1: "i", 2: "o"}]
    lines = both(small_study, *((f"t{n}", each) for n, each in enumerate(signs)))
    assert len(lines) == 5
    assert lines[2] == "The section “Which rank suffices?” shows 3 other outcomes."
    assert lines[3].endswith(UNDECIDED)


def test_a_small_target_is_named_with_its_matrices(make_study: MakeStudy) -> None:
    study = make_study(ranks=(1, 4), targets=("attention_qv",), layers=1)
    tested = compared(study, {1: "s"}).comparison
    [line, *_] = answer(data_of(replace(study, comparison=tested)))
    assert line == "Rank 1, the lowest tried, suffices for LoRA on attention_qv (query and value)."


def test_a_probe_that_suffices_is_named(small_study: StudyTables) -> None:
    probe = compared(small_study, {0: "s"}, method="head", target="").comparison
    study = compared(small_study, {1: "s"})
    runs = study.runs.assign(method=study.runs["method"].replace("full", "head"))
    both = pd.concat([probe, study.comparison])
    lines = answer(data_of(replace(without_spectra(study), runs=runs, comparison=both)))
    assert "a linear probe, which also suffices, 0." in lines[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"full": False}, "No run of full fine-tuning is done, so no rank can be compared"),
        ({"ranks": ()}, "No adapter run with a rank is done"),
        ({"seeds": 1}, "Full fine-tuning has one seed, so the data do not show"),
        ({}, "Rank 16 is the lowest of LoRA on all_linear with a mean inside full"),
    ],
)
def test_without_a_test_the_answer_says_why(
    make_study: MakeStudy, changes: dict[str, bool | int | Sequence[int]], words: str
) -> None:
    lines = answer(data_of(without_spectra(make_study(**changes))))
    assert lines[0].startswith(words)
    assert len(lines) <= 5


def test_intervals_are_not_called_a_test(whole_study: StudyTables) -> None:
    lines = answer(data_of(without_spectra(whole_study)))
    assert lines[1].startswith("No rank of LoRA on attention_qv has a mean inside full")
    assert lines[2].startswith("The report tests no difference (3 seeds)")
