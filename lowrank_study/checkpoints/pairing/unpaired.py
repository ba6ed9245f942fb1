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

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.left_out import LeftOut

SIDES = ("before", "after")
"""The pretrained and the tuned checkpoint, as the command calls them."""

_BUFFERS = (
    "inv_freq",
    "original_inv_freq",
    "freqs_cis",
    "cos_cached",
    "sin_cached",
    "masked_bias",
    "attn_mask",
    "causal_mask",
    "relative_position_index",
)
"""Last parts of names of constants: positions, masks."""
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """A tensor, or a matrix of one, without a counterpart."""

    side: str
    """One of `SIDES`."""
    name: str
    """Module path of a matrix, name of another tensor."""
    parameters: int
    """How many weights it holds; 0 if it has none of its own."""
    is_matrix: bool
    """Whether it is a matrix."""
    why: str
    """The reason."""

    @classmethod
    def of(cls, side: str, name: str, shape: tuple[int, ...], why: str, *, is_matrix: bool) -> Self:
        """Describe a tensor that isn't compared at all."""
        return cls(side=side, name=name, parameters=prod(shape), is_matrix=is_matrix, why=why)


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a constant of the model's code; GPT-2 calls its causal mask `bias`."""
    leaf = name.rpartition(".")[2]
    return leaf in _BUFFERS or (leaf == "bias" and len(shape) == 4 and shape[:2] == (1, 1))


def left_out_parts(items: Iterable[Unpaired], *, side: str, compared: int) -> list[LeftOut]:
    """Return the left-out parts of one checkpoint, one for each reason.

    Args:
        items: the parts that aren't compared.
        side: one of `SIDES`.
        compared: how many parameters of this checkpoint are compared.
    """
    counted = [item for item in items if item.parameters]
    total = compared + sum(item.parameters for item in counted)
    by_reason: dict[str, list[Unpaired]] = {}
    for item in counted:
        by_reason.setdefault(_kind(item.why), []).append(item)
    return [
        LeftOut(
            count=sum(item.parameters for item in group),
            total=total,
            unit="parameters",
            of=side,
            why=f"{reason}: {_examples(group)}",
        )
        for reason, group in by_reason.items()
    ]


def _kind(why: str) -> str:
    return "another shape" if why.startswith("shape ") else why


def _examples(group: list[Unpaired]) -> str:
    names = list(dict.fromkeys(item.name for item in group))
    told = ", ".join(shown(name, 80) for name in names[:_NAMED])
    return told if len(names) <= _NAMED else f"{told} and {len(names) - _NAMED} more"
