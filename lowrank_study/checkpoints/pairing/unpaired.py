"""The parts of two checkpoints that can't be compared, and their share of each.

    left_out_parts(items, side="after", compared=1_000_000)
    # [LeftOut(count=2304, ..., why="only in the tuned checkpoint: classifier")]

Tensors without weights of their own are not counted: a vocabulary matrix that is tied to another,
and buffers that the model's code computes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Self

from lowrank_study.checkpoints.formats import shown
from lowrank_study.left_out import LeftOut

SIDES = ("before", "after")
"""The pretrained and the tuned checkpoint, as the command calls them."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """A tensor, or a matrix of one, without a counterpart."""

    side: str
    name: str
    """Module path of a matrix, name of another tensor."""
    parameters: int
    """How many weights it holds; 0 if it has none of its own."""
    is_matrix: bool
    why: str

    @classmethod
    def of(cls, side: str, name: str, shape: tuple[int, ...], why: str, *, is_matrix: bool) -> Self:
        """Describe a tensor that isn't compared at all."""
        return cls(side=side, name=name, parameters=prod(shape), is_matrix=is_matrix, why=why)


def of_other_shape(
    name: str, before: tuple[int, ...], after: tuple[int, ...], *, is_matrix: bool
) -> list[Unpaired]:
    """Describe both sides of a tensor whose shapes differ."""
    why = f"shape {list(before)} before, {list(after)} after"
    return [
        Unpaired.of(side, name, shape, why, is_matrix=is_matrix)
        for side, shape in zip(SIDES, (before, after), strict=True)
    ]


def left_out_parts(items: Iterable[Unpaired], *, side: str, compared: int) -> list[LeftOut]:
    """Return the left-out parts of one checkpoint, one for each reason.

    `compared` is the number of its parameters that are compared.
    """
    by_reason: dict[str, list[Unpaired]] = {}
    for item in items:
        if item.parameters:
            reason = "another shape" if item.why.startswith("shape ") else item.why
            by_reason.setdefault(reason, []).append(item)
    counts = {reason: sum(item.parameters for item in group) for reason, group in by_reason.items()}
    return [
        LeftOut(
            count=counts[reason],
            total=compared + sum(counts.values()),
            unit="parameters",
            of=side,
            why=f"{reason}: {_examples(group)}",
        )
        for reason, group in by_reason.items()
    ]


def _examples(group: list[Unpaired]) -> str:
    names = list(dict.fromkeys(item.name for item in group))
    first = ", ".join(shown(name, 80) for name in names[:_EXAMPLES])
    return first if len(names) <= _EXAMPLES else f"{first} and {len(names) - _EXAMPLES} more"
