"""Before training: a batch gives the scores and gradients that each of its texts gives alone.

The stock model on one text, without padding and neighbours, is what every path is held to: texts
laid end to end, and padded ones (`trainer=reference`, and architectures that need it).

    >>> alone = findings(model, evaluate, train, batch.parts(1))
    >>> together = findings(model, evaluate, train, [batch])
    >>> difference(together, alone)          # None: rounding explains it
    'scores in training change by 0.31'

Dropout is switched off meanwhile: its code runs, and drops nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lowrank_study.training.batches import Batch

_SCORES, _GRADIENTS = 1e-4, 1e-3
"""Largest relative differences that rounding explains: more in a gradient, which has cancelled."""
_OF_ALL = 1e-5
"""A parameter's gradient is taken for rounding below this share of the gradient of all."""

Scores = Callable[[Batch], Tensor]
"""Gives the class scores of a batch, (N, C)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a path makes of a batch."""

    scores: dict[str, Tensor]
    """Class scores, (N, C), in evaluation and in training."""
    gradients: dict[str, Tensor]
    """Of the summed loss, by the name of the trained parameter."""


def findings(model: nn.Module, evaluate: Scores, train: Scores, parts: Iterable[Batch]) -> Findings:
    """Compute a batch part by part, as training does; gradients are taken away again.

    Parameters
    ----------
    model
        Has the trained parameters.
    evaluate, train
        Compute the scores of a part in either mode.
    parts
        The batch.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    evaluated, in_training = [], []
    with _WithoutDropout():
        for part in parts:
            with torch.no_grad():
                evaluated.append(evaluate(part))
            if trained:
                scores_NC = train(part)
                labels_N = part.labels_N.to(scores_NC.device)
                loss = functional.cross_entropy(scores_NC, labels_N, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                in_training.append(scores_NC.detach())
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    for parameter in trained.values():
        parameter.grad = None
    scores = {"evaluation": torch.cat(evaluated)}
    if in_training:
        scores["training"] = torch.cat(in_training)
    return Findings(scores=scores, gradients=gradients)


def difference(found: Findings, expected: Findings) -> str | None:
    """Say what differs by more than rounding; None where nothing does.

    Scores that are not finite are the run's own matter: it diverges at once.
    """
    for mode, expected_NC in expected.scores.items():
        largest = float((found.scores[mode] - expected_NC).abs().max())
        if expected_NC.isfinite().all() and not largest <= _SCORES * float(expected_NC.abs().max()):
            return f"scores in {mode} change by {largest:.2g}"
    norms = [float(gradient.norm()) for gradient in expected.gradients.values()]
    rounding = _OF_ALL * sum(norm**2 for norm in norms) ** 0.5
    for (name, gradient), norm in zip(expected.gradients.items(), norms, strict=True):
        other = found.gradients.get(name, torch.zeros_like(gradient))
        apart = float((other - gradient).norm())
        if gradient.isfinite().all() and not apart <= _GRADIENTS * norm + rounding:
            return f"the gradient of {name} changes by {apart:.2g}, and is {norm:.2g}"
    return None


class _WithoutDropout(TorchFunctionMode):
    """Let dropout pass everything on, and keep every layer (layer drop asks `torch.rand`)."""

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the functions that drop."""
        named = dict(kwargs or {})
        if function in (functional.dropout, torch.dropout):
            return args[0] if args else named["input"]
        if function is functional.scaled_dot_product_attention and "dropout_p" in named:
            named["dropout_p"] = 0.0
        made = function(*args, **named)
        return torch.ones_like(made) if function is torch.rand else made
