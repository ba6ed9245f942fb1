"""Run `analysis/check_claims.py` as users do."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.claims.measures.serving import measure_serving

ROOT = Path(__file__).parents[1]


def check(*overrides: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "analysis" / "check_claims.py"), *overrides],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_the_ledger_and_one_line(tmp_path: Path) -> None:
    done = check(f"out={tmp_path / 'claims'}", f"results={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert " claims: " in done.stdout
    frame = pd.read_csv(tmp_path / "claims" / "claims.csv")
    assert f"{(frame['verdict'] == 'fails').sum()} fail" in done.stdout
    assert frame["why"].notna().all()


@pytest.mark.slow
def test_a_sweep_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    done = check("sweep=none_such", f"results={tmp_path}", f"out={tmp_path / 'claims'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "claims").exists()


@pytest.mark.slow
def test_every_way_to_serve_is_timed() -> None:
    rounds = measure_serving(rounds=2)
    assert set(rounds.columns) == {"base", "merged", "unmerged", "mixed", "loop", "copies"}
    assert len(rounds) == 2
    assert (rounds > 0).all(axis=None)
