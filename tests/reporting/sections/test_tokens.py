"""What the report says about curves of loss against tokens."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.curves import CURVE_COLUMNS
from lowrank_study.errors import InputError
from lowrank_study.reporting.composition import compose
from lowrank_study.reporting.display import NARROW_SPACE
from lowrank_study.reporting.sections import tokens
from lowrank_study.reporting.study import StudyTables, checked
from lowrank_study.tasks.metric import NATS_PER_TOKEN
from tests.reporting.conftest import build_study, compared, data_of, said

STEPS = (10, 20, 30, 40)
FULL = (1.6, 1.3, 1.1, 1.0)
GAPS = {1: (0.0, 0.06, 0.2, 0.4), 4: (0.3, 0.2, 0.0, 0.0), 16: (0.0, 0.0, 0.0, 0.0)}


def losses(study: StudyTables, steps: tuple[int, ...] = STEPS, **schedule: float) -> StudyTables:
    """Turn a study into one of losses with curves."""
    rows = []
    for run_id, rank, seed in study.runs[["run_id", "adapter_rank", "seed"]].itertuples(
        index=False
    ):
        gap = (0.0,) * 4 if pd.isna(rank) else GAPS[rank]
        if pd.isna(rank):
            rows.append((run_id, 0, 0, 0.0, np.nan, 2.0))
        for step in steps:
            place = STEPS.index(step)
            share = schedule.get("share", 1 - step / 50)
            loss = FULL[place] + gap[place] + 0.01 * seed * (not pd.isna(rank))
            rows.append((run_id, step, 100 * step, step / 20, share, loss))
    curves = pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
    runs = study.runs.assign(chance=2.0, test_macro_f1=float("nan"))
    return replace(study, runs=runs, metric=NATS_PER_TOKEN, curves=curves)


@pytest.fixture
def study() -> StudyTables:
    made = losses(build_study(ranks=(1, 4, 16), targets=("attention_qv",), losses=False, layers=1))
    return compared(made, {1: "i", 4: "o", 16: "s"}, margin_share=0.1, margin=0.08)


@pytest.mark.usefixtures("undrawn")
def test_each_rank_is_said_to_fall_behind_or_not(study: StudyTables) -> None:
    section = tokens.section(data_of(study))
    assert section is not None
    text = said(section)["LoRA on attention_qv"]
    margin = f"10{NARROW_SPACE}% of full fine-tuning’s gain (0.100 nats per token)"
    assert f"Rank 1 is behind full fine-tuning by more than {margin} from 3,000" in text
    assert f"(95{NARROW_SPACE}% interval over 3 seeds: 3,000)" in text
    assert "Ranks 4 and 16 are not behind by more than the margin at the end" in text
    [table] = section.tables
    assert table.frame["onset"].tolist() == ["3,000", "only before 3,000", "not seen up to 4,000"]
    assert table.frame["interval"].tolist()[2] == "later than 4,000, or never"
    [figure] = section.figures
    assert len(figure.table.frame) == 5 + 3 * 4


@pytest.mark.usefixtures("undrawn")
def test_the_caption_follows_the_schedule(study: StudyTables) -> None:
    def caption(study: StudyTables) -> str:
        section = tokens.section(data_of(study))
        assert section is not None
        return section.figures[0].caption

    decays = f"to 60.0{NARROW_SPACE}% of its peak at step 20 of 40"
    assert decays in caption(study)
    assert "not what a run of that length would reach" in caption(study)
    assert "a pass over the training rows has 2,000" in caption(study)
    constant = compared(losses(study, share=1.0), {1: "i"}, margin_share=0.1, margin=0.08)
    assert "decays" not in caption(constant)


@pytest.mark.usefixtures("undrawn")
def test_one_evaluation_is_no_curve(study: StudyTables) -> None:
    assert tokens.section(data_of(losses(study, (40,)))) is None
    assert tokens.section(data_of(replace(study, curves=None))) is None


@pytest.mark.usefixtures("undrawn")
def test_without_a_tested_rank_the_curves_are_drawn_alone(study: StudyTables) -> None:
    section = tokens.section(data_of(replace(study, comparison=study.comparison.iloc[:0])))
    assert section is not None
    assert "Not tested" in said(section)
    assert not section.tables
    assert len(section.figures) == 1


def test_curves_of_other_runs_are_refused(study: StudyTables) -> None:
    assert study.curves is not None
    with pytest.raises(InputError, match="the curves table names run 'x'"):
        checked(replace(study, curves=study.curves.assign(run_id="x")))


def test_the_figure_is_drawn_and_part_of_the_report(study: StudyTables) -> None:
    figures = {figure.name: figure for figure in compose(study).figures}
    drawn = figures["score_against_tokens"]
    for svg in (drawn.wide, drawn.narrow):
        assert "predicted training tokens" in svg
        assert "minus full fine-tuning" in svg
