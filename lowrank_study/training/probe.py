"""Check before training that a batch gives the same scores and gradients as each text alone.

The stock model on a single text, without padding, is the reference for concatenated and for padded
texts.

Dropout drops nothing during the check.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lowrank_study.tasks import Task
from lowrank_study.training.batches import Batch

_SCORES, _GRADIENTS = 1e-4, 1e-3
"""Largest relative differences that count as rounding."""
_NEGLIGIBLE = 1e-5
"""Share of the total gradient below which a parameter's gradient counts as rounding."""

Scores = Callable[[Batch], Tensor]
"""A function that returns the scores of a batch: (N, C), or (S,) for a task that scores tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Scores and gradients of a batch on one path."""

    scores: dict[str, Tensor]
    """Scores in evaluation and in training."""
    gradients: dict[str, Tensor]
    """Gradients of the summed loss, by the name of the trained parameter."""


def findings(
    model: nn.Module, task: type[Task], evaluate: Scores, train: Scores, parts: Iterable[Batch]
) -> Findings:
    """Return scores and gradients of a batch that is computed part by part; clear the gradients.

    Args:
        evaluate: Returns the scores of the model.
        train: Returns the scores of every run of its pack, of which the model's are the first.
        parts: The batch.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    evaluated, in_training = [], []
    with _WithoutDropout():
        for part in parts:
            with torch.no_grad():
                evaluated.append(evaluate(part))
            if trained:
                scores_R = train(part)
                losses_R = [task.loss(scores, part, reduction="sum") for scores in scores_R]
                torch.stack(losses_R).sum().backward()  # type: ignore[no-untyped-call]
                in_training.append(scores_R[0].detach())
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    for parameter in trained.values():
        parameter.grad = None
    scores = {"evaluation": torch.cat(evaluated)}
    if in_training:
        scores["training"] = torch.cat(in_training)
    return Findings(scores=scores, gradients=gradients)


def difference(found: Findings, expected: Findings) -> str | None:
    """Return what differs by more than rounding; None if nothing does.

    Scores that are not finite are skipped, because such a run diverges at its first step.
    """
    for mode, expected_NC in expected.scores.items():
        largest = float((found.scores[mode] - expected_NC).abs().max())
        if expected_NC.isfinite().all() and not largest <= _SCORES * float(expected_NC.abs().max()):
            return f"scores in {mode} change by {largest:.2g}"
    norms = [float(gradient.norm()) for gradient in expected.gradients.values()]
    rounding = _NEGLIGIBLE * sum(norm**2 for norm in norms) ** 0.5
    for (name, gradient), norm in zip(expected.gradients.items(), norms, strict=True):
        other = found.gradients.get(name, torch.zeros_like(gradient))
        apart = float((other - gradient).norm())
        if gradient.isfinite().all() and not apart <= _GRADIENTS * norm + rounding:
            return f"the gradient of {name} changes by {apart:.2g}, and is {norm:.2g}"
    return None


class _WithoutDropout(TorchFunctionMode):
    """Make dropout keep everything, including whole layers (layer drop calls `torch.rand`)."""

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if function in (functional.dropout, torch.dropout):
            return args[0] if args else named["input"]
        if function is functional.scaled_dot_product_attention and "dropout_p" in named:
            named["dropout_p"] = 0.0
        made = function(*args, **named)
        return torch.ones_like(made) if function is torch.rand else made
