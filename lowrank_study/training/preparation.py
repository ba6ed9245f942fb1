"""Training batches for methods whose initial values depend on data (`Method.prepare`)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank_study.data.splits import Split
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import Batch, training_batches
from lowrank_study.training.unpadded import padded_scores


def batch_losses(
    model: nn.Module, spec: RunSpec, split: Split, device: torch.device, pad_id: int
) -> Iterator[Iterator[Tensor]]:
    """Yield, for each training batch, the losses of its texts, which add up to its mean loss.

    Each text is computed alone and in fp32, by the stock model: no map reads padding.
    """

    def loss(text: Batch, terms: float) -> Tensor:
        [scores] = padded_scores(model, text, device, pad_id)
        text = replace(text, labels_N=text.labels_N.to(device))
        return spec.task.loss(scores, text, reduction="sum") / terms

    for batch in training_batches(
        split, batch_size=spec.train.batch_size, epochs=spec.train.epochs, seed=spec.data_seed
    ):
        terms = spec.task.loss_terms(batch)
        yield (loss(text, terms) for text in batch.parts(1))
