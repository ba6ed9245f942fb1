"""What published numbers say of each other, computed again from the numbers themselves."""

from collections.abc import Sequence
from datetime import date

from lowrank_study.claims.measures.outcome import (
    Interval,
    Measured,
    Outcome,
    computed,
    measure,
)


@measure
def published_retention(accuracy: float, full: float, chance: float) -> Outcome:
    """Give what one published accuracy keeps of another, over a chance level (0: uncorrected)."""
    how = f"({accuracy:g} - {chance:g}) / ({full:g} - {chance:g}), from the published numbers"
    return computed((accuracy - chance) / (full - chance), how)


@measure
def published_ratio(numerator: float, denominator: float, rounding: Sequence[float]) -> Outcome:
    """Give the ratio of two published numbers, as an interval: each is off by its rounding.

    Or by its published spread, where that is more.
    """
    above, below = rounding
    found = Interval(
        value=numerator / denominator,
        low=(numerator - above) / (denominator + below),
        high=(numerator + above) / (denominator - below),
        label="",
    )
    how = f"{numerator:g} ± {above:g} over {denominator:g} ± {below:g}"
    return Measured(values=(found,), how=how)


@measure
def days_until(first: str, second: str) -> Outcome:
    """Give the days from one paper's first version to another's, as ISO dates."""
    days = (date.fromisoformat(second) - date.fromisoformat(first)).days
    return computed(days, f"from {first} to {second}, the first versions on arXiv")
