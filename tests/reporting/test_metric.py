"""A report follows the metric of its task: a loss has other limits, units and directions."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lowrank_study.errors import InputError
from lowrank_study.reporting.composition import Report, compose
from lowrank_study.reporting.study import StudyTables
from lowrank_study.tasks.metric import Metric
from tests.reporting.conftest import data_of

pytestmark = pytest.mark.usefixtures("undrawn")
LOSS = Metric(
    name="loss",
    label="loss",
    higher_is_better=False,
    lowest=0.0,
    highest=float("inf"),
    is_binary=False,
    points="nats per token",
    points_per_unit=1,
    margin="10%",
    chance_name=None,
    baseline="the base model",
    chance="before fine-tuning",
)


def as_loss(study: StudyTables) -> StudyTables:
    """Turn accuracies into losses between 3 and 4 nats."""
    columns = ["validation_score", "test_score", "train_score"]
    turned = {name: 4 - study.runs[name] for name in columns}
    runs = study.runs.assign(**turned, chance=float("nan"), test_macro_f1=float("nan"))
    return replace(study, runs=runs, metric=LOSS, rates=None, truncation=None)


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


def test_the_lowest_loss_is_the_best(make_study: Callable[..., StudyTables]) -> None:
    rows = data_of(as_loss(make_study())).chosen.to_dict("records")
    best = data_of(as_loss(make_study())).best(rows)
    assert best["mean_test_score"] == min(row["mean_test_score"] for row in rows)


def test_a_score_outside_its_limits_is_refused(make_study: Callable[..., StudyTables]) -> None:
    study = as_loss(make_study())
    study.runs.loc[0, "test_score"] = -0.5
    with pytest.raises(InputError, match=r"is -0\.5: give a number from 0 to inf"):
        compose(study)
