"""Text classification: one text, or a pair, and one of several classes.

The model is transformers' sequence classifier with a new head. The score is accuracy, and chance
is the share of the commonest class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowrank_study.errors import InputError
from lowrank_study.tasks import Predictions, Task
from lowrank_study.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor, nn

    from lowrank_study.config.fields import Fields
    from lowrank_study.data.reading import Rows
    from lowrank_study.data.selection import Selected
    from lowrank_study.data.splits import Account, Split, SplitRows
    from lowrank_study.training.batches import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification(Task):
    """A text classification task and how it is split."""

    text_columns: tuple[str, ...]
    """One column, or two for sentence pairs."""
    label_column: str
    labels: tuple[str, ...]
    """Class names in order; other rows are dropped. `()` takes those of train, sorted."""

    metric: ClassVar[Metric] = ACCURACY
    peft_task_type: ClassVar[str] = "SEQ_CLS"
    model_noun: ClassVar[str] = "a sequence classifier"

    @classmethod
    def from_fields(cls, fields: Fields, shared: Mapping[str, Any]) -> Classification:
        """Read the columns and the class names."""
        columns, label = fields.names("text_columns"), fields.text("label_column")
        _check_columns(columns, label, shared["group_column"])
        labels = _class_names(fields)
        return cls(text_columns=columns, label_column=label, labels=labels, **shared)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, each with the setting that names it."""
        settings = dict.fromkeys(self.text_columns, "task.text_columns")
        settings[self.label_column] = "task.label_column"
        if self.group_column:
            settings[self.group_column] = "task.group_column"
        return settings

    def split_rows(self) -> SplitRows:
        """Read the rows, split them and check that a classifier can learn from them.

        Raises:
            InputError: A column or label is missing, or the splits are too small.
        """
        from lowrank_study.data import labels, learnable
        from lowrank_study.data.carving import carve
        from lowrank_study.data.reading import read_splits
        from lowrank_study.data.splits import Account, SplitRows

        rows = read_splits(self, label_column=self.label_column)
        selected = {split: self._selected(split, read) for split, read in rows.items()}
        whole = {split: part.frame for split, part in selected.items()}
        names = labels.class_names(self.label_column, self.labels, whole["train"]["label"])
        _check_known(names, whole)
        frames = carve(self, whole)
        labels.require_two_classes(self.name, frames["train"]["label"])
        learnable.require_training_rows(self, frames["train"], whole)
        of_split = {split: frame["label"] for split, frame in frames.items()}
        counted = [
            f"{split}: {len(found):,} rows ({labels.class_counts(found)})"
            for split, found in of_split.items()
        ]
        account = Account(
            left_out=tuple(part for each in selected.values() for part in each.left_out),
            read=(*(read.summary for read in rows.values()), *counted),
            warnings=(
                *(warning for each in selected.values() for warning in each.warnings),
                *labels.odd_labels(names),
                *labels.check_classes(self.label_column, of_split),
                *learnable.missed_sizes(self, frames),
                *learnable.repeated_texts(self, frames, whole),
            ),
        )
        numbers = {label: number for number, label in enumerate(names)}
        numbered = {n: f.assign(label=f["label"].map(numbers)) for n, f in frames.items()}
        return SplitRows(frames=numbered, labels=names, account=account)

    def _selected(self, split: str, rows: Rows) -> Selected:
        """Select the rows that have a label of the task and no empty cell."""
        import pandas as pd

        from lowrank_study.data.labels import check_present, read_labels
        from lowrank_study.data.selection import Selected, select

        labels, had_space = read_labels(rows, self.label_column)
        if self.labels:
            check_present(self.labels, labels, split=split, column=self.label_column)
            wanted, required = labels.isin(self.labels), {}
        else:
            wanted = pd.Series(True, index=labels.index)
            required = {self.label_column: labels}
        found = select(
            self, split, rows, text_columns=self.text_columns, required=required, wanted=wanted
        )
        stripped = int(had_space[found.frame.index].sum())
        warnings = [f"{rows.of}: {stripped:,} labels had white space around them"] * (stripped > 0)
        return Selected(
            frame=found.frame.assign(label=labels).reset_index(drop=True),
            left_out=found.left_out,
            warnings=[*warnings, *found.warnings],
        )

    def tokenised(self, rows: pd.DataFrame, tokenizer: Any, *, of: str) -> tuple[Split, Account]:
        """Turn texts into token ids, with the class number of each text."""
        from lowrank_study.data.splits import NO_ACCOUNT, encoded

        columns = [name for name in ("text", "text_pair") if name in rows]
        texts = [rows[name].tolist() for name in columns]
        labels = rows["label"].to_numpy()
        return encoded(tokenizer, texts, max_length=self.max_length, labels=labels), NO_ACCOUNT

    @staticmethod
    def model_class() -> Any:
        """Return the class of sequence classifiers."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @staticmethod
    def configure(config: Any, number_of_labels: int) -> None:
        """Set the number of classes."""
        config.num_labels = number_of_labels  # also sets the number of class names

    @staticmethod
    def name_outputs(config: Any, labels: Sequence[str]) -> None:
        """Write the class names into the configuration.

        Otherwise BART would load two classes as three, its configuration's default.
        """
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}

    @staticmethod
    def head_names(model: nn.Module) -> list[str]:
        """Return the names of the modules outside the pretrained backbone.

        This is `classifier` in BERT, `pooler` and `classifier` in DeBERTa, `head` and `classifier`
        in ModernBERT.
        """
        backbone = str(model.base_model_prefix)
        return [
            name
            for name, child in model.named_children()
            if name != backbone and any(True for _ in child.parameters())
        ]

    @staticmethod
    def loss(scores: Tensor, batch: Batch, *, reduction: Literal["sum", "none"]) -> Tensor:
        """Return the cross-entropy of class scores, (N, C)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(scores.float(), batch.labels_N.to(scores.device), reduction=reduction)

    @staticmethod
    def loss_terms(batch: Batch) -> int:
        """Return the number of texts."""
        return len(batch.lengths)

    @classmethod
    def answers(cls, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the class of the highest score, and the loss."""
        loss_N = cls.loss(scores, batch, reduction="none").double()
        return {"predicted": scores.argmax(-1), "loss": loss_N}

    @staticmethod
    def metrics(predictions: Predictions) -> dict[str, float]:
        """Return accuracy, macro-averaged F1, mean loss, and the commonest class's share."""
        labels, predicted = predictions.labels, predictions.columns["predicted"]
        return {
            "accuracy": float((labels == predicted).mean()),
            "macro_f1": _macro_f1(labels, predicted),
            "loss": float(predictions.losses.mean()),
            "majority_accuracy": Classification.chance(labels),
        }

    @staticmethod
    def scores(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return 1 for each text whose class was predicted, else 0."""
        import numpy as np

        return np.asarray(predictions["label"] == predictions["predicted"], dtype=np.float64)

    @classmethod
    def baseline_scores(cls, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the chance level for every text."""
        import numpy as np

        return np.full(len(predictions), cls.chance(predictions["label"]))

    @staticmethod
    def chance(labels: npt.ArrayLike) -> float:
        """Return the share of the commonest class."""
        import numpy as np

        numbers = np.asarray(labels)
        return float(np.bincount(numbers).max() / len(numbers))


def _macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 score of the classes that occur, 2 · hits / (true + predicted).

    This is scikit-learn's `f1_score(average="macro")`, whose import takes half a second.
    """
    import numpy as np

    classes = max(labels.max(), predicted.max()) + 1
    hits, true, found = (
        np.bincount(numbers, minlength=classes)
        for numbers in (labels[labels == predicted], labels, predicted)
    )
    occurs = true + found > 0
    return float((2.0 * hits[occurs] / (true + found)[occurs]).mean())


def _check_known(names: Sequence[str], whole: Mapping[str, pd.DataFrame]) -> None:
    for split, frame in whole.items():
        if unknown := sorted(set(frame["label"]) - set(names)):
            raise InputError(
                f"label {unknown[0]!r} occurs in {split} but not in train, whose labels are "
                f"{', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
            )


def _check_columns(columns: Sequence[str], label: str, group: str | None) -> None:
    if len(columns) not in (1, 2) or len(set(columns)) < len(columns):
        raise InputError(
            f"task.text_columns={list(columns)}: give one column, or two different ones for pairs"
        )
    if label in columns:
        raise InputError(
            f"task.label_column={label!r} is one of task.text_columns={list(columns)}: the answer "
            "would be in the text; name another column"
        )
    if group == label:
        raise InputError(
            f"task.group_column={group!r} is also task.label_column: each class would be in one "
            "split only; name another column, or null"
        )


def _class_names(fields: Fields) -> tuple[str, ...]:
    """Read class names; refuse words that YAML reads as booleans or numbers."""
    value = fields.value("labels")
    for label in value if isinstance(value, Sequence) and not isinstance(value, str) else []:
        if label is None or isinstance(label, bool | float):
            raise InputError(
                f"task.labels: YAML reads {label!r} from a word without quotation marks (yes, no, "
                "on, off, true, false, null, 1.0): put quotation marks around each label, as in "
                """'task.labels=["yes","no"]'"""
            )
    labels = tuple(label.strip() for label in fields.names("labels"))
    if len(labels) == 1 or len(set(labels)) < len(labels):
        raise InputError(f"task.labels={list(labels)}: give at least two labels, each once")
    return labels
