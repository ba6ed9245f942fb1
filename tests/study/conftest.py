"""A sweep of full fine-tuning that several tests start from, trained once."""

import shutil
from pathlib import Path

import pytest

from lowrank_study.config import compose
from lowrank_study.runs import RunStore
from lowrank_study.study.work import work

FULL = ("method=full", "method.learning_rate=5e-3")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `results` trains into once."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def results(trained: Path, tiny_overrides: list[str], tmp_path: Path) -> Path:
    """Return a copy of a folder with the sweep `two`: two seeds of full fine-tuning, measured."""
    if not (trained / "runs").is_dir():
        specs = [compose(*tiny_overrides, *FULL, f"seed={seed}") for seed in (0, 1)]
        RunStore(trained / "runs").plan("two", [[spec] for spec in specs], question="")
        work(trained, "two", device="cpu", tracker="none")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path
