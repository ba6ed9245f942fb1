"""The report of a sequential sweep says how many runs it needed and why seeds stopped."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.sections import seeds
from lowrank_study.reporting.sections.noise import noise
from lowrank_study.reporting.study import StudyTables
from tests.reporting.conftest import compared, data_of, said


def sequential(study: StudyTables) -> StudyTables:
    """Return the study with ranks whose seeds stopped for every reason."""
    made = compared(study, {1: "i", 2: "o", 4: "o", 8: "o", 16: "o", 32: "s"})
    stops = ["decided", "unlikely to be decided", "out of reach", "no seeds left", "", "decided"]
    looks = [1, 4, 2, 6, 5, 1]
    return replace(made, comparison=made.comparison.assign(most_seeds=9, looks=looks, stop=stops))


def test_runs_and_reasons_are_told(small_study: StudyTables) -> None:
    data = data_of(sequential(small_study))
    told = said(seeds.section(data))
    configurations = len(data.runs[["method", "target", "adapter_rank"]].drop_duplicates())
    assert told["Runs"] == (
        f"6 looks at the tests needed {len(data.runs)} of {9 * configurations} runs, which 9 seeds "
        "of every configuration would have been."
    )
    assert told["Why seeds stopped"] == (
        "2 ranks passed a bound; LoRA on attention_qv at rank 2 stopped because more seeds were "
        "unlikely to decide; LoRA on attention_qv at rank 4 stopped because the sequence of tests "
        "can’t reach it any more; LoRA on attention_qv at rank 8 is open after all seeds; LoRA on "
        "attention_qv at rank 16 is open: rerun the sweep with this margin to add seeds."
    )
    assert "take no account of the seeds that were added" in " ".join(noise(data))


def test_an_ordinary_sweep_has_no_such_section(small_study: StudyTables) -> None:
    data = data_of(compared(small_study, {1: "i", 4: "s"}))
    assert seeds.section(data) is None
    assert "seeds that were added" not in " ".join(noise(data))


@pytest.mark.usefixtures("undrawn")
def test_the_looks_are_a_table_of_the_page(thin_study: StudyTables, tmp_path: Path) -> None:
    page = write_report(sequential(thin_study), tmp_path).read_text()
    assert "Where were seeds added?" in page
    table = pd.read_csv(tmp_path / "tables" / "seeds.csv")
    assert list(table["looks"]) == [1, 4, 2, 6, 5, 1]
    assert table["stop"][3] == "no seeds left"
