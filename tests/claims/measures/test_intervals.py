"""Coverage of the intervals, and the ratios of timings that use them."""

import math

import numpy as np
import pandas as pd
import pytest

from lowrank_study.claims.measures.intervals import median_interval, student_interval
from lowrank_study.claims.measures.serving import serving_ratio
from tests.claims.measures.synthetic import evidence, lacking, only


def test_intervals_cover() -> None:
    generator = np.random.default_rng(1)
    draws = generator.normal(3.0, 2.0, (4000, 5))
    means = [student_interval(row, confidence=0.95) for row in draws]
    medians = [median_interval(row) for row in generator.normal(3.0, 2.0, (2000, 15))]
    assert np.mean([i.low <= 3 <= i.high for i in means]) == pytest.approx(0.95, abs=0.015)
    assert 0.95 <= np.mean([i.low <= 3 <= i.high for i in medians]) <= 0.985
    assert math.isinf(median_interval([1.0, 2.0, 3.0]).high)


def test_serving_is_a_median_of_paired_ratios() -> None:
    rounds = pd.DataFrame({"base": np.arange(1.0, 22.0), "merged": np.arange(1.0, 22.0) * 1.02})
    interval = only(serving_ratio(evidence(serving=rounds), "merged", "base"))
    assert (interval.value, interval.low) == (pytest.approx(1.02), pytest.approx(1.02))
    assert "times of loop" in lacking(serving_ratio(evidence(serving=rounds), "loop", "base"))
