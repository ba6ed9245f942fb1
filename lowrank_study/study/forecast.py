"""How long runs will take, said before the first one starts.

    forecast(runs_of(configs), results=Path("results"), workers=2)      # seconds

A run's operations follow from its texts and its model; the machine's speed is measured, in a
moment, by a matrix product like the model's own. What is left is the share of that speed that
training reaches, and it is measured too: by `benchmarks/sweep.py --only step`.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lowrank_study.config import RunConfig
from lowrank_study.machine import free_cores
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.study.effort import Effort
from lowrank_study.study.tuning import tuned

_SHARE_OF_SPEED = 0.5
"""Of the speed of a product alone; a step reaches about 0.6, evaluation and the rest less."""
_SECONDS_A_RUN = 3.0
"""Building the model, saving it and measuring its spectra."""


class _NotChosenYet(Exception):
    """Some of the runs that choose a rate have not ended."""

    def __init__(self, trials: Sequence[RunSpec]) -> None:
        self.trials = trials


def runs_of(configs: Sequence[RunConfig]) -> list[RunSpec]:
    """Return the runs that a sweep consists of, those that choose its rates too.

    Where rates are still to be chosen, the runs at the middle of each grid stand for those at the
    chosen rates: they take as long.
    """
    specs, tuning = [config.spec for config in configs], configs[0].tuning
    if tuning is None:
        return specs
    store = RunStore(configs[0].results / "runs")

    def look(trials: Sequence[RunSpec]) -> Sequence[TrainedRun]:
        if store.left(trials):
            raise _NotChosenYet(trials)
        return store.ended([trial.run_id for trial in trials])

    try:
        return tuned(specs, tuning, train=look)
    except _NotChosenYet as undecided:
        return [*undecided.trials, *specs]


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
    left = RunStore(results / "runs").left(specs)
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
