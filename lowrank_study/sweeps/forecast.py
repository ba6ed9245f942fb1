"""How long runs will take, said before the first one starts.

    forecast(runs_of(configs), results=Path("results"), workers=2)      # seconds

A run's operations follow from its texts and its model; the machine's speed is measured, in a
moment, by a matrix product like the model's own. What is left is the share of that speed that
whole runs reach, which was measured too.
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
"""Of the speed of a product alone on one core, training and evaluating: 236 runs of R52, fp32."""
_SECONDS_A_RUN = 2.0
"""Building the model, saving it and measuring its spectra, of the same runs."""


def runs_of(configs: Sequence[RunConfig]) -> list[RunSpec]:
    """Return the runs that a sweep consists of, and before them those that choose its rates.

    A rate of which no run has ended is taken to be the worse the further it is from the middle of
    its grid: of nothing run at all the grid does not grow, and the middle and a neighbour run off.
    """
    specs, tuning = [config.spec for config in configs], configs[0].tuning
    if tuning is None:
        return specs
    store = RunStore(runs_folder(configs[0].results))
    middles = {at_any_rate(spec).run_id: spec.method.learning_rate for spec in specs}
    asked: dict[str, RunSpec] = {}

    def look(trials: Sequence[RunSpec]) -> Sequence[TrainedRun]:
        asked.update((trial.run_id, trial) for trial in trials)
        left = {trial.run_id for trial in store.left(trials)}
        ended = store.ended([trial.run_id for trial in trials if trial.run_id not in left])
        by_name = {run.spec.run_id: run for run in ended}
        known = {_rate_of(run.spec): run for run in ended if run.status == "done"}
        return [
            by_name.get(trial.run_id)
            or _supposed(trial, middles[at_any_rate(trial).run_id], known.get(_rate_of(trial)))
            for trial in trials
        ]

    chosen = tuned(specs, tuning, train=look)
    return [*asked.values(), *chosen]


def _rate_of(trial: RunSpec) -> tuple[str, float]:
    """A configuration and the rate that is tried of it, whatever the seed."""
    return at_any_rate(trial).run_id, trial.method.learning_rate


def _supposed(trial: RunSpec, middle: float, other_seed: TrainedRun | None) -> TrainedRun:
    """A run that is taken to do as another seed at its rate, or else worse far from the middle."""
    steps = abs(math.log(trial.method.learning_rate / middle))
    metric = trial.task.metric
    supposed = {"validation": {metric.name: metric.worth(-steps), "loss": steps}}
    record = supposed if other_seed is None else other_seed.record
    return TrainedRun(spec=trial, status="done", record=record, folder=Path())


def forecasts(planned: Mapping[str, Sequence[RunConfig]]) -> dict[str, float]:
    """Return the seconds that each of several sweeps will take, run in this order.

    A run that several of them ask for is the first one's. The speed is that of this machine's
    processor: with a GPU it will be less.
    """
    seconds, asked = {}, set[str]()
    for name, configs in planned.items():
        runs = [run for run in runs_of(configs) if run.run_id not in asked]
        asked |= {run.run_id for run in runs}
        workers = configs[0].workers or len(free_cores())
        seconds[name] = forecast(runs, results=configs[0].results, workers=workers)
    return seconds


def forecast(specs: Sequence[RunSpec], *, results: Path, workers: int) -> float:
    """Return the seconds that those of the runs will take that have not ended, or failed.

    Parameters
    ----------
    specs
        The runs.
    results
        Where ended ones are.
    workers
        Processes that train at once, one a core.
    """
    left = RunStore(runs_folder(results)).left(specs)
    if not left:
        return 0.0
    precisions = {spec.train.precision for spec in left}
    speeds = {precision: _SHARE_OF_SPEED * measured_speed(precision) for precision in precisions}
    effort = Effort()
    training = sum(effort.of(spec) / speeds[spec.train.precision] for spec in left)
    return (training + _SECONDS_A_RUN * len(left)) / workers


def measured_speed(precision: str, *, size: int = 512, seconds: float = 0.5) -> float:
    """Return this machine's operations a second, of a matrix product on one thread.

    In bf16 training has a smaller share of it than in fp32, since what is no matrix product stays.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    threads = torch.get_num_threads()
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
    """Write a duration as a person says it."""
    if seconds < 90:
        return f"about {max(1, round(seconds)):d} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60):d} min"
    return f"about {seconds / 3600:.1f} h"
