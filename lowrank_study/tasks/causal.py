"""What the tasks of causal language models share: the model, the loss and its metrics.

The model predicts each scored token from those before it, and has no new head. Losses are in nats.
The loss of a text is the sum over its scored tokens, and means are over tokens: a long document
counts more than a short one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowrank_study.errors import InputError
from lowrank_study.tasks import Predictions, Task
from lowrank_study.tasks.metric import NATS_PER_TOKEN, Metric

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor, nn

    from lowrank_study.data.reading import Rows
    from lowrank_study.data.selection import Selected
    from lowrank_study.data.splits import Split, SplitRows
    from lowrank_study.training.batches import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalTask(Task):
    """A task whose model predicts tokens from those before them."""

    metric: ClassVar[Metric] = NATS_PER_TOKEN
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    model_noun: ClassVar[str] = "a causal language model"
    scores_tokens: ClassVar[bool] = True
    score_columns: ClassVar[tuple[str, ...]] = ("loss", "tokens")

    @abstractmethod
    def selected(self, split: str, rows: Rows) -> Selected:
        """Select the rows with a text to predict; `text` is what must not be in two splits."""

    def split_rows(self) -> SplitRows:
        """Read the rows and split them.

        Raises:
            InputError: A column is missing, or the splits are too small.
        """
        from lowrank_study.data import learnable
        from lowrank_study.data.carving import carve
        from lowrank_study.data.reading import read_splits
        from lowrank_study.data.splits import Account, SplitRows

        rows = read_splits(self, label_column=None)
        selected = {split: self.selected(split, read) for split, read in rows.items()}
        whole = {split: part.frame for split, part in selected.items()}
        frames = carve(self, whole)
        learnable.require_training_rows(self, frames["train"], whole)
        account = Account(
            left_out=tuple(part for each in selected.values() for part in each.left_out),
            read=(
                *(read.summary for read in rows.values()),
                *(f"{split}: {len(frame):,} rows" for split, frame in frames.items()),
            ),
            warnings=(
                *(warning for each in selected.values() for warning in each.warnings),
                *learnable.missed_sizes(self, frames),
                *learnable.repeated_texts(self, frames, whole),
            ),
        )
        return SplitRows(frames=frames, labels=(), account=account)

    @staticmethod
    def model_class() -> Any:
        """Return the class of causal language models."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    @staticmethod
    def configure(config: Any, number_of_labels: int) -> None:
        """Refuse encoders and encoder-decoders, in which a token reads those after it."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if config.is_encoder_decoder or (is_encoder and not getattr(config, "is_decoder", False)):
            raise InputError(
                f"model_type={config.model_type!r} reads the tokens that it would have to predict: "
                "choose a decoder, such as model=smollm2, model=llama or model=gpt2"
            )

    @staticmethod
    def name_outputs(config: Any, labels: Sequence[str]) -> None:
        """Change nothing: the outputs are the vocabulary."""

    @staticmethod
    def head_names(model: nn.Module) -> list[str]:
        """Return nothing: every weight is pretrained."""
        return []

    @staticmethod
    def loss(scores: Tensor, batch: Batch, *, reduction: Literal["sum", "none"]) -> Tensor:
        """Return the losses of texts, (N,), or their sum, from those of the scored tokens, (S,)."""
        import torch

        if reduction == "sum":
            return scores.sum()
        lengths = torch.tensor(batch.lengths)
        text_T = torch.arange(len(lengths)).repeat_interleave(lengths)
        text_S = text_T[batch.scored_S].to(scores.device)
        return scores.new_zeros(len(lengths), dtype=torch.float64).index_add(
            0, text_S, scores.double()
        )

    @staticmethod
    def loss_terms(batch: Batch) -> int:
        """Return the number of scored tokens."""
        return int(batch.scored_T.sum())

    @staticmethod
    def rows(split: Split, answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return one row a document: its number, and its loss, tokens and bytes over all parts."""
        import numpy as np

        documents, of_text = np.unique(split.labels, return_inverse=True)
        tokens = np.add.reduceat(split.scored, split.offsets[:-1], dtype=np.int64)

        def summed(values: np.ndarray) -> np.ndarray:
            return np.bincount(of_text, weights=values)

        return {
            "label": documents,
            "loss": summed(answers["loss"]),
            "tokens": summed(tokens).astype(np.int64),
            "bytes": summed(split.text_bytes).astype(np.int64),
        }

    @staticmethod
    def metrics(predictions: Predictions) -> dict[str, float]:
        """Return the mean loss of a token, the bits for a byte of text, and the perplexity."""
        columns = predictions.columns
        total = float(columns["loss"].sum())
        mean = total / float(columns["tokens"].sum())
        return {
            "nats_per_token": mean,
            "bits_per_byte": total / (math.log(2) * float(columns["bytes"].sum())),
            "perplexity": math.exp(min(mean, _LARGEST_EXPONENT)),
            "loss": mean,
        }

    @staticmethod
    def scores(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the mean loss of a token of each document."""
        import numpy as np

        return np.asarray(predictions["loss"] / predictions["tokens"], dtype=np.float64)

    @staticmethod
    def weights(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the scored tokens of each document."""
        import numpy as np

        return np.asarray(predictions["tokens"], dtype=np.float64)


_LARGEST_EXPONENT = 700.0
"""A larger mean loss would overflow in the perplexity."""
