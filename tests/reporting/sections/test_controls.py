"""Controls and ranks along training: tables, figure and sentences."""

from dataclasses import replace

import numpy as np
import pytest

from lowrank_study.reporting.sections import controls, functional_rank, training
from lowrank_study.reporting.sections.controls import control_overlap, control_ranks, training_ranks
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.study import StudyTables
from tests.reporting.conftest import controls_of, data_of, said, truncation_of


@pytest.fixture
def data(thin_study: StudyTables) -> SettingData:
    return data_of(replace(thin_study, controls=controls_of(thin_study)))


def test_controls_are_condensed_inside_the_layers(data: SettingData) -> None:
    ranks = control_ranks(data).set_index(["control", "role"])
    assert ranks.loc[("noise", ""), "n"] == 4
    assert ranks.loc[("noise", "query"), "n"] == 2
    assert ranks["median_energy_rank_90"].max() == 190
    overlap = control_overlap(data).set_index(["control", "role", "directions"])
    assert overlap.loc[("seeds", "", 2), "median_similarity_right"] == pytest.approx(0.6)
    steps = training_ranks(data).set_index(["step", "role"])
    assert steps.loc[(1, ""), ["n", "resolvable"]].tolist() == [4, 2]
    assert np.isnan(steps.loc[(1, "value"), "median_energy_rank_90"])


def test_controls_are_described_and_tabled(data: SettingData) -> None:
    section = controls.section(data)
    found = said(section)
    assert "10 (1) for full fine-tuning, 190 (19) for Gaussian noise" in found["Ranks of controls"]
    assert "150 (15) for weight decay alone" in found["Ranks of controls"]
    assert (
        "For the first direction it is 0.300 and 0.200 (chance: 0.003 and 0.002; two noises: 0.003 "
        "and 0.002)."
    ) in found["Overlap of seeds"]
    assert section is not None
    assert [table.name for table in section.tables] == ["control_ranks", "control_overlap"]


def test_the_rank_along_training_is_described_and_drawn(data: SettingData) -> None:
    section = training.section(data)
    text = said(section)["Rank during training"]
    assert "is 100 at step 1 and 25 at step 4. Its lowest value is 25 at step 4." in text
    assert section is not None
    frame = section.figures[0].table.frame
    assert set(frame["step"]) == {1, 2, 4}
    assert (frame["role"] == "").sum() == 3  # the rows that the sentence reads


def test_a_study_without_them_says_nothing_of_them(thin_study: StudyTables) -> None:
    empty = truncation_of(thin_study).iloc[:0]
    for study in (thin_study, replace(thin_study, truncation=empty)):
        for part in (functional_rank, training, controls):
            assert part.section(data_of(study)) is None
