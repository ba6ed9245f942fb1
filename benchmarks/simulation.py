"""Simulate sweeps of paired runs with known true accuracies."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

DIFFICULTY_SD = 2.5  # of examples; two seeds then disagree on about one in ten
SHARED_DIFFICULTY, SHARED_SEED, SHARED_NOISE = 0.95, 0.5, 0.5  # correlations of paired runs
EXAMPLES = 1000


def simulated(
    *,
    sweeps: int,
    seeds: int,
    accuracies: Sequence[float],
    seed_sd: float,
    collapsing: Sequence[float] = (),
    start: int = 0,
) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the correctness (runs, seeds, examples) of sweeps of paired runs.

    A run is right on an example if m + a_s + d_e + noise_se > 0. Seeds, examples and noise are
    normal, and each correlates with that of the first run. The true accuracy is exactly the
    given one; its standard deviation over seeds is approximately `seed_sd`.

    A collapsed run gives one answer, which is right on half of the examples. `collapsing` is the
    probability of that for each run; the accuracies are those of the other seeds.
    """
    rng = np.random.default_rng(start)
    runs = len(accuracies)
    quantiles = stats.norm.ppf(accuracies)
    slopes = stats.norm.pdf(quantiles) / math.hypot(1, DIFFICULTY_SD)
    seed_sds = seed_sd / slopes
    means = quantiles * np.sqrt(1 + DIFFICULTY_SD**2 + seed_sds**2)

    def correlated(shared: float, *shape: int) -> npt.NDArray[np.float32]:
        drawn = rng.standard_normal((runs, *shape), dtype=np.float32)
        drawn[1:] *= math.sqrt(1 - shared**2)
        drawn[1:] += shared * drawn[0]
        return drawn

    for _ in range(sweeps):
        score = correlated(SHARED_NOISE, seeds, EXAMPLES)
        score += np.float32(DIFFICULTY_SD) * correlated(SHARED_DIFFICULTY, 1, EXAMPLES)
        score += (means + seed_sds * correlated(SHARED_SEED, seeds, 1).T).T.astype(np.float32)
        correct = score > 0
        if collapsing:
            has_collapsed = rng.random((runs, seeds)) < np.array(collapsing)[:, None]
            correct[has_collapsed] = np.arange(EXAMPLES) < EXAMPLES / 2
        yield correct
