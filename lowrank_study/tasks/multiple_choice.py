"""Multiple choice: a question, several options, and one right option.

The model doesn't write an answer: it chooses the option with the highest log-likelihood after the
prompt, as lm-evaluation-harness does. Training predicts the tokens of the right option. Evaluation
reads every option.

Accuracy is the primary metric, because it is the one that papers report. The loss of the right
options decides between steps of equal accuracy, and is recorded beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_study.errors import InputError
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.causal import CausalTask
from lowrank_study.tasks.instruction import check_slot
from lowrank_study.tasks.metric import CHOICE_ACCURACY, Metric

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from lowrank_study.config.fields import Fields
    from lowrank_study.data.reading import Rows
    from lowrank_study.data.selection import Selected
    from lowrank_study.data.splits import Account, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice(CausalTask):
    """Questions with options, and how they are split."""

    prompt_column: str
    option_columns: tuple[str, ...]
    """One column with lists of options, or one column for each option."""
    answer_column: str
    answer_format: str
    """How the answer column gives the right option: `index`, `number`, `letter` or `text`."""
    prompt_template: str
    """Text before an option, with `{prompt}` in it."""

    metric: ClassVar[Metric] = CHOICE_ACCURACY
    score_columns: ClassVar[tuple[str, ...]] = ("label", "predicted", "options")

    @classmethod
    def from_fields(cls, fields: Fields, shared: Mapping[str, Any]) -> MultipleChoice:
        """Read the columns, the format of the answers, and the template."""
        from lowrank_study.data.questions import FORMATS

        prompt, answer = fields.text("prompt_column"), fields.text("answer_column")
        options = fields.names("option_columns")
        named = [prompt, answer, *options]
        if not options or len(set(named)) < len(named):
            raise InputError(
                f"task.option_columns={list(options)}: give one column with lists, or one column "
                f"for each option, all different from task.prompt_column={prompt!r} and "
                f"task.answer_column={answer!r}"
            )
        template = fields.text("prompt_template").replace("\\n", "\n")
        check_slot(template, r"an option, with {prompt} once, as in 'Question: {prompt}\nAnswer:'")
        return cls(
            prompt_column=prompt,
            option_columns=options,
            answer_column=answer,
            answer_format=fields.one_of("answer_format", FORMATS),
            prompt_template=template,
            **shared,
        )

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, each with the setting that names it."""
        settings = {
            self.prompt_column: "task.prompt_column",
            **dict.fromkeys(self.option_columns, "task.option_columns"),
            self.answer_column: "task.answer_column",
        }
        if self.group_column:
            settings[self.group_column] = "task.group_column"
        return settings

    def selected(self, split: str, rows: Rows) -> Selected:
        """Select the rows with a prompt and an answer; equal prompts stay in one split."""
        import dataclasses

        import pandas as pd

        from lowrank_study.data.labels import read_labels
        from lowrank_study.data.questions import read_answers, read_options
        from lowrank_study.data.selection import select

        found = select(
            self,
            split,
            rows,
            text_columns=[self.prompt_column],
            required={self.answer_column: read_labels(rows, self.answer_column)[0]},
            wanted=pd.Series(True, index=rows.frame.index),
        )
        options = read_options(rows, self.option_columns, found.frame.index)
        right = read_answers(rows, self.answer_column, self.answer_format, options)
        return dataclasses.replace(found, frame=found.frame.assign(options=options, right=right))

    def tokenised(self, rows: pd.DataFrame, tokenizer: Any, *, of: str) -> tuple[Split, Account]:
        """Turn each option into a text after its prompt; in training, only the right one."""
        from lowrank_study.data.questions import tokenise_questions

        return tokenise_questions(
            tokenizer, rows, template=self.prompt_template, max_length=self.max_length, of=of
        )

    @staticmethod
    def rows(split: Split, answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return one row a question: the chosen options, and the log-likelihood of each option.

        Options are counted from 0. `loss`, `tokens` and `bytes` are those of the right option. The
        log-likelihoods are in nats, and NaN where a question has fewer options.
        """
        import numpy as np

        question_N, option_N, counts = _places(split.labels)

        def table(values: np.ndarray) -> np.ndarray:
            found = np.full((len(counts), counts.max()), -np.inf)
            found[question_N, option_N] = values
            return found

        likelihoods = table(-answers["loss"])
        per_byte = table(-answers["loss"] / split.text_bytes)
        tokens = np.add.reduceat(split.scored, split.offsets[:-1], dtype=np.int64)
        columns = {
            "label": option_N[split.is_right],
            "predicted": likelihoods.argmax(1),
            "predicted_per_byte": per_byte.argmax(1),
            "loss": answers["loss"][split.is_right],
            "tokens": tokens[split.is_right],
            "bytes": split.text_bytes[split.is_right],
            "options": counts,
        }
        for place, column in enumerate(likelihoods.T):
            columns[f"log_likelihood_{place}"] = np.where(place < counts, column, np.nan)
        return columns

    @staticmethod
    def metrics(predictions: Predictions) -> dict[str, float]:
        """Return both accuracies, the metrics of the right options' loss, and the chance level.

        Training rows have the right option alone, so they have no accuracy.
        """
        columns = predictions.columns
        losses = CausalTask.metrics(predictions)
        if (columns["options"] == 1).all():
            return losses
        return {
            "accuracy": float((columns["label"] == columns["predicted"]).mean()),
            "accuracy_per_byte": float((columns["label"] == columns["predicted_per_byte"]).mean()),
            **losses,
            "chance_accuracy": float((1 / columns["options"]).mean()),
        }

    @staticmethod
    def scores(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return 1 for each question whose right option was chosen, else 0."""
        import numpy as np

        return np.asarray(predictions["label"] == predictions["predicted"], dtype=np.float64)

    @staticmethod
    def weights(predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return 1 for each question."""
        import numpy as np

        return np.ones(len(predictions))

    @classmethod
    def baseline_scores(cls, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the chance level of each question, 1 / options."""
        import numpy as np

        return 1 / predictions["options"].to_numpy(np.float64)


def _places(questions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the question of each text, its place among the options, and the numbers of options."""
    import numpy as np

    _, first, question_N, counts = np.unique(
        questions, return_index=True, return_inverse=True, return_counts=True
    )
    return question_N, np.arange(len(questions)) - first[question_N], counts
