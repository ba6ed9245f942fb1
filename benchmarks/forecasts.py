"""Compare the forecast of a sweep's time with the time that it takes.

`forecasts.csv` has a row for each sweep, which is written as soon as the sweep has ended.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import timing
from processes import quiet
from rows import Rows
from steps import hardware, precisions

FORECAST = (
    "import sys; from lowrank_study.config.grids import planned_configs;"
    "from lowrank_study.sweeps.forecast import forecasts;"
    "[found] = forecasts({'': planned_configs(*sys.argv[1:])}).values();"
    "print(found.mean, found.least, found.most)"
)
TRAIN = (
    "import sys; from lowrank_study.config.grids import planned_configs;"
    "from lowrank_study.sweeps.sweep import sweep_of;"
    "print(len(sweep_of(planned_configs(*sys.argv[1:]))))"
)
SIZE = ("task.train_size=500", "task.validation_size=200", "task.test_size=200")
MIXED = ("experiment=rank_sweep", "seed=0", "method=full,lora", "method.rank=1,8")
SWEEPS = {
    "one seed of make study": ("experiment=first_study", "seed=0"),
    "a race for learning rates": (
        *(*MIXED, "task=reuters_r52", "task.max_length=32", *SIZE),
        "tuning=race",
    ),
    "long texts": (*MIXED, "task=newsgroups", *SIZE, "task.train_size=200"),
}
STUDY = ("experiment=first_study",)
FEW = (
    "task=rotten_tomatoes",
    *("task.train_size=64", "task.validation_size=32", "task.test_size=32"),
)


def forecast_errors(folder: Path, rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Forecast and train sweeps in processes of their own, and compare the times."""
    rows = Rows(folder / "forecasts.csv")
    cases = [
        (name, precision, [*options, f"trainer.precision={precision}", *(FEW if quick else ())])
        for precision in precisions()
        for name, options in SWEEPS.items()
    ]
    if not quick:
        fast = precisions()[-1]
        cases.append(("make study", fast, [*STUDY, f"trainer.precision={fast}"]))
    figures = []
    for name, precision, options in cases:
        found = [
            rows.measured(
                {"sweep": name, "precision": precision, "round": number},
                lambda options=options: _measured(options),
            )
            for number in range(rounds)
        ]
        title = f"forecast of {name}, {precision} ({hardware(precision)})"
        took = [row["measured_seconds"] for row in found]
        ratios = [row["predicted_seconds"] / row["measured_seconds"] for row in found]
        errors = [100 * abs(ratio - 1) for ratio in ratios]
        figures += [
            timing.figure(f"{title}: predicted / measured time", ratios, unit="×"),
            timing.figure(f"{title}: error", errors, unit="%", at_most=20.0),
            *_range(title, found),
            timing.figure(f"{title}: {found[0]['runs']} runs took", took, unit="s"),
        ]
    return figures


def _range(title: str, found: Sequence[dict[str, float]]) -> list[timing.Figure]:
    """Return the range of a forecast of simulated races, relative to the measured time."""
    if all(row["least_seconds"] == row["most_seconds"] for row in found):
        return []
    return [
        timing.figure(
            f"{title}: {end} predicted / measured time",
            [row[f"{end}_seconds"] / row["measured_seconds"] for row in found],
            unit="×",
        )
        for end in ("least", "most")
    ]


def _measured(options: Sequence[str]) -> dict[str, float]:
    """Return the predicted and the measured seconds of a sweep, and its reported runs."""
    with tempfile.TemporaryDirectory() as results:
        options = [*options, f"results={results}"]
        predicted, least, most = map(float, _last_line(FORECAST, options).split())
        start = time.perf_counter()
        runs = int(_last_line(TRAIN, options))
        seconds = time.perf_counter() - start
    return {
        "runs": runs,
        "predicted_seconds": predicted,
        "least_seconds": least,
        "most_seconds": most,
        "measured_seconds": seconds,
    }


def _last_line(code: str, options: Sequence[str]) -> str:
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet(), text=True)
    return done.stdout.splitlines()[-1]
