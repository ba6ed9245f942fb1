"""Predictions of a model on a split, and what they are worth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score
from torch import nn

from lowrank_study.training.batches import Batch, evaluation_batches
from lowrank_study.training.data import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a model says of every text of a split, in the split's order."""

    labels: np.ndarray
    """True class numbers."""
    predicted: np.ndarray
    """Class of the highest score."""
    losses: np.ndarray
    """Cross-entropy of each text, nats."""

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each text was classified rightly."""
        return np.asarray(self.labels == self.predicted)

    def metrics(self) -> dict[str, float]:
        """Return accuracy, macro-averaged F1, mean loss, and the commonest class's share."""
        return {
            "accuracy": float(self.correct.mean()),
            "macro_f1": float(f1_score(self.labels, self.predicted, average="macro")),
            "loss": float(self.losses.mean()),
            "majority_accuracy": float(np.bincount(self.labels).max() / len(self.labels)),
        }


def scores(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return the class scores of a batch, (texts, classes)."""
    inputs: Mapping[str, torch.Tensor] = {
        "input_ids": batch.ids_NT.to(device),
        "attention_mask": batch.mask_NT.to(device),
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs = {**inputs, "token_type_ids": batch.types_NT.to(device)}
    logits: torch.Tensor = model(**inputs).logits
    return logits


@torch.inference_mode()
def predict(
    model: nn.Module, split: Split, *, device: torch.device, precision: str, pad_id: int
) -> Predictions:
    """Return the model's predictions on a whole split."""
    model.eval()
    predicted = np.zeros(len(split), dtype=np.int64)
    losses = np.zeros(len(split), dtype=np.float64)
    for batch in evaluation_batches(split, pad_id=pad_id):
        with autocast(device, precision):
            logits = scores(model, batch, device)
        labels = batch.labels_N.to(device)
        loss_N = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        predicted[batch.rows] = logits.argmax(-1).cpu().numpy()
        losses[batch.rows] = loss_N.double().cpu().numpy()
    return Predictions(labels=split.labels, predicted=predicted, losses=losses)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for the matrix products: bf16, or nothing changed in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
