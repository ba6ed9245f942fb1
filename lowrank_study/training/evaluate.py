"""Predictions of a model on a split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowrank_study.data.splits import Split
from lowrank_study.tasks import Kind, Predictions
from lowrank_study.training.batches import Batch, evaluation_batches


@torch.inference_mode()
def predict(
    task: Kind,
    scores: Callable[[Batch], Tensor],
    split: Split,
    *,
    device: torch.device,
    precision: str,
) -> Predictions:
    """Return predictions on a whole split."""
    predicted = np.zeros(len(split), dtype=np.int64)
    losses = np.zeros(len(split), dtype=np.float64)
    for batch in evaluation_batches(split):
        with autocast(device, precision):
            found = scores(batch)
        loss_N = task.loss(found, batch, reduction="none")
        predicted[batch.rows] = task.predicted(found, batch).cpu().numpy()
        losses[batch.rows] = loss_N.double().cpu().numpy()
    return Predictions(task=task, labels=split.labels, predicted=predicted, losses=losses)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for the matrix products: bf16, or nothing changed in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
