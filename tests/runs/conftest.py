"""A store and specifications for its tests."""

from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec


@pytest.fixture(scope="module")
def specs() -> list[RunSpec]:
    return [compose(f"seed={seed}") for seed in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def plan(store: RunStore, specs: list[RunSpec]) -> list[str]:
    return store.plan("s", [[spec] for spec in specs], question="Why?")


def commit(store: RunStore, run_id: str, status: str = "done", **files: str) -> None:
    lease = store.lease([run_id])
    assert lease is not None
    for name, content in files.items():
        (lease.folder / "checkpoint").mkdir(exist_ok=True)
        (lease.folder / "checkpoint" / name).write_text(content)
    lease.commit(status=status, record={"message": "because"})
