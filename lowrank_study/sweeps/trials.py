"""Trials: runs that choose a learning rate.

They have their own seeds and don't read the test split.

A *configuration* is a run without its seeds and its learning rate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lowrank_study.errors import InputError
from lowrank_study.runs.limits import Limits
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.tasks.metric import Metric

Train = Callable[[Sequence[RunSpec], Mapping[str, Limits]], Sequence[TrainedRun]]
"""Trains runs, and returns them in order: done, diverged, stopped above its limits or failed."""
Preference = tuple[bool, float, float, float]


def preference(*, lost: int, score: float, loss: float, rate: float, metric: Metric) -> Preference:
    """Return the key by which learning rates are compared; the rate with the greatest is chosen.

    A rate that lost no run comes first, then the better mean score on validation, the smaller mean
    loss there, and the smaller rate. The test split has no say.
    """
    worth, loss = (-math.inf, math.inf) if math.isnan(score) else (metric.worth(score), loss)
    return lost == 0, worth, -loss, -rate


def configuration(spec: RunSpec) -> RunSpec:
    """Return what the runs of one configuration share: the run without its seeds."""
    return replace(spec, seed=0, data_seed=0)


def at_any_rate(spec: RunSpec) -> RunSpec:
    """Return what a run shares with the trials that choose its rate."""
    train = replace(spec.train, read_test=True, evaluations=1)
    return at(configuration(replace(spec, train=train)), 1.0)


def at(spec: RunSpec, rate: float) -> RunSpec:
    """Return the run at another learning rate."""
    return replace(spec, method=replace(spec.method, learning_rate=rate))


def rounded(rate: float) -> float:
    """Round to three digits: a run's name contains its rate, however it was computed."""
    return float(f"{rate:.3g}")


def trial(of: RunSpec, rate: float, seed: int, *, rungs: int = 1) -> RunSpec:
    """Return the trial of a configuration at a rate.

    Args:
        rungs: How many times as often as the configuration it reads validation.
    """
    train = replace(of.train, read_test=False, evaluations=of.train.evaluations * rungs)
    return replace(at(replace(of, train=train), rate), seed=seed, data_seed=seed)


def worth(runs: Sequence[TrainedRun]) -> Preference:
    """Return the preference of the rate that the runs share."""
    metric = runs[0].spec.task.metric
    return preference(
        metric=metric,
        lost=sum(run.status != "done" for run in runs),
        score=_mean(runs, metric.name),
        loss=_mean(runs, "loss"),
        rate=runs[0].spec.method.learning_rate,
    )


def _mean(runs: Sequence[TrainedRun], name: str) -> float:
    found = [run.record["validation"][name] for run in runs if run.status == "done"]
    return sum(found) / len(found) if found else math.nan


def none_converged(name: str, rates: Sequence[float]) -> InputError:
    """Return the error of a configuration whose runs diverged at every rate that was tried."""
    tried = ", ".join(f"{rate:g}" for rate in sorted(rates))
    return InputError(
        f"{name}: a run diverged at every rate ({tried}): give a smaller method.learning_rate"
    )
