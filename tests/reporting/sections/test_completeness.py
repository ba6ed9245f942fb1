"""The report says first what is missing from it."""

from dataclasses import replace

import numpy as np

from lowrank_study.reporting.sections.completeness import completeness
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.study import StudyTables, checked


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
