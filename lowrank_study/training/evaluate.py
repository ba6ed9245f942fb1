"""Predictions of a model on a split."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_study.data.splits import Split
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
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in evaluation_batches(split, tokens=tokens):
        with autocast(device, precision):
            scored = scores(batch)
        for name, values_N in task.answers(scored, batch).items():
            found[name].append(values_N.cpu().numpy())
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    return Predictions(task=task, columns=task.rows(split, columns))


def batch_tokens(model: nn.Module, *, precision: str, reference: bool) -> int:
    """Return how many tokens a model should read at once; `reference` pads its texts."""
    if reference or not can_unpad(model):
        return _TOKENS
    return max(_TOKENS, _TRAINING_PASSES * part_tokens(model, precision))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for the matrix products: bf16, or nothing changed in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
