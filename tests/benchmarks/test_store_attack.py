"""The store under attack by real processes: a short form of `benchmarks/store_attack.py`."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lowrank_study.config.run import compose
from lowrank_study.runs import leases

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def store_attack(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("store_attack")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which processes are stopped")
def test_stops_kills_clocks_and_equal_host_names_leave_only_whole_runs(
    store_attack: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HEARTBEAT_SECONDS", "STALE_SECONDS"):  # which the attack makes shorter
        monkeypatch.setattr(leases, name, getattr(leases, name))
    monkeypatch.setattr(store_attack, "WORKERS", 4)
    monkeypatch.setattr(store_attack, "PLANNERS", 2)
    specs = [compose("method.rank=2", f"seed={seed}") for seed in range(8)]
    counts = store_attack.attack_store(specs, stops=10, seed=1, folder=tmp_path)
    assert counts["stops"] >= 10
    assert counts["attempts done"] > 0
    wrong = ("stuck runs", "wrong files", "left-overs", "crashed", "unexpected lines")
    assert {name: counts[name] for name in wrong} == dict.fromkeys(wrong, 0)
