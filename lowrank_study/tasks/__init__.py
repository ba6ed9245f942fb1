"""What a kind of task is, and how its class is found.

Each module here but `metric.py`, `scoring.py` and `causal.py` (what language models share) holds
one kind: a frozen record of a data set and its splits that also knows what a model is asked about
each example. The module has the name that `task.kind` gives in YAML, so a new kind is one module
and one file in `conf/task/`; there is no list to edit.

    >>> task_named("classification").metric.name
    'accuracy'

These modules import torch and pandas only inside functions, because composing a configuration and
listing runs must stay fast.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from lowrank_study.spec import Variant, class_in

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor, nn

    from lowrank_study.config.fields import Fields
    from lowrank_study.data.splits import Account, Split, SplitRows
    from lowrank_study.spec import Asset
    from lowrank_study.tasks.metric import Metric
    from lowrank_study.training.batches import Batch


class Scored(Protocol):
    """How the rows of `Predictions` are scored: by a task's primary metric, or by a second one."""

    @property
    def metric(self) -> Metric:
        """What a score is."""

    @property
    def score_columns(self) -> tuple[str, ...]:
        """The columns that `scores` and `weights` read."""

    def base_columns(self) -> list[str]:
        """Return the columns that `baseline_scores` reads as well."""

    def scored_rows(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that have a score."""

    def scores(self, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the score of each row, (N,)."""

    def weights(self, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the weight of each row in the metric, (N,)."""

    def baseline_scores(self, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the score of each row without fine-tuning, (N,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Variant, ABC):
    """A data set, how it is split, and what a model is asked about each example."""

    name: str
    source: Asset
    """Where the rows are: a file, a folder of files, or a data set on the hub."""
    train: str
    """File in the source's folder, or hub split; `""` if the source is the file itself."""
    validation: str | None
    """The same for validation; `None` carves it from the training rows."""
    test: str | None
    """The same for the test split; `None` carves it from the training rows."""
    group_column: str | None
    """Rows that share its value stay in one split (all reviews of one film, say)."""
    train_size: int | None
    """Training rows used; `None` uses all that remain after carving."""
    validation_size: int | None
    """Validation rows used; `None` uses all. A carved validation split needs a number."""
    test_size: int | None
    """Test rows used; `None` uses all. A carved test split needs a number."""
    split_seed: int
    """Seed of carving and subsampling. All runs share it, so that runs are paired."""
    max_length: int
    """Texts are truncated to this many tokens."""
    encoding: str | None
    """Python's name of a text file's encoding; `None` detects it."""
    separator: str | None
    """Separator of a text file, one character; `None` detects it."""
    test_set_column: str | None
    """Column that names the test set of each row; each of its values is also scored alone."""

    metric: ClassVar[Metric]
    """The primary metric: it chooses the best step and the learning rate, and is reported."""
    peft_task_type: ClassVar[str]
    """PEFT's name for the kind, as in `SEQ_CLS`."""
    model_noun: ClassVar[str]
    """What a model for this kind is, as in `a sequence classifier`."""
    scores_tokens: ClassVar[bool] = False
    """Whether the model scores each token, as a language model does, or each text."""
    reads_files: ClassVar[bool] = False
    """Whether a file that is not a table, such as a text or source code, is one row."""
    score_columns: ClassVar[tuple[str, ...]] = ("label", "predicted")
    """The columns of a run's predictions that `scores` and `weights` read."""

    @property
    def files(self) -> list[str]:
        """The files of the source's folder that are read."""
        return [file for file in (self.train, self.validation, self.test) if file]

    @property
    def sizes(self) -> dict[str, int | None]:
        """The wanted rows of each split; None for all."""
        return {
            "train": self.train_size,
            "validation": self.validation_size,
            "test": self.test_size,
        }

    @classmethod
    def base_columns(cls) -> list[str]:
        """Return the columns of the base model's predictions, beside those of full fine-tuning."""
        return [BASE + name for name in cls.score_columns if name != "label"]

    # Data

    @property
    @abstractmethod
    def columns(self) -> dict[str, str]:
        """The columns that are read, each with the setting that names it."""

    @property
    def read_columns(self) -> dict[str, str]:
        """All columns that are read, with that of the test sets."""
        sets = {self.test_set_column: "task.test_set_column"} if self.test_set_column else {}
        return {**self.columns, **sets}

    @classmethod
    @abstractmethod
    def from_fields(cls, fields: Fields, shared: Mapping[str, Any]) -> Task:
        """Read the settings of this kind; `shared` holds those of every kind."""

    @abstractmethod
    def split_rows(self) -> SplitRows:
        """Read the rows, split them and check that a model can learn from them."""

    @abstractmethod
    def tokenised(self, rows: pd.DataFrame, tokenizer: Any, *, of: str) -> tuple[Split, Account]:
        """Turn the rows of one split into token ids, with what is asked of each example.

        Args:
            of: Name of the split, for messages.
        """

    # Model

    @staticmethod
    @abstractmethod
    def model_class() -> Any:
        """Return the `Auto…` class of transformers that loads the model."""

    @staticmethod
    @abstractmethod
    def configure(config: Any, number_of_labels: int) -> None:
        """Adapt the model's configuration before the model is built."""

    @staticmethod
    @abstractmethod
    def name_outputs(config: Any, labels: Sequence[str]) -> None:
        """Write the names of the outputs into the configuration that is saved with the model."""

    @staticmethod
    @abstractmethod
    def head_names(model: nn.Module) -> list[str]:
        """Return the names of the model's modules that are new, and not pretrained."""

    # Training and evaluation

    @staticmethod
    @abstractmethod
    def loss(scores: Tensor, batch: Batch, *, reduction: Literal["sum", "none"]) -> Tensor:
        """Return the loss of a batch in nats: its sum, or one value an example, (N,).

        Args:
            scores: The model's output, (N, C). If it scores tokens, the losses of the S scored
                tokens, (S,), in nats. Training needs the same weight of each token in the sum.
            batch: The N texts.
            reduction: `sum` is divided by `loss_terms`; `none` gives one value for each text.
        """

    @staticmethod
    @abstractmethod
    def loss_terms(batch: Batch) -> int:
        """Return how many terms the sum of a batch's loss has; training divides by it."""

    @classmethod
    def answers(cls, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return what is kept of the model's output, (N,) each: the loss, in float64, and others.

        `scores` and `batch` are those of `loss`.
        """
        return {"loss": cls.loss(scores, batch, reduction="none").double()}

    @staticmethod
    def rows(split: Split, answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of a split's `Predictions` from its `answers`."""
        return {"label": split.labels, **answers}

    @staticmethod
    @abstractmethod
    def metrics(predictions: Predictions) -> dict[str, float]:
        """Return the metrics of a split: the primary one, the mean loss and others."""

    @staticmethod
    @abstractmethod
    def scores(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the score of each row of `Predictions`, (N,).

        The primary metric is their mean, weighted by `weights`. `predictions` has the
        `score_columns`.
        """

    @property
    def second_scores(self) -> Scored | None:
        """A second metric of the same rows, which a report shows beside the primary one."""
        return None

    @staticmethod
    def scored_rows(predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `Predictions` that have a score: all of them."""
        return predictions

    @staticmethod
    def weights(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the weight of each row in the primary metric, (N,), such as its tokens."""
        import numpy as np

        return np.ones(len(predictions))

    @classmethod
    def baseline_scores(cls, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the score of each row without fine-tuning, (N,); NaN if it was not measured.

        It is that of the base model, whose predictions are the columns with the prefix `base_`.
        """
        import numpy as np

        base = {
            name: predictions[BASE + name]
            for name in cls.score_columns
            if BASE + name in predictions
        }
        if not base:
            return np.full(len(predictions), np.nan)
        return cls.scores(predictions.assign(**base))


BASE = "base_"
"""Prefix of the columns with the base model's predictions."""
_NOT_KINDS = ("causal", "metric", "scoring")
"""Modules here that hold no kind of task."""
Kind = Task | type[Task]
"""A task, or its class where the settings don't matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """A model's predictions on every example of a split, in the split's order."""

    task: Kind
    columns: dict[str, np.ndarray]
    """Columns of the file that a run keeps: `label`, `loss` and others of the task."""

    @property
    def labels(self) -> np.ndarray:
        """What is asked of each example: the true class number in classification."""
        return self.columns["label"]

    @property
    def losses(self) -> np.ndarray:
        """Loss of each example, nats."""
        return self.columns["loss"]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the split."""
        return self.task.metrics(self)

    def in_sets(self, sizes: Mapping[str, int]) -> dict[str, Predictions]:
        """Return the predictions of each test set; the sets follow one another.

        Args:
            sizes: Name of each set → its number of rows.
        """
        found, start = {}, 0
        for name, size in sizes.items():
            rows = {key: column[start : start + size] for key, column in self.columns.items()}
            found[name], start = Predictions(task=self.task, columns=rows), start + size
        return found

    def with_sets(self, sizes: Mapping[str, int]) -> Predictions:
        """Return the predictions with the name of each row's test set, if there are several."""
        import numpy as np

        if not sizes:
            return self
        names = np.repeat(list(sizes), list(sizes.values()))
        return Predictions(task=self.task, columns={**self.columns, "test_set": names})


def task_names() -> list[str]:
    """Return the names of all kinds of task, sorted."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(module.name for module in modules if module.name not in _NOT_KINDS)


def task_named(name: str) -> type[Task]:
    """Return the class of a kind of task by its name in YAML."""
    found: type[Task] = class_in(f"{__name__}.{name}", Task)
    return found


def task_of_kind(kind: str) -> type[Task]:
    """Return the class of a kind of task by the name of the class, which a stored run keeps."""
    return {found.__name__: found for found in map(task_named, task_names())}[kind]
