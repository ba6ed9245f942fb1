"""What a task is scored by. Statistics and reports speak of the score; the task names it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


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
    """Key of the chance level in a run's record; `None` if there is no such level."""
    chance: str
    """What the chance level is, as in `predicting the commonest class`."""

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

    def chance_level(self, metrics: Mapping[str, float]) -> float:
        """Return the chance level in the metrics of a split; NaN if it is absent."""
        return metrics.get(self.chance_name, math.nan) if self.chance_name else math.nan

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
    chance="predicting the commonest class",
)
