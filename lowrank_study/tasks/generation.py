"""Generation: instruction tuning, after which the model answers the prompts of the test split.

Training and the primary metric are those of instruction tuning. At the end, the model continues
each prompt by greedy decoding (`training/generation.py`), and a scorer compares its answer with the
response of the row. In a chat with several responses, the last one is generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_study.errors import InputError
from lowrank_study.tasks import BASE, Predictions, Task
from lowrank_study.tasks.causal import CausalTask
from lowrank_study.tasks.instruction import Instruction
from lowrank_study.tasks.metric import Metric
from lowrank_study.tasks.scoring import SCORERS, metric_of, score, scorer_named

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from lowrank_study.config.fields import Fields
    from lowrank_study.data.splits import Account, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScores:
    """How generated answers are scored; see `Scored`. Rows without an answer have NaN."""

    metric: Metric
    score_columns: ClassVar[tuple[str, ...]] = ("answer_score",)

    @staticmethod
    def base_columns() -> list[str]:
        """Return the column of the base model's scores."""
        return [f"{BASE}answer_score"]

    @staticmethod
    def scored_rows(predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with an answer."""
        return predictions[predictions["answer_score"].notna()]

    @staticmethod
    def scores(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the score of each answer."""
        return predictions["answer_score"].to_numpy(dtype="float64")

    @staticmethod
    def weights(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return equal weights."""
        return Task.weights(predictions)

    @staticmethod
    def baseline_scores(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the scores of the base model's answers."""
        return predictions[f"{BASE}answer_score"].to_numpy(dtype="float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(Instruction):
    """Prompts and responses, and how the model's own answers are generated and scored."""

    scorer: str
    """Name of a scorer (`scoring.py`), or the import path of a function."""
    stop: tuple[str, ...]
    """An answer ends before the first of these texts, or at a token that ends a response."""
    max_new_tokens: int
    """Most tokens of an answer."""
    generated_examples: int | None
    """Rows of each test set that are answered, evenly spaced; None for all."""

    @classmethod
    def from_fields(cls, fields: Fields, shared: Mapping[str, Any]) -> Instruction:
        """Read the columns, the template, and how answers are generated and scored."""
        scorer = fields.text("scorer")
        scorer_named(scorer)
        stop = tuple(text.replace("\\n", "\n") for text in fields.names("stop"))
        if "" in stop:
            raise InputError("task.stop has an empty text, before which every answer would end")
        own = {
            "scorer": scorer,
            "stop": stop,
            "max_new_tokens": fields.integer("max_new_tokens", at_least=1),
            "generated_examples": fields.optional_integer("generated_examples", at_least=1),
        }
        # A class with slots is made twice, and `super()` would mean the first one.
        return super(Generation, cls).from_fields(fields, {**shared, **own})

    @classmethod
    def base_columns(cls) -> list[str]:
        """Return the columns of the base model's predictions, with the scores of its answers."""
        return [*super(Generation, cls).base_columns(), *AnswerScores.base_columns()]

    def tokenised(self, rows: pd.DataFrame, tokenizer: Any, *, of: str) -> tuple[Split, Account]:
        """Turn conversations into tokens.

        Raises:
            InputError: A test row is truncated, or its response can't be scored.
        """
        split, account = super(Generation, self).tokenised(rows, tokenizer, of=of)
        if of not in ("train", "validation"):
            self._check_references(split, tokenizer, of)
        return split, account

    def _check_references(self, split: Split, tokenizer: Any, of: str) -> None:
        from lowrank_study.data.conversations import last_turn

        for number in range(len(split)):
            turn = last_turn(split, number, tokenizer)
            if turn is None:
                raise InputError(
                    f"task.max_length={self.max_length} truncates a response of the {of} split, so "
                    "that answers can't be compared with it: set a larger one"
                )
            if ends := [text for text in self.stop if text in turn.response]:
                raise InputError(
                    f"task.stop={ends}: a response of the {of} split contains it, so no answer "
                    f"could equal {turn.response[-60:]!r}: choose a text that responses lack"
                )
            found = self.score(turn.response, turn.response)
            if self.scorer in SCORERS and found < 1:
                raise InputError(
                    f"task.scorer={self.scorer!r}: a response of the {of} split has no number "
                    f"after ####: {turn.response[-60:]!r}. Choose another scorer: "
                    f"{', '.join(name for name in SCORERS if name != self.scorer)}"
                )

    def score(self, response: str, reference: str) -> float:
        """Return the score of an answer."""
        return score(self.scorer, response, reference)

    @property
    def second_scores(self) -> AnswerScores:
        """The scores of the generated answers."""
        return AnswerScores(metric=metric_of(self.scorer))

    @staticmethod
    def metrics(predictions: Predictions) -> dict[str, float]:
        """Return the metrics of the loss, and of the answers where they were generated."""
        import numpy as np

        found = CausalTask.metrics(predictions)
        task, columns = predictions.task, predictions.columns
        if "answer_score" not in columns:
            return found
        assert isinstance(task, Generation), task
        scores = columns["answer_score"][~np.isnan(columns["answer_score"])]
        return {
            **found,
            task.second_scores.metric.name: float(scores.mean()),
            "answers": float(len(scores)),
            "answers_cut_off": float(columns["answer_cut_off"].sum()),
        }
