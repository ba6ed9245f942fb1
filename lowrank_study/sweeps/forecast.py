"""Predict how long sweeps will take: plan them as training does, and time a few steps of each kind.

    >>> forecasts({"rank_sweep": planned_configs("experiment=rank_sweep")})
    {'rank_sweep': 287.0}

`speeds.py` takes the time. Measuring a kind of runs takes a second or two.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

_SECONDS_TO_START = 4.0
"""Time until the first worker starts, and until the command ends after the last run."""
_SECONDS_A_ROUND = 1.0
"""Time to plan a round, to fork its workers, and to notice its end."""
_ASSUMED_LOSS = 1e3
"""Assumed loss of the configured rate; larger than that of any trial that has ended."""
_SHARE_OF_A_RIVAL = 0.8
"""Assumed share of its steps that a trial beside the leading rate trains. It is the mean of eight
races that were trained, and includes the further trials that some of them needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Runs that a sweep trains before it decides what to train next."""

    specs: list[RunSpec]
    """Those that have not ended."""
    shares: Mapping[str, float]
    """Run id → assumed share of its steps, for trials that may be stopped."""


def forecasts(planned: Mapping[str, Sequence[RunConfig]]) -> dict[str, float]:
    """Return the seconds that each of several sweeps will take, in this order.

    A run that several sweeps share counts for the first.
    """
    seconds, counted = {}, set[str]()
    for name, configs in planned.items():
        rounds = rounds_of(configs, counted)
        seconds[name] = sum(_seconds_of(round_, configs[0]) for round_ in rounds)
        seconds[name] += _SECONDS_TO_START if rounds else 0.0
    return seconds


def rounds_of(configs: Sequence[RunConfig], counted: set[str]) -> list[Round]:
    """Return the rounds that are left of a sweep: those that choose its rates, and the last one.

    Trials that have not ended get assumed scores, which fall with the distance from the configured
    rate. So a grid does not grow, and its final comparison is between the middle rate and a
    neighbour; in a race the configured rate keeps the lead. A sweep with `stopping=` is assumed to
    train the runs of all configurations in one round.

    Args:
        counted: Ids of runs that other sweeps train; those of this sweep are added.
    """
    rounds: list[Round] = []
    store = RunStore(runs_folder(configs[0].results))

    def train(specs: Sequence[RunSpec], limits: Mapping[str, Limits]) -> set[str]:
        """Append a round, and return the ids of its runs."""
        left = {spec.run_id: spec for spec in store.left(specs, limits)}
        new = [spec for run_id, spec in left.items() if run_id not in counted]
        counted.update(left)
        shares = {run_id: _SHARE_OF_A_RIVAL for run_id in left if limits.get(run_id)}
        if new:
            rounds.append(Round(specs=new, shares=shares))
        return {*left}

    specs, tuning = [config.spec for config in configs], configs[0].tuning
    if tuning is None:
        train(specs, {})
        return rounds
    middles = {at_any_rate(spec).run_id: spec.method.learning_rate for spec in specs}

    def ended_or_assumed(
        trials: Sequence[RunSpec], limits: Mapping[str, Limits]
    ) -> Sequence[TrainedRun]:
        left = train(trials, limits)
        ended = store.ended([trial.run_id for trial in trials if trial.run_id not in left])
        by_name = {run.spec.run_id: run for run in ended}
        known = {_rate_of(run.spec): run for run in ended if run.status == "done"}
        return [
            by_name.get(trial.run_id)
            or _stand_in(trial, middles[at_any_rate(trial).run_id], known.get(_rate_of(trial)))
            for trial in trials
        ]

    train(tuned(specs, tuning, train=ended_or_assumed), {})
    return rounds


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
        "curve": [{"step": step, "loss": loss} for step in (1, 2)],  # a rung and the last step
    }
    record = assumed if other_seed is None else other_seed.record
    return TrainedRun(spec=trial, status="done", record=record, folder=Path())


def _seconds_of(round_: Round, config: RunConfig) -> float:
    """Return the seconds of a round, with the settings of the sweep's first configuration."""
    return _SECONDS_A_ROUND + training_seconds(
        round_,
        device=config.device,
        launcher=config.launcher,
        workers=config.workers,
        pack=config.pack,
    )


def training_seconds(
    round_: Round,
    *,
    device: str = "auto",
    launcher: str = "local",
    workers: int | None = None,
    pack: int | None = None,
) -> float:
    """Return the seconds until the last worker has trained its last pack of a round.

    For the other arguments, see `sweeps.sweep.sweep`.
    """
    places = launcher_of(launcher).places(workers, device, len(round_.specs))
    threads = max(1, len(free_cores()) // len(places))
    speeds = _speeds(torch_device(places[0].device), threads)
    planned = packs(
        round_.specs,
        limit=lambda spec: most_packed(spec, places, pack),
        workers=len(places),
        cost=speeds.effort.of,
    )
    return finished([speeds.seconds(each, round_.shares) for each in planned], len(places))


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
