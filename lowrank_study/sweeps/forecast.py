"""Predict how long sweeps will take: plan them as training does, and time a few steps of each kind.

    >>> forecasts({"rank_sweep": planned_configs("experiment=rank_sweep")})
    {'rank_sweep': Forecast(mean=287.0, least=287.0, most=287.0)}

`speeds.py` takes the time. Measuring a kind of runs takes a second or two.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lowrank_study.config.run import RunConfig
from lowrank_study.machine import free_cores
from lowrank_study.results import runs_folder
from lowrank_study.runs.limits import Limits, first_above
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.launch import launcher_of
from lowrank_study.sweeps.packs import finished, packs
from lowrank_study.sweeps.plan import most_packed
from lowrank_study.sweeps.simulated import SimulatedTrials
from lowrank_study.sweeps.speeds import Speeds
from lowrank_study.sweeps.trials import at_any_rate
from lowrank_study.sweeps.tuning import tuned
from lowrank_study.training.fit import torch_device

_SECONDS_TO_START = 4.0
"""Time until the first worker starts, and until the command ends after the last run."""
_SECONDS_A_ROUND = 1.0
"""Time to plan a round, to fork its workers, and to notice its end."""
_SIMULATED = 20
"""Number of simulations of a sweep that chooses learning rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Runs that a sweep trains before it decides what to train next."""

    specs: list[RunSpec]
    """Those that have not ended."""
    shares: Mapping[str, float]
    """Run id → share of its steps that a trial trains before it is stopped; 1 for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds that a sweep will take."""

    mean: float
    """Expected time. If the sweep chooses its rates, this is the mean over the simulations."""
    least: float
    """Nine tenths of the simulations take longer."""
    most: float
    """Nine tenths of the simulations take less time."""


def forecasts(planned: Mapping[str, Sequence[RunConfig]]) -> dict[str, Forecast]:
    """Return how long each of several sweeps will take, in this order.

    A run that several sweeps share counts for the first. A sweep that chooses its rates is
    simulated several times, because the number of its trials depends on their results.
    """
    is_certain = all(configs[0].tuning is None for configs in planned.values())
    counted = [set[str]() for _ in range(1 if is_certain else _SIMULATED)]
    found = {}
    for name, configs in planned.items():
        seconds = []
        for draw, before in enumerate(counted):
            rounds = rounds_of(configs, before, draw=draw)
            seconds.append(sum(_seconds_of(round_, configs[0]) for round_ in rounds))
            seconds[-1] += _SECONDS_TO_START if rounds else 0.0
        least, most = np.quantile(seconds, (0.1, 0.9))
        found[name] = Forecast(mean=float(np.mean(seconds)), least=float(least), most=float(most))
    return found


def total_of(found: Iterable[Forecast]) -> Forecast:
    """Return the time of several sweeps; its range is too wide if they vary independently."""
    each = [*found]
    return Forecast(
        mean=sum(one.mean for one in each),
        least=sum(one.least for one in each),
        most=sum(one.most for one in each),
    )


def rounds_of(configs: Sequence[RunConfig], counted: set[str], *, draw: int = 0) -> list[Round]:
    """Return the rounds that are left of a sweep: those that choose its rates, and the last one.

    Trials that have not ended are simulated (`simulated.py`). A sweep with `stopping=` is assumed
    to train the runs of all configurations in one round.

    Args:
        configs: The sweep.
        counted: Ids of runs that other sweeps train; those of this sweep are added.
        draw: Seed of the simulated trials.
    """
    rounds: list[Round] = []
    store = RunStore(runs_folder(configs[0].results))

    def train(specs: Sequence[RunSpec], shares: Mapping[str, float]) -> None:
        """Append a round."""
        new = [spec for spec in specs if spec.run_id not in counted]
        counted.update(spec.run_id for spec in specs)
        if new:
            rounds.append(Round(specs=new, shares=shares))

    specs, tuning = [config.spec for config in configs], configs[0].tuning
    if tuning is None:
        train(store.left(specs), {})
        return rounds
    simulation = SimulatedTrials(
        draw=draw,
        configured={at_any_rate(spec).run_id: spec.method.learning_rate for spec in specs},
    )

    def ended_or_simulated(
        trials: Sequence[RunSpec], limits: Mapping[str, Limits]
    ) -> Sequence[TrainedRun]:
        left = {spec.run_id: spec for spec in store.left(trials, limits)}
        ended = store.ended([trial.run_id for trial in trials if trial.run_id not in left])
        runs = simulation.results(trials, {run.spec.run_id: run for run in ended})
        shares = {}
        for run in runs:
            run_id = run.spec.run_id
            if run_id in left and (above := limits.get(run_id)):
                curve = run.record["curve"]
                last = first_above(curve, above) or curve[-1]
                shares[run_id] = last["step"] / curve[-1]["step"]
        train([*left.values()], shares)
        return runs

    train(store.left(tuned(specs, tuning, train=ended_or_simulated)), {})
    return rounds


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


def in_words(forecast: Forecast) -> str:
    """Write a forecast in words, with its range if it is uncertain."""
    if forecast.mean < 90:
        unit, size, digits = "s", 1, 0
    elif forecast.mean < 90 * 60:
        unit, size, digits = "min", 60, 0
    else:
        unit, size, digits = "h", 3600, 1
    mean, least, most = (
        f"{max(seconds / size, 1):.{digits}f}"
        for seconds in (forecast.mean, forecast.least, forecast.most)
    )
    expected = f"about {mean} {unit}"
    return expected if least == most else f"{expected} ({least} to {most} {unit})"
