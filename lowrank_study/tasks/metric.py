"""What a task is scored by. Statistics and reports speak of the score; the task names it."""

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
    chance: str
    """What the chance level is, as in `always the commonest class`."""


ACCURACY = Metric(
    name="accuracy",
    label="accuracy",
    higher_is_better=True,
    points="percentage points",
    chance="always the commonest class",
)
