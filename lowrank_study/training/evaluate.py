"""Predictions of a model on a split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_study.data.splits import Split
from lowrank_study.methods.layers.modules import task_of
from lowrank_study.tasks import Kind, Predictions
from lowrank_study.training.batches import Batch, evaluation_batches
from lowrank_study.training.unpadded import can_unpad, part_tokens

_TOKENS = 1024
"""Least tokens of a batch, unless the split or one text has fewer."""
_TRAINING_PASSES = 8
"""Tokens of a batch, in units of a training pass: larger products are faster, but need memory."""


@torch.inference_mode()
def predict(
    task: Kind,
    scores: Callable[[Batch], Tensor],
    split: Split,
    *,
    tokens: int = _TOKENS,
    device: torch.device,
    precision: str,
) -> Predictions:
    """Return predictions on a whole split, which is read in batches of at most `tokens`."""
    predicted = np.zeros(len(split), dtype=np.int64)
    losses = np.zeros(len(split), dtype=np.float64)
    for batch in evaluation_batches(split, tokens=tokens):
        with autocast(device, precision):
            found = scores(batch)
        loss_N = task.loss(found, batch, reduction="none")
        predicted[batch.rows] = task.predicted(found, batch).cpu().numpy()
        losses[batch.rows] = loss_N.double().cpu().numpy()
    return Predictions(task=task, labels=split.labels, predicted=predicted, losses=losses)


def batch_tokens(model: nn.Module, *, precision: str, reference: bool) -> int:
    """Return how many tokens a model should read at once; `reference` pads its texts."""
    if reference or not can_unpad(model) or task_of(model).scores_tokens:
        return _TOKENS
    return max(_TOKENS, _TRAINING_PASSES * part_tokens(model, precision))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for the matrix products: bf16, or nothing changed in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
