"""Choose learning rates on validation, over a grid that grows until its best rate is inside.

    tuned(specs, tuning, train=lambda trials: sweep(trials, name="rates", results=results))

A configuration is a run without its seeds and its learning rate. Every configuration gets the same
treatment: the same number of rates at first, the same steps, texts and seeds, and two rules for
further trials:

1. If the best rate is at an end of the grid, one rate beyond that end is tried, so that the choice
   of the grid favours no method.
2. Otherwise the two best rates are compared again with further seeds, because a few seeds can't
   tell neighbouring rates apart. This repeats until the two best rates have had those seeds.

The trials have seeds of their own and never read the test split.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lowrank_study.config.run import Tuning
from lowrank_study.errors import InputError
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.tasks.metric import Metric

Train = Callable[[Sequence[RunSpec]], Sequence[TrainedRun]]
Tried = Mapping[float, tuple[int, ...]]
"""Seeds by learning rate."""
Preference = tuple[bool, float, float, float]


def tuned(specs: Sequence[RunSpec], tuning: Tuning, *, train: Train) -> list[RunSpec]:
    """Return the runs, each at the rate that is best for its configuration on validation.

    Args:
        specs: The runs; their rate is the middle of the grid.
        train: Trains runs and returns them in order, each done, diverged or failed.

    Raises:
        InputError: A seed is used for tuning and for reporting, two runs differ only in their rate,
            a trial failed for another reason than its rate, or every rate of a configuration
            diverged.
    """
    if shared := {spec.seed for spec in specs} & {*tuning.seeds, *tuning.final_seeds}:
        raise InputError(
            f"tuning: seeds {sorted(shared)} choose rates and are seeds of the sweep too: give "
            "tuning.seeds and tuning.final_seeds that the sweep does not use"
        )
    middles = {of.run_id: of for of in map(configuration, specs)}
    if len({at_any_rate(of).run_id for of in middles.values()}) < len(middles):
        raise InputError(
            "tuning: the sweep has several learning rates for one configuration, but tuning "
            "chooses the rate: give one method.learning_rate, the middle of the grid"
        )
    tried: dict[str, Tried] = {
        name: dict.fromkeys(_grid(of, tuning), tuning.seeds) for name, of in middles.items()
    }
    while True:
        trials = [
            (name, rate, _trial(middles[name], rate, seed))
            for name, rates in tried.items()
            for rate, seeds in rates.items()
            for seed in seeds
        ]
        runs: dict[tuple[str, float], list[TrainedRun]] = {}
        for (name, rate, _), run in zip(trials, train([t for *_, t in trials]), strict=True):
            if run.status == "failed":  # this says nothing about the rate
                raise InputError(
                    f"{run.spec.run_id}, a trial of a learning rate, failed "
                    f"({run.record['message']}): fix this and rerun to resume"
                )
            runs.setdefault((name, rate), []).append(run)
        order = {
            name: sorted(rates, key=lambda rate: worth(runs[name, rate]), reverse=True)
            for name, rates in tried.items()
        }
        more = {name: _more(tried[name], order[name], tuning) for name in tried}
        if more == tried:
            break
        tried = more
    for name, (best, *_) in order.items():
        if not worth(runs[name, best])[0]:
            rates = ", ".join(f"{rate:g}" for rate in sorted(tried[name]))
            raise InputError(
                f"{name}: a run diverged at every rate ({rates}): give a smaller "
                "method.learning_rate"
            )
    return [_at(spec, order[configuration(spec).run_id][0]) for spec in specs]


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
    return _at(configuration(replace(spec, train=replace(spec.train, read_test=True))), 1.0)


def _grid(of: RunSpec, tuning: Tuning) -> tuple[float, ...]:
    first = -(tuning.rates // 2)
    exponents = range(first, first + tuning.rates)
    return tuple(_rounded(of.method.learning_rate * tuning.factor**k) for k in exponents)


def _more(tried: Tried, order: Sequence[float], tuning: Tuning) -> Tried:
    """Add a rate beyond the best end of the grid, or else further seeds of the two best rates."""
    ends = {min(tried): 1 / tuning.factor, max(tried): tuning.factor}
    if order[0] in ends and len(tried) < tuning.most:
        return {**tried, _rounded(order[0] * ends[order[0]]): tuning.seeds}
    return {**tried, **dict.fromkeys(order[:2], (*tuning.seeds, *tuning.final_seeds))}


def _rounded(rate: float) -> float:
    """Round to three digits: a run's name contains its rate, however it was computed."""
    return float(f"{rate:.3g}")


def _trial(of: RunSpec, rate: float, seed: int) -> RunSpec:
    trial = _at(replace(of, train=replace(of.train, read_test=False)), rate)
    return replace(trial, seed=seed, data_seed=seed)


def _at(spec: RunSpec, rate: float) -> RunSpec:
    return replace(spec, method=replace(spec.method, learning_rate=rate))


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
