"""A report follows the metric of its task: a loss has other limits, units and directions."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lowrank_study.errors import InputError
from lowrank_study.reporting.composition import Report, compose
from lowrank_study.reporting.display import NARROW_SPACE
from lowrank_study.reporting.sections import sufficient_rank
from lowrank_study.reporting.study import StudyTables
from lowrank_study.tasks.metric import ACCURACY, NATS_PER_TOKEN
from tests.reporting.conftest import compared, data_of, said

pytestmark = pytest.mark.usefixtures("undrawn")


def as_loss(study: StudyTables, base: float = float("nan")) -> StudyTables:
    """Turn accuracies into losses between 3 and 4 nats; `base` is that of the base model."""
    columns = ["validation_score", "test_score", "train_score"]
    turned = {name: 4 - study.runs[name] for name in columns}
    runs = study.runs.assign(**turned, chance=base, test_macro_f1=float("nan"))
    return replace(study, runs=runs, metric=NATS_PER_TOKEN, rates=None, truncation=None)


def told(report: Report) -> str:
    sections = report.parts[0].sections
    findings = [finding.text for section in sections for finding in section.findings]
    return " ".join([*report.parts[0].answer, *findings])


def test_a_loss_is_reported_in_its_unit(make_study: Callable[..., StudyTables]) -> None:
    study = as_loss(make_study())
    text = told(compose(study))
    assert "test loss of 3." in text
    assert "nats per token" in text
    assert "percentage" not in text
    assert "chance" not in text
    data = data_of(study)
    assert data.scores["test_standard_error"].isna().all()
    shown = {column.name for table in compose(study).shown_tables for column in table.columns}
    assert not shown & {"test_macro_f1", "test_standard_error", "chance"}


def test_a_loss_is_compared_with_the_base_model(make_study: Callable[..., StudyTables]) -> None:
    study = as_loss(make_study(), base=3.4)
    text = told(compose(study))
    assert "nats per token below the base model (3.400, before fine-tuning)" in text
    assert "the base model 3.400" in text
    assert "chance" not in text
    worse = told(compose(as_loss(make_study(), base=3.21)))
    assert "Some runs score no better than the base model" in worse


def test_a_margin_that_is_a_share_is_named_with_its_size(
    make_study: Callable[..., StudyTables],
) -> None:
    study = as_loss(make_study(), base=3.4)
    decisions = {1: "i", 4: "o", 64: "s"}
    study = compared(study, decisions, margin_share=0.1, margin=0.0183, score=3.23, chance=3.4)
    found = sufficient_rank.section(data_of(study))
    assert found is not None
    text = " ".join([*said(found).values(), *found.reading])
    margin = f"10{NARROW_SPACE}% of full fine-tuning’s gain (0.018 nats per token)"
    assert f"Rank 64 is shown to lose less than {margin}" in text
    assert "Rank 64 keeps 95.7" in text
    assert "lead over the base model is the loss of the base model minus the adapter’s" in text
    assert "chance" not in text
    assert "chance" not in found.tables[0].note


def test_the_axis_of_a_loss_has_its_unit() -> None:
    assert NATS_PER_TOKEN.axis_label == "loss (nats per token)"
    assert ACCURACY.axis_label == "accuracy"


@pytest.mark.parametrize(
    ("given", "margin"),
    [("auto", (0.0, 0.1)), ("5%", (0.0, 0.05)), (0.02, (0.02, 0.0)), ("1.5", (1.5, 0.0))],
)
def test_a_margin_is_a_number_or_a_share_of_the_gain(
    given: float | str, margin: tuple[float, float]
) -> None:
    read = NATS_PER_TOKEN.read_margin(given)
    assert (read.points, read.share) == margin


@pytest.mark.parametrize("given", ["0%", "100%", "much", -1, "nan", [1]])
def test_other_margins_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"give a number above 0 \(nats per token\).*10%"):
        NATS_PER_TOKEN.read_margin(given)


def test_the_lowest_loss_is_the_best(make_study: Callable[..., StudyTables]) -> None:
    rows = data_of(as_loss(make_study())).chosen.to_dict("records")
    best = data_of(as_loss(make_study())).best(rows)
    assert best["mean_test_score"] == min(row["mean_test_score"] for row in rows)


def test_a_score_outside_its_limits_is_refused(make_study: Callable[..., StudyTables]) -> None:
    study = as_loss(make_study())
    study.runs.loc[0, "test_score"] = -0.5
    with pytest.raises(InputError, match=r"is -0\.5: give a number from 0 to inf"):
        compose(study)


def test_a_score_is_written_with_its_unit() -> None:
    assert NATS_PER_TOKEN.in_words(1.23456) == "1.235 nats per token"
    assert ACCURACY.in_words(0.5) == "0.500"
