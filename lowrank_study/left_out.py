"""Account for parts of an input that were not used; refuse more than 5 %.

    >>> row = LeftOut(count=12, total=300, unit="rows", of="reviews.csv", why="an empty label")
    >>> row.sentence
    'left out: 12 of 300 rows of reviews.csv (4 %): an empty label'

A command that leaves something out prints these sentences before anything else and ends with exit
code 1. Above 5 % it refuses with exit code 2. `allow_partial=true` accepts both with exit code 0.
Data that a setting excludes (`task.train_size`, `task.max_length`, `task.labels`) does not count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowrank_study.errors import InputError

LARGEST_SHARE = 0.05
"""Share of an input that may be left out without `allow_partial=true`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One part of one input that was not used, for one reason."""

    count: int
    """Amount that was left out, in `unit`."""
    total: int
    """Total amount, in `unit`."""
    unit: str
    """`rows`, `parameters`, `runs` …"""
    of: str
    """The input, by a name that users know: a file, a checkpoint, a sweep."""
    why: str
    """The reason, and an example where it helps."""

    @property
    def share(self) -> float:
        """The share of the input that was left out, from 0 to 1."""
        return self.count / self.total if self.total else 0.0

    @property
    def sentence(self) -> str:
        """Return the sentence that a command prints first."""
        share = f"{100 * self.share:.2g} %" if self.share < 0.995 else f"{100 * self.share:.3g} %"
        return (
            f"left out: {self.count:,} of {self.total:,} {self.unit} of {self.of} ({share}): "
            f"{self.why}"
        )


def check_left_out(parts: Sequence[LeftOut], *, allow_partial: bool) -> None:
    """Refuse an input if more than 5 % of it would be left out."""
    if allow_partial:
        return
    for of in dict.fromkeys(part.of for part in parts):
        mine = [part for part in parts if part.of == of]
        if sum(part.share for part in mine) > LARGEST_SHARE:
            sentences = "; ".join(in_words(mine))
            raise InputError(
                f"{sentences}. Fix the input, or set allow_partial=true to accept this"
            )


def in_words(parts: Iterable[LeftOut]) -> list[str]:
    """Return the sentences, the largest share first."""
    ordered = sorted(parts, key=lambda part: part.share, reverse=True)
    return [part.sentence for part in ordered if part.count]
