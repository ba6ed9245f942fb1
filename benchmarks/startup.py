"""Measure how long commands take to start: until training begins, for help, for an error.

    python benchmarks/startup.py [--rounds 7] [--quick] [--out FOLDER]

The first training step is that of `make study`, with an evaluation after each step. Its learning
curve is written after the first one, so the time includes the evaluation of 60 texts. One untimed
round comes first: files are then in memory, and the model and the tokens in the cache.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import Figure, facts, figure, table, write_results

from lowrank_study.config.grids import planned_configs
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
STUDY = ("experiment=first_study", "task.validation_size=60", "trainer.evaluations=63")
SHORT = {
    "--help": ("experiments/train.py", "--help"),
    "a setting that does not exist": ("experiments/train.py", "method.rnak=4"),
    "a value that is not valid": ("experiments/train.py", "method.rank=0"),
    "a file that does not exist": ("experiments/train.py", "task=file", "task.source=absent.csv"),
    "a column that does not exist": (
        *("experiments/train.py", "task=file", "task.source={folder}/reviews.csv"),
        "task.label_column=stars",
    ),
    "show_progress.py": ("analysis/show_progress.py", "sweep=planned", "results={folder}/planned"),
}
"""What is measured → script and arguments."""
FIRST_STEP, SHORT_ANSWER = 6.0, 1.5
"""Targets in seconds."""
_LIMIT_SECONDS = 120.0


def seconds_to_first_step(results: Path) -> float:
    """Start the study, wait until its first learning curve is written, and stop it."""
    command = [sys.executable, "experiments/train.py", *STUDY, "tracker=jsonl"]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, f"results={results}"], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as driver:
        while not _has_begun(results):
            if driver.poll() is not None or time.perf_counter() - start > _LIMIT_SECONDS:
                raise RuntimeError("the study ended before its first step, or takes minutes")
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        driver.terminate()
        driver.wait()
    shutil.rmtree(results)
    return seconds


def _has_begun(results: Path) -> bool:
    return any(curve.stat().st_size for curve in results.glob("runs/.running/*/*/run/*.jsonl"))


def seconds_of(*arguments: str) -> float:
    """Run a command to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - start


def measured(rounds: int, folder: Path) -> dict[str, list[Figure]]:
    """Return the figures of all cases, measured in turn."""
    (folder / "reviews.csv").write_text("text,rating\ngood,1\nbad,0\n")
    specs = [config.spec for config in planned_configs("experiment=first_study")]
    store = RunStore(runs_folder(folder / "planned"))
    store.plan("planned", [[spec] for spec in specs], question="")
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        found = {"the first training step of `make study`": seconds_to_first_step(folder / "r")}
        for what, arguments in SHORT.items():
            found[what] = seconds_of(*(each.format(folder=folder) for each in arguments))
        for what, value in found.items():
            seconds.setdefault(what, []).append(value)
            print(f"{what}: {value:.2f} s", file=sys.stderr)
    targets = dict.fromkeys(SHORT, SHORT_ANSWER)
    figures = [
        figure(what, values[1:], unit="s", at_most=targets.get(what, FIRST_STEP))
        for what, values in seconds.items()
    ]
    return {"start": figures}


def main() -> None:
    """Measure, show the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each timing")
    parser.add_argument("--quick", action="store_true", help="one round; writes only to --out")
    parser.add_argument("--out", type=Path, help="folder of the results")
    chosen = parser.parse_args()
    os.environ.setdefault("COLUMNS", "120")
    provenance = facts()
    with tempfile.TemporaryDirectory() as folder:
        cases = measured(1 if chosen.quick else chosen.rounds, Path(folder))
    for row in table(cases):
        print(" | ".join(row))
    if out := chosen.out or (None if chosen.quick else RESULTS):
        write_results(out, "startup", cases, provenance=provenance)


if __name__ == "__main__":
    main()
