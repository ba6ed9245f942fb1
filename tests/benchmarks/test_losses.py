"""The simulation of losses: intervals cover other documents and seeds, those over seeds do not."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("losses")


@pytest.mark.parametrize("tail", ["normal", "lognormal", "2.5"])
def test_intervals_of_losses_cover(losses: ModuleType, tail: str) -> None:
    documents = losses.Documents(name="", count=300, tail=tail, is_one_sided=False)
    found = losses.outcome(documents, 5, 400)
    # Three standard errors of 400 studies are 3 points.
    assert found.difference >= 0.90
    assert found.score >= 0.90
    assert found.retention >= 0.91
    assert found.wrongly_sufficient <= 0.14
    assert found.wrongly_inferior <= 0.08
    assert found.difference_over_seeds < 0.93
