"""Predictions of a model on a split, and what they are worth."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from lowrank_study.data.splits import Split
from lowrank_study.training.batches import Batch, evaluation_batches


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


@torch.inference_mode()
def predict(
    scores: Callable[[Batch], Tensor], split: Split, *, device: torch.device, precision: str
) -> Predictions:
    """Return predictions on a whole split.

    Parameters
    ----------
    scores
        Gives the class scores of a batch, (texts, classes), by a model in evaluation mode.
    split
        The texts.
    device, precision
        Where and how it computes.
    """
    predicted = np.zeros(len(split), dtype=np.int64)
    losses = np.zeros(len(split), dtype=np.float64)
    for batch in evaluation_batches(split):
        with autocast(device, precision):
            scores_NC = scores(batch)
        labels_N = batch.labels_N.to(device)
        loss_N = nn.functional.cross_entropy(scores_NC.float(), labels_N, reduction="none")
        predicted[batch.rows] = scores_NC.argmax(-1).cpu().numpy()
        losses[batch.rows] = loss_N.double().cpu().numpy()
    return Predictions(labels=split.labels, predicted=predicted, losses=losses)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for the matrix products: bf16, or nothing changed in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
