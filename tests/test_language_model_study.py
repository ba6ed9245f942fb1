"""The smallest study of a language model, from training to the report."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.test_commands import ROOT, run, train

LEARNT = 0.15
"""Least nats per token by which the loss on new problems must fall."""


@pytest.mark.slow
def test_a_language_model_learns_and_is_reported(tmp_path: Path) -> None:
    results = f"results={tmp_path}"
    trained = train("-m", "experiment=lm_smoke", results)
    assert trained.returncode == 0, trained.stderr
    records = [json.loads(f.read_text()) for f in (tmp_path / "runs").glob("*/record.json")]
    [base] = [record["base"] for record in records if "base" in record]
    assert len(records) == 2
    for record in records:
        assert record["test"]["nats_per_token"] < base["nats_per_token"] - LEARNT
        assert record["test"]["answers"] == len(record["test_sets"]) > 0
    report = run(str(ROOT / "analysis" / "report.py"), "sweep=lm_smoke", results)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert "nats per token" in page
    assert "the base model" in page
    assert "Loss and exact match of each test set against adapter rank" in page
    tables = [
        pd.read_csv(tmp_path / "report" / "tables" / f"test_sets_{name}.csv")
        for name in ("nats_per_token", "exact_match")
    ]
    for table in tables:
        assert set(table["test_set"]) == set(records[0]["test_sets"])
        assert table["difference"].notna().sum() == len(records[0]["test_sets"])
    assert "accuracy" not in page
    assert "chance" not in page
