"""Choose learning rates over a grid that grows until its best rate is inside.

Every configuration gets the same number of rates at first, and two rules for further trials:

1. If the best rate is at an end of the grid, one rate beyond that end is tried, so that the choice
   of the grid favours no method.
2. Otherwise the two best rates are compared again with further seeds, because a few seeds can't
   tell neighbouring rates apart. This repeats until the two best rates have had those seeds.
"""

from collections.abc import Mapping, Sequence

from lowrank_study.config.tuning import Grid
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.trials import Train, none_converged, rounded, trial, worth

Tried = Mapping[float, tuple[int, ...]]
"""Seeds by learning rate."""


def grid_rates(
    configurations: Mapping[str, RunSpec], grid: Grid, *, train: Train
) -> dict[str, float]:
    """Return the rate of each configuration, by name; for the arguments see `tuned`."""
    tried: dict[str, Tried] = {
        name: dict.fromkeys(_first_rates(of, grid), grid.seeds)
        for name, of in configurations.items()
    }
    while True:
        trials = [
            (name, rate, trial(configurations[name], rate, seed))
            for name, rates in tried.items()
            for rate, seeds in rates.items()
            for seed in seeds
        ]
        runs: dict[tuple[str, float], list[TrainedRun]] = {}
        for (name, rate, _), run in zip(trials, train([t for *_, t in trials], {}), strict=True):
            runs.setdefault((name, rate), []).append(run)
        order = {
            name: sorted(rates, key=lambda rate: worth(runs[name, rate]), reverse=True)
            for name, rates in tried.items()
        }
        more = {name: _more(tried[name], order[name], grid) for name in tried}
        if more == tried:
            break
        tried = more
    for name, (best, *_) in order.items():
        if not worth(runs[name, best])[0]:
            raise none_converged(name, [*tried[name]])
    return {name: best for name, (best, *_) in order.items()}


def _first_rates(of: RunSpec, grid: Grid) -> tuple[float, ...]:
    first = -(grid.rates // 2)
    exponents = range(first, first + grid.rates)
    return tuple(rounded(of.method.learning_rate * grid.factor**k) for k in exponents)


def _more(tried: Tried, order: Sequence[float], grid: Grid) -> Tried:
    """Add a rate beyond the best end of the grid, or else further seeds of the two best rates."""
    ends = {min(tried): 1 / grid.factor, max(tried): grid.factor}
    if order[0] in ends and len(tried) < grid.most:
        return {**tried, rounded(order[0] * ends[order[0]]): grid.seeds}
    return {**tried, **dict.fromkeys(order[:2], grid.every_seed)}
