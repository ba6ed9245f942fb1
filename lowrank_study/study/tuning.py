"""Learning rates chosen on validation, each over a grid that grows until its best is inside.

    tuned(specs, tuning, train=lambda trials: sweep(trials, name="rates", results=results))

Every configuration (all that a run is but its seeds and its rate) gets the same: the same number of
rates to begin with, the same steps, texts and seeds. Those whose best rate is an end of the grid
get one more beyond it, and again, so that no method is held back by the range that somebody
thought of. The runs that choose have seeds of their own and never read the test split.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from lowrank_study.config import Tuning
from lowrank_study.errors import InputError
from lowrank_study.runs import TrainedRun
from lowrank_study.spec import RunSpec

Train = Callable[[Sequence[RunSpec]], Sequence[TrainedRun]]


def tuned(specs: Sequence[RunSpec], tuning: Tuning, *, train: Train) -> list[RunSpec]:
    """Return the runs, each at the rate that is best for its configuration on validation.

    Parameters
    ----------
    specs
        The runs; their rate is the middle of the grid.
    tuning
        How the grid looks.
    train
        Trains runs and returns them in order, each done, diverged or failed.

    Raises
    ------
    InputError
        A seed that chooses is also one that is reported, or no rate of a configuration worked.
    """
    if shared := {spec.seed for spec in specs} & set(tuning.seeds):
        raise InputError(
            f"tuning.seeds={list(tuning.seeds)}: the sweep itself has {sorted(shared)}; the seeds "
            "that choose a rate must not be those it is reported on"
        )
    middles = {of.run_id: of for of in map(configuration, specs)}
    grids = {name: _grid(of, tuning) for name, of in middles.items()}
    while True:
        trials = {
            (name, rate): _trials(middles[name], rate, tuning)
            for name, rates in grids.items()
            for rate in rates
        }
        runs = iter(train([run for trial in trials.values() for run in trial]))
        worth = {key: _worth([next(runs) for _ in trial]) for key, trial in trials.items()}
        best = {  # of equally good rates the lowest
            name: -max((worth[name, rate], -rate) for rate in rates)[1]
            for name, rates in grids.items()
        }
        grown = {name: _grown(rates, best[name], tuning) for name, rates in grids.items()}
        if grown == grids:
            break
        grids = grown
    for name, rate in best.items():
        if worth[name, rate][0] < 0:
            tried = ", ".join(f"{each:g}" for each in grids[name])
            raise InputError(f"{name}: every rate of {tried} diverged or failed")
    return [_at(spec, best[configuration(spec).run_id]) for spec in specs]


def configuration(spec: RunSpec) -> RunSpec:
    """Return what the runs of one configuration share: the run without its seeds."""
    return replace(spec, seed=0, data_seed=0)


def _grid(of: RunSpec, tuning: Tuning) -> tuple[float, ...]:
    first = -(tuning.rates // 2)
    exponents = range(first, first + tuning.rates)
    return tuple(_rounded(of.method.learning_rate * tuning.factor**k) for k in exponents)


def _grown(rates: tuple[float, ...], best: float, tuning: Tuning) -> tuple[float, ...]:
    """Add a rate beyond the end that is the best."""
    if len(rates) >= tuning.most:
        return rates
    if best == rates[0]:
        return (_rounded(rates[0] / tuning.factor), *rates)
    if best == rates[-1]:
        return (*rates, _rounded(rates[-1] * tuning.factor))
    return rates


def _rounded(rate: float) -> float:
    """Three digits: the rate is part of a run's name, and must not depend on how it came about."""
    return float(f"{rate:.3g}")


def _trials(of: RunSpec, rate: float, tuning: Tuning) -> list[RunSpec]:
    trial = _at(replace(of, train=replace(of.train, read_test=False)), rate)
    return [replace(trial, seed=seed, data_seed=seed) for seed in tuning.seeds]


def _at(spec: RunSpec, rate: float) -> RunSpec:
    return replace(spec, method=replace(spec.method, learning_rate=rate))


def _worth(runs: Sequence[TrainedRun]) -> tuple[float, float]:
    """Mean validation accuracy, then the smaller loss; a rate that lost a run is worth nothing."""
    found = [run.record["validation"] for run in runs if run.status == "done"]
    if len(found) < len(runs):
        return -1.0, -math.inf
    accuracy = sum(each["accuracy"] for each in found) / len(found)
    return accuracy, -sum(each["loss"] for each in found) / len(found)
