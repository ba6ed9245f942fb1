"""A stopped benchmark measures only the rows that are missing."""

import importlib
from pathlib import Path

import pytest


def test_rows_of_the_same_code_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    module = importlib.import_module("rows")
    file, measured = tmp_path / "new" / "growth.csv", []

    def row(at: int) -> None:
        def measure() -> dict[str, float]:
            measured.append(at)
            return {"seconds": 0.1 * at}

        found = rows.measured({"axis": "rank", "at": at}, measure)
        assert found["seconds"] == pytest.approx(0.1 * at)

    rows = module.Rows(file)
    row(1)
    row(8)
    row(1)
    rows = module.Rows(file)  # after a stop
    row(8)
    row(32)
    assert measured == [1, 8, 32]
    assert list(rows.frame["at"]) == [1, 8, 32]
    monkeypatch.setattr(module, "_code", lambda: "12345678")  # not a number
    rows = module.Rows(file)
    row(1)
    assert measured == [1, 8, 32, 1]
    assert list(module.Rows(file).frame["at"]) == [1]
