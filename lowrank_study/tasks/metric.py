"""What a task is scored by. Statistics and reports speak of the score; the task names it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The primary metric of a kind of task."""

    name: str
    """Key in a run's record, as in `accuracy`."""
    label: str
    """Name in reports: `accuracy`, after `test` or `validation`."""
    higher_is_better: bool
    lowest: float
    """The lowest possible score of an example; `-inf` without a bound."""
    highest: float
    """The highest possible score; `inf` without a bound."""
    is_binary: bool
    """Whether an example scores 0 or 1, so that p has the standard error sqrt(p (1 - p) / n)."""
    points: str
    """Unit of a difference of two scores, as in `percentage points` or `nats`."""
    points_per_unit: int
    """Points in a difference of 1: 100 for percentage points, 1 for nats."""
    chance_name: str | None
    """Key of the chance level among a run's test metrics; `None` compares with the base model."""
    baseline: str
    """The score without fine-tuning, in reports: `chance`, or `the base model`."""
    chance: str
    """What the baseline is, as in `predicting the commonest class`."""

    @property
    def worse(self) -> str:
        """Where a worse score lies on the scale: below or above."""
        return "below" if self.higher_is_better else "above"

    @property
    def width(self) -> float:
        """The largest possible difference of two scores."""
        return self.highest - self.lowest

    @property
    def valid(self) -> str:
        """What a score can be, for messages."""
        if (self.lowest, self.highest) == (0.0, 1.0):
            return "a share between 0 and 1"
        return f"a number from {self.lowest:g} to {self.highest:g}"

    @property
    def needs_base(self) -> bool:
        """Whether runs of full fine-tuning measure the base model before their first step."""
        return self.chance_name is None

    def baseline_level(self, record: Mapping[str, Any]) -> float:
        """Return the test score without fine-tuning from a run's record; NaN if it is absent."""
        of, name = ("base", self.name) if self.chance_name is None else ("test", self.chance_name)
        level: float = record.get(of, {}).get(name, math.nan)
        return level

    def worth(self, score: float) -> float:
        """Return a number that is greater the better the score is."""
        return score if self.higher_is_better else -score

    def standard_error(self, mean: float, examples: float) -> float:
        """Return the error of a mean from sampling the examples; NaN if they aren't binary."""
        if not (self.is_binary and examples > 0):
            return math.nan
        return math.sqrt(mean * (1 - mean) / examples)


ACCURACY = Metric(
    name="accuracy",
    label="accuracy",
    higher_is_better=True,
    lowest=0.0,
    highest=1.0,
    is_binary=True,
    points="percentage points",
    points_per_unit=100,
    chance_name="majority_accuracy",
    baseline="chance",
    chance="predicting the commonest class",
)

NATS_PER_TOKEN = Metric(
    name="nats_per_token",
    label="loss",
    higher_is_better=False,
    lowest=0.0,
    highest=math.inf,
    is_binary=False,
    points="nats per token",
    points_per_unit=1,
    chance_name=None,
    baseline="the base model",
    chance="before fine-tuning",
)
