"""Interleaved timings, what is made of them, and the files they end in."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("timing")


def test_contestants_take_turns_after_one_warm_up(timing: ModuleType) -> None:
    calls: list[str] = []
    times = timing.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=3,
        warm_up=lambda: calls.append("warm"),
    )
    assert calls == ["warm", *("a", "b") * 3]
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_a_quick_contestant_is_called_again_and_its_mean_taken(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    contestants = {"quick": takes(0.25), "slow": takes(7.0)}
    found = timing.interleaved(contestants, rounds=2, warm_up=takes(99.0), shortest=1.0)
    assert found == {"quick": [0.25, 0.25], "slow": [7.0, 7.0]}
    assert now[0] == 99.0 + 2 * (4 * 0.25 + 7.0)


def test_a_ratio_is_taken_round_by_round(timing: ModuleType) -> None:
    """A machine that is twice as slow in one round is so for both."""
    found = timing.ratio("r", [10.0, 20.0, 12.0], [1.0, 2.0, 1.0], at_least=11)
    assert (found.value, found.lowest, found.highest) == (10.0, 10.0, 12.0)
    assert found.verdict == "missed"


@pytest.mark.parametrize(
    ("bars", "verdict"),
    [
        ({"at_least": 5}, "met"),
        ({"at_least": 5.1}, "missed"),
        ({"at_most": 5}, "met"),
        ({"at_most": 4.9}, "missed"),
        ({}, ""),
    ],
)
def test_a_bar_is_met_or_missed_or_not_there(
    timing: ModuleType, bars: dict[str, float], verdict: str
) -> None:
    assert timing.figure("x", [5.0, 1.0, 9.0], unit="×", **bars).verdict == verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12345.6, "12,346"), (7.504, "7.5"), (0.01234, "0.0123"), (1e-7, "1.0e-07")],
)
def test_numbers_are_written_for_people(timing: ModuleType, value: float, text: str) -> None:
    ((_, median, spread, bar, verdict),) = timing.table(
        {"c": [timing.figure("x", [value], unit="")]}
    )
    assert (median.strip(), spread, bar, verdict) == (text, "", "", "")


def test_cases_not_run_now_keep_their_figures_and_where_they_came_from(
    timing: ModuleType, tmp_path: Path
) -> None:
    def figures(value: float) -> list[object]:
        return [timing.figure(f"speed {value}", [value], unit="×", at_least=2)]

    first, second = {"commit": "one"}, {"commit": "two"}
    cases = {"a": figures(1.0), "b": figures(3.0)}
    timing.write_results(tmp_path / "new", "bench", cases, provenance=first)
    timing.write_results(tmp_path / "new", "bench", {"b": figures(4.0)}, provenance=second)
    content = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [each["provenance"] for each in content.values()] == [first, second]
    assert content["a"]["figures"][0]["verdict"] == "missed"
    assert content["b"]["figures"][0]["value"] == 4.0
    text = (tmp_path / "new" / "bench.md").read_text()
    assert "| speed 1.0 | 1 × |  | ≥ 2 × | missed |\n\ncommit one" in text
    assert "| speed 4.0 | 4 × |  | ≥ 2 × | met |\n\ncommit two" in text
    assert "speed 3.0" not in text


def test_facts_tell_threads_and_load(timing: ModuleType) -> None:
    found = timing.facts(dtype="float64")
    assert found["dtype"] == "float64"
    assert "openblas" in found["threads"]
    assert float(found["load_before"]) >= 0
    assert {"commit", "numpy", "torch", "processor", "cores", "date"} <= found.keys()
