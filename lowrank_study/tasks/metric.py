"""What a task is scored by. Statistics and reports speak of the score; the task names it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowrank_study.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """The largest loss at which a rank still suffices: one of the two is 0."""

    points: float
    """In the unit of the score."""
    share: float
    """As a share of what full fine-tuning gains over the baseline."""


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
    margin: float | str
    """What `margin=auto` stands for; see `read_margin`."""
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
    def better(self) -> str:
        """Where a better score lies on the scale: below or above."""
        return "above" if self.higher_is_better else "below"

    @property
    def axis_label(self) -> str:
        """Name of the score on an axis, with its unit unless it is a share."""
        return self.label if self.width == 1 else f"{self.label} ({self.points})"

    def in_words(self, score: float) -> str:
        """Write a score with its unit, unless it is a share."""
        return f"{score:.3f}" if self.width == 1 else f"{score:.3f} {self.points}"

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

    def read_margin(self, given: float | str) -> Margin:
        """Return the margin that a setting gives: `0.02`, `10%` of the gain, or `auto`.

        Raises:
            InputError: It is none of these, or not above 0.
        """
        text = str(self.margin if given == "auto" else given)
        is_share = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = math.nan
        if not 0 < number < (100 if is_share else self.width):
            is_unit = self.width == 1
            valid = "a share between 0 and 1, such as 0.02" if is_unit else "a number above 0"
            raise InputError(
                f"margin={given}: give {valid} ({self.points}), a percentage of what full "
                "fine-tuning gains, such as 10%, or auto"
            )
        if is_share:
            return Margin(points=0.0, share=number / 100)
        return Margin(points=number, share=0.0)

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
    margin=0.02,
    chance_name="majority_accuracy",
    baseline="chance",
    chance="predicting the commonest class",
)

CHOICE_ACCURACY = replace(
    ACCURACY, chance_name="chance_accuracy", chance="guessing one of the options"
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
    margin="10%",
    chance_name=None,
    baseline="the base model",
    chance="before fine-tuning",
)
