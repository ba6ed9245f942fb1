"""Compare the forecast of a sweep's time with the time that it takes, in each precision."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timing
from processes import written
from steps import hardware, precisions

from lowrank_study.config.grids import planned_configs
from lowrank_study.spec import RunSpec

FORECAST = (
    "import json, sys; from pathlib import Path; from lowrank_study.spec import from_mapping;"
    "from lowrank_study.sweeps.forecast import forecast;"
    "specs = [from_mapping(m) for m in json.loads(Path(sys.argv[1]).read_text())];"
    "print(forecast(specs, results=Path(sys.argv[2])))"
)
STUDY = ("experiment=first_study",)
FEW_RUNS = (
    *("experiment=rank_sweep", "seed=0", "method.rank=2"),
    *("task.train_size=64", "task.validation_size=32", "task.test_size=32"),
)


def forecast_errors(
    rounds: int, *, quick: bool, train: Callable[[Sequence[RunSpec]], object]
) -> list[timing.Figure]:
    """Forecast and train `make study` in processes of their own, and compare the times."""
    figures = []
    for precision in precisions():
        options = FEW_RUNS if quick else STUDY
        configs = planned_configs(*options, f"trainer.precision={precision}")
        specs = [config.spec for config in configs]
        title = f"forecast of {configs[0].sweep}, {precision} ({hardware(precision)})"
        ratios, took = [], []
        for _ in range(rounds):
            predicted = predicted_seconds(specs)
            start = time.perf_counter()
            train(specs)
            took.append(time.perf_counter() - start)
            ratios.append(predicted / took[-1])
        errors = [100 * abs(ratio - 1) for ratio in ratios]
        figures += [
            timing.figure(f"{title}: predicted / measured time", ratios, unit="×"),
            timing.figure(f"{title}: error", errors, unit="%", at_most=20.0),
            timing.figure(f"{title}: {len(specs)} runs took", took, unit="s"),
        ]
    return figures


def predicted_seconds(specs: Sequence[RunSpec]) -> float:
    """Return the forecast of a fresh process for an empty results folder."""
    with tempfile.TemporaryDirectory() as folder:
        runs, results = written(specs, Path(folder)), Path(folder) / "results"
        command = [sys.executable, "-c", FORECAST, str(runs), str(results)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(done.stdout.splitlines()[-1])
