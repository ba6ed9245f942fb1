"""Predict how long runs will take.

The prediction divides a run's operations (`effort.py`) by the speed of a matrix product, which is
measured on this machine, times the share of that speed that whole runs reach.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lowrank_study.config.run import RunConfig
from lowrank_study.machine import free_cores
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.effort import Effort
from lowrank_study.sweeps.tuning import at_any_rate, tuned

_SHARE_OF_SPEED = 0.69
"""Speed of whole runs relative to a matrix product; measured on 236 runs of R52 in fp32."""
_SECONDS_A_RUN = 2.0
"""Time to build the model, save it and measure its spectra, in the same runs."""


def runs_of(configs: Sequence[RunConfig]) -> list[RunSpec]:
    """Return the runs of a sweep, after the trials that choose its rates.

    Trials that have not ended get assumed scores, which fall with the distance from the middle of
    the grid. So the grid does not grow, and the final comparison is between the middle rate and a
    neighbour.
    """
    specs, tuning = [config.spec for config in configs], configs[0].tuning
    if tuning is None:
        return specs
    store = RunStore(runs_folder(configs[0].results))
    middles = {at_any_rate(spec).run_id: spec.method.learning_rate for spec in specs}
    tried: dict[str, RunSpec] = {}

    def ended_or_assumed(trials: Sequence[RunSpec]) -> Sequence[TrainedRun]:
        tried.update((trial.run_id, trial) for trial in trials)
        left = {trial.run_id for trial in store.left(trials)}
        ended = store.ended([trial.run_id for trial in trials if trial.run_id not in left])
        by_name = {run.spec.run_id: run for run in ended}
        known = {_rate_of(run.spec): run for run in ended if run.status == "done"}
        return [
            by_name.get(trial.run_id)
            or _stand_in(trial, middles[at_any_rate(trial).run_id], known.get(_rate_of(trial)))
            for trial in trials
        ]

    chosen = tuned(specs, tuning, train=ended_or_assumed)
    return [*tried.values(), *chosen]


def _rate_of(trial: RunSpec) -> tuple[str, float]:
    """Return the configuration and the rate of a trial, without its seed."""
    return at_any_rate(trial).run_id, trial.method.learning_rate


def _stand_in(trial: RunSpec, middle: float, other_seed: TrainedRun | None) -> TrainedRun:
    """Return a stand-in for a trial: copied from another seed at its rate, or assumed."""
    steps = abs(math.log(trial.method.learning_rate / middle))
    metric = trial.task.metric
    assumed = {"validation": {metric.name: metric.worth(-steps), "loss": steps}}
    record = assumed if other_seed is None else other_seed.record
    return TrainedRun(spec=trial, status="done", record=record, folder=Path())


def forecasts(planned: Mapping[str, Sequence[RunConfig]]) -> dict[str, float]:
    """Return the seconds that each of several sweeps will take, in this order.

    A run that several sweeps share counts for the first. The speed is that of this machine's
    processor, so with a GPU the sweeps take less time.
    """
    seconds, counted = {}, set[str]()
    for name, configs in planned.items():
        runs = [run for run in runs_of(configs) if run.run_id not in counted]
        counted |= {run.run_id for run in runs}
        workers = configs[0].workers or len(free_cores())
        seconds[name] = forecast(runs, results=configs[0].results, workers=workers)
    return seconds


def forecast(specs: Sequence[RunSpec], *, results: Path, workers: int) -> float:
    """Return the seconds that the runs will take that have not ended or have failed."""
    left = RunStore(runs_folder(results)).left(specs)
    if not left:
        return 0.0
    precisions = {spec.train.precision for spec in left}
    speeds = {precision: _SHARE_OF_SPEED * measured_speed(precision) for precision in precisions}
    effort = Effort()
    training = sum(effort.of(spec) / speeds[spec.train.precision] for spec in left)
    return (training + _SECONDS_A_RUN * len(left)) / workers


def measured_speed(precision: str, *, seconds: float = 0.5) -> float:
    """Return this machine's operations per second in a matrix product on one thread.

    In bf16, training reaches a smaller share of it, because only matrix products become faster.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, threads = 512, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right = (torch.randn(size, n * size, dtype=dtype) for n in (1, 4))
        best, until = float("inf"), time.perf_counter() + seconds
        while (start := time.perf_counter()) < until:
            left @ right
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2.0 * size * size * 4 * size / best


def in_words(seconds: float) -> str:
    """Write a duration in words."""
    if seconds < 90:
        return f"about {max(1, round(seconds)):d} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60):d} min"
    return f"about {seconds / 3600:.1f} h"
