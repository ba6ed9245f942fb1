"""Claims on learning rates: ratios and drift over a grid."""

import math

import pandas as pd
import pytest

from lowrank_study.claims.measures.rates import best_rate_drift, best_rate_ratio
from tests.claims.measures.synthetic import NOISE, evidence, lacking, only, run

ANY = (0, None)
GRID = tuple(10.0**k for k in (-4.0, -3.5, -3.0, -2.5, -2.0))


def tuning(best: dict[int | None, float], seeds: int = 4) -> pd.DataFrame:
    """Validation accuracy falls by .05 a grid step from the best rate of each rank (None: full)."""
    rows = []
    for rank, top in best.items():
        for rate in GRID:
            for seed in range(seeds):
                accuracy = 0.9 - 0.1 * abs(math.log10(rate / top)) + NOISE[seed]
                method = "lora" if rank else "full"
                rows.append(
                    run(method, seed, accuracy, learning_rate=rate, adapter_rank=rank,
                        target="attention_qv" if rank else None)
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_ratio_of_best_rates_is_as_wide_as_the_grid() -> None:
    found = evidence(rates=tuning({None: 10**-3.5, 8: 10**-2.5}))
    interval = only(best_rate_ratio(found, "attention_qv", 8, "alpha_over_rank", ANY))
    assert interval.value == pytest.approx(10)
    assert interval.low == pytest.approx(10**0.5)
    assert interval.high == pytest.approx(10**1.5)


def test_a_ratio_is_of_runs_of_so_many_steps() -> None:
    found = evidence(rates=tuning({None: 10**-3.5, 8: 10**-2.5}))
    why = lacking(best_rate_ratio(found, "attention_qv", 8, "alpha_over_rank", (101, None)))
    assert why == "this check needs tuning runs of 101 steps or more"


def test_a_best_rate_at_the_end_of_the_grid_is_open() -> None:
    found = evidence(rates=tuning({None: 10**-3.5, 8: 1e-2}))
    interval = only(best_rate_ratio(found, "attention_qv", 8, "alpha_over_rank", ANY))
    assert math.isinf(interval.high)
    few = evidence(rates=tuning({None: 10**-3.5, 8: 10**-2.5}, seeds=2))
    interval = only(best_rate_ratio(few, "attention_qv", 8, "alpha_over_rank", ANY))
    assert (interval.low, interval.high) == (0.0, math.inf)


def test_drift_over_ranks() -> None:
    steady = evidence(rates=tuning({1: 1e-3, 8: 1e-3, 64: 1e-3}))
    interval = only(best_rate_drift(steady, "attention_qv", "alpha_over_rank", [1, 8, 64]))
    assert (interval.value, interval.low) == (1.0, 1.0)
    assert interval.high == pytest.approx(10**0.5)
    drifting = evidence(rates=tuning({1: 10**-3.5, 8: 1e-3, 64: 10**-2.5}))
    interval = only(best_rate_drift(drifting, "attention_qv", "alpha_over_rank", [1, 8, 64]))
    assert interval.value == pytest.approx(10)
    assert interval.low == pytest.approx(10**0.5)
    why = lacking(best_rate_drift(drifting, "attention_qv", "twice_rank", [1, 64]))
    assert "twice_rank" in why
    assert "alpha_over_sqrt_rank" in lacking(
        best_rate_drift(
            evidence(rates=tuning({64: 1e-3})), "attention_qv", "alpha_over_sqrt_rank", [64]
        )
    )
