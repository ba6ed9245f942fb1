"""Limits: the validation losses above which a trial of a learning rate is stopped early.

A worker stops a trial with them, and the choice of a rate applies them to the stored curves. So
the choice is the same whether a worker stopped the trial or trained it to its last step.
"""

from collections.abc import Mapping, Sequence

Point = Mapping[str, float]
"""One evaluation on validation: `step`, `loss`, the task's score and others."""
Limits = Mapping[int, float]
"""The largest loss with which a trial continues, by step."""


def first_above(curve: Sequence[Point], limits: Limits) -> Point | None:
    """Return the first evaluation whose loss is above its limit or NaN, if there is one."""
    for point in curve:
        limit = limits.get(int(point["step"]))
        if limit is not None and not point["loss"] <= limit:
            return point
    return None
