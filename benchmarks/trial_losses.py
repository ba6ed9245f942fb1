"""Estimate how validation losses depend on the rate, from the trials of the recorded grids.

`lowrank_study/sweeps/simulated.py` has the model and uses the constants, which `racing.py` writes.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

Losses = Mapping[float, float]
"""Final loss by rate, relative to the configured rate."""


def constants(blocks: Iterable[tuple[str, str, int, Losses]]) -> dict[str, float]:
    """Return the constants of the simulation.

    Args:
        blocks: Family, configuration, seed and losses; a configuration of several sweeps counts
            once. Blocks with fewer than three rates are left out.
    """
    found = pd.DataFrame(
        [(*names, *parabola(losses)) for *names, losses in blocks if len(losses) >= 3],
        columns=["family", "configuration", "seed", "best", "curvature"],
    ).drop_duplicates(["configuration", "seed"])
    families = found.groupby("family")["best"]
    means, counts = families.mean(), families.size()
    within = families.var()[counts > 1] @ (counts[counts > 1] - 1) / (counts - 1).sum()
    return {
        "curvature": float(found["curvature"].median()),
        "offset": float(means.mean()),
        "between": math.sqrt(means.var() - (within / counts).mean()),
        "within": math.sqrt(within),
    }


def parabola(losses: Losses) -> tuple[float, float]:
    """Return the logarithm of the best rate, and the curvature of the logarithm of the loss there.

    The parabola goes through the best rate that was tried and its neighbours. Its minimum is
    limited to the half of the way to them.
    """
    rates = sorted(losses)
    x, y = np.log(rates), np.log([losses[rate] for rate in rates])
    best = int(np.argmin(y))
    middle = min(max(best, 1), len(rates) - 2)
    curvature, slope, _ = np.polyfit(x[middle - 1 : middle + 2], y[middle - 1 : middle + 2], 2)
    half = (x[middle + 1] - x[middle]) / 2
    minimum = -slope / (2 * curvature) if curvature > 0 else x[best]
    return float(np.clip(minimum, x[best] - half, x[best] + half)), float(curvature)
