"""Compare the accuracy of fast runs with that of the Trainer's runs.

The comparison has two tasks, five seeds and three ranks, each trained by the suite in fp32, by the
suite in bf16, and by PEFT in the Trainer in fp32. All three share a seed's initial head and
factors, batches and schedule, so a difference in accuracy comes from the programs.
`agreement.csv` keeps every accuracy, and runs that it lists are not trained again. bf16 only runs
if the processor multiplies it in hardware; otherwise it takes eight times as long as fp32.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import timing
from processes import peft_loop, train_here

from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.config.run import compose, fast_precision
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import RunSpec

SEEDS, RANKS = range(5), (2, 8, 32)
TASKS = {
    "rotten_tomatoes": (
        *("task.train_size=600", "task.validation_size=32", "task.test_size=800"),
        "method.learning_rate=4e-3",
    ),
    "reuters_r8": (
        *("task.train_size=400", "task.validation_size=32", "task.test_size=500"),
        *("task.max_length=48", "method.learning_rate=4e-3"),
    ),
}
OURS, HALVED, TRAINER = "ours fp32", "ours bf16", "Trainer fp32"
COLUMNS = ["task", "way", "seed", "adapter_rank", "test_score"]


def agreement(folder: Path, *, quick: bool) -> list[timing.Figure]:
    """Train what `agreement.csv` lacks, and compare the three ways seed by seed."""
    ways = (OURS, HALVED, TRAINER) if fast_precision() == "bf16" else (OURS, TRAINER)
    path = folder / "agreement.csv"
    kept = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    seeds = range(2) if quick else SEEDS
    missing = [
        (task, way, seed)
        for task in TASKS
        for seed in seeds
        for way in ways
        if not ((kept["task"] == task) & (kept["way"] == way) & (kept["seed"] == seed)).any()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=2) as pool:  # one process a core
        for rows in pool.map(lambda job: _train(*job, quick=quick), missing):
            kept = pd.concat([kept, rows] if len(kept) else [rows], ignore_index=True)
            kept.sort_values(COLUMNS[:4]).to_csv(path, index=False)
    return [figure for task in TASKS for figure in _compared(kept[kept["task"] == task], task)]


def _train(task: str, way: str, seed: int, *, quick: bool) -> pd.DataFrame:
    size = ("task.train_size=64", "task.test_size=64") if quick else ()
    specs = [
        compose(
            *(f"task={task}", *TASKS[task], *size, "model.dropout=0.0", "trainer.precision=fp32"),
            *(f"method.rank={rank}", f"seed={seed}"),
        )
        for rank in RANKS
    ]
    if way == TRAINER:
        found = peft_loop(specs, "--same-start", threads=1)
        accuracies = [run["test_score"] for run in found]
    else:
        accuracies = train_here([_in(spec, way) for spec in specs])["test_accuracies"]
    rows = [
        (task, way, seed, spec.method.rank, accuracy)
        for spec, accuracy in zip(specs, accuracies, strict=True)
        if isinstance(spec.method, Lora)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _in(spec: RunSpec, way: str) -> RunSpec:
    return dataclasses.replace(
        spec, train=dataclasses.replace(spec.train, precision=way.removeprefix("ours "))
    )


def _compared(rows: pd.DataFrame, task: str) -> list[timing.Figure]:
    """Return the means of all ways, and intervals of the paired differences, in points."""
    wide = rows.pivot_table(index="seed", columns="way", values="test_score")  # mean of ranks
    figures = [
        timing.figure(f"{task}: test accuracy, {way}", list(wide[way]), unit="") for way in wide
    ]
    for one, other in ((OURS, TRAINER), (HALVED, TRAINER), (HALVED, OURS)):
        if not {one, other} <= set(wide):
            continue
        differences = list(100 * (wide[one] - wide[other]))
        low, high = interval_of_mean(
            np.array(differences)
        )  # the ranks of a seed are not independent
        what = f"{task}: {one} minus {other}, mean over seeds"
        figures += [
            timing.figure(what, differences, unit="points"),
            timing.figure(f"{what}: lower 95 % limit", [low], unit="points", at_most=0.0),
            timing.figure(f"{what}: upper 95 % limit", [high], unit="points", at_least=0.0),
            timing.figure(
                f"{what}: width of the 95 % interval", [high - low], unit="points", at_most=1.5
            ),
        ]
    return figures
