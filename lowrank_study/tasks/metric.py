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
    points: str
    """Unit of a difference of two scores, times 100."""
    chance_name: str | None
    """Key of the chance level in a run's record; `None` if there is no such level."""
    chance: str
    """What the chance level is, as in `always the commonest class`."""

    def chance_level(self, metrics: Mapping[str, float]) -> float:
        """Return the chance level in the metrics of a split; NaN if it is absent."""
        return metrics.get(self.chance_name, math.nan) if self.chance_name else math.nan

    def worth(self, score: float) -> float:
        """Return a number that is greater the better the score is."""
        return score if self.higher_is_better else -score


ACCURACY = Metric(
    name="accuracy",
    label="accuracy",
    higher_is_better=True,
    points="percentage points",
    chance_name="majority_accuracy",
    chance="always the commonest class",
)
