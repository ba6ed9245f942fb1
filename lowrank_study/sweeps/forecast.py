"""Predict how long runs will take: pack them as a sweep does, and time a few steps of each kind.

`speeds.py` takes the time. Measuring a kind of runs takes a second or two.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lowrank_study.config.run import RunConfig
from lowrank_study.machine import free_cores
from lowrank_study.results import runs_folder
from lowrank_study.runs.limits import Limits
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.launch import launcher_of
from lowrank_study.sweeps.packs import finished, packs
from lowrank_study.sweeps.plan import most_packed
from lowrank_study.sweeps.speeds import Speeds
from lowrank_study.sweeps.trials import at_any_rate
from lowrank_study.sweeps.tuning import tuned
from lowrank_study.training.fit import torch_device

_SECONDS_TO_START = 5.0
"""Time until a worker takes its first step, and until the command ends after the last one."""
_ASSUMED_LOSS = 1e3
"""Assumed loss of the configured rate; larger than that of any trial that has ended."""


def runs_of(configs: Sequence[RunConfig]) -> list[RunSpec]:
    """Return the runs of a sweep, after the trials that choose its rates.

    Trials that have not ended get assumed scores, which fall with the distance from the configured
    rate. So a grid does not grow, and its final comparison is between the middle rate and a
    neighbour. In a race the configured rate keeps the lead. No trial is assumed to be stopped, so
    the time of a race is an upper bound if the configured rate is best.
    """
    specs, tuning = [config.spec for config in configs], configs[0].tuning
    if tuning is None:
        return specs
    store = RunStore(runs_folder(configs[0].results))
    middles = {at_any_rate(spec).run_id: spec.method.learning_rate for spec in specs}
    tried: dict[str, RunSpec] = {}

    def ended_or_assumed(
        trials: Sequence[RunSpec], limits: Mapping[str, Limits]
    ) -> Sequence[TrainedRun]:
        tried.update((trial.run_id, trial) for trial in trials)
        left = {trial.run_id for trial in store.left(trials, limits)}
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
    loss = _ASSUMED_LOSS * (1.0 + steps)
    assumed = {
        "validation": {metric.name: metric.worth(-steps), "loss": loss},
        "curve": [{"step": 1, "loss": loss}],
    }
    record = assumed if other_seed is None else other_seed.record
    return TrainedRun(spec=trial, status="done", record=record, folder=Path())


def forecasts(planned: Mapping[str, Sequence[RunConfig]]) -> dict[str, float]:
    """Return the seconds that each of several sweeps will take, in this order.

    A run that several sweeps share counts for the first.
    """
    seconds, counted = {}, set[str]()
    for name, configs in planned.items():
        runs = [run for run in runs_of(configs) if run.run_id not in counted]
        counted |= {run.run_id for run in runs}
        first = configs[0]
        seconds[name] = forecast(
            runs,
            results=first.results,
            device=first.device,
            launcher=first.launcher,
            workers=first.workers,
            pack=first.pack,
        )
    return seconds


def forecast(
    specs: Sequence[RunSpec],
    *,
    results: Path,
    device: str = "auto",
    launcher: str = "local",
    workers: int | None = None,
    pack: int | None = None,
) -> float:
    """Return the seconds that the runs will take that have not ended or have failed.

    For arguments, see `sweeps.sweep.sweep`.
    """
    unique = {spec.run_id: spec for spec in specs}
    ended = RunStore(runs_folder(results)).ended(list(unique))
    over = {run.spec.run_id for run in ended if run.status != "failed"}
    left = [spec for run_id, spec in unique.items() if run_id not in over]
    if not left:
        return 0.0
    places = launcher_of(launcher).places(workers, device, len(left))
    threads = max(1, len(free_cores()) // len(places))
    speeds = _speeds(torch_device(places[0].device), threads)
    planned = packs(
        left,
        limit=lambda spec: most_packed(spec, places, pack),
        workers=len(places),
        cost=speeds.effort.of,
    )
    return _SECONDS_TO_START + finished([speeds.seconds(each) for each in planned], len(places))


@functools.cache
def _speeds(device: torch.device, threads: int) -> Speeds:
    """Return the speeds of a device, which several sweeps share."""
    return Speeds(device=device, threads=threads)


def in_words(seconds: float) -> str:
    """Write a duration in words."""
    if seconds < 90:
        return f"about {max(1, round(seconds)):d} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60):d} min"
    return f"about {seconds / 3600:.1f} h"
