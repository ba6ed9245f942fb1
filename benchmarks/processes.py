"""Train in separate processes: runs by the suite, and the same runs by PEFT and the Trainer."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing

from lowrank_study.spec import RunSpec, to_mapping
from lowrank_study.sweeps.fork_server import environment

HERE = Path(__file__).parent


def train_here(specs: Sequence[RunSpec], *, threads: int = 1) -> dict[str, Any]:
    """Train runs together in one process; see `train_here.py` for the result."""
    with tempfile.TemporaryDirectory() as folder:
        runs = written(specs, Path(folder))
        command = [sys.executable, str(HERE / "train_here.py"), str(runs), str(threads)]
        surroundings = environment(_threads(threads))
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=surroundings)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Compare steps with their floor, in a process like those that train; see `steps.py`."""
    command = [sys.executable, str(HERE / "steps.py"), str(rounds), *["--quick"] * quick]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment({}))
    return [timing.Figure(**figure) for figure in json.loads(done.stdout.splitlines()[-1])]


def peft_loop(
    specs: Sequence[RunSpec], *options: str, threads: int | None = None
) -> list[dict[str, Any]]:
    """Train runs one after the other with the Trainer; see `peft_loop.py` for the result."""
    with tempfile.TemporaryDirectory() as folder:
        runs, out = written(specs, Path(folder)), Path(folder) / "out.json"
        command = [sys.executable, str(HERE / "peft_loop.py"), str(runs), str(out), *options]
        surroundings = quiet() | _threads(threads)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=surroundings)
        found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def written(specs: Sequence[RunSpec], folder: Path) -> Path:
    """Write runs in the format that both programs read."""
    path = folder / "runs.json"
    path.write_text(json.dumps([to_mapping(spec) for spec in specs]))
    return path


def quiet() -> dict[str, str]:
    """Return the environment of a process that shows no progress bars."""
    return {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _threads(threads: int | None) -> dict[str, str]:
    if threads is None:
        return {}
    return {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}
