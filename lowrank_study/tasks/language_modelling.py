"""Language modelling: documents, in which every token is predicted from those before it.

A document is a row of a table or a file of a folder. It starts with the tokenizer's first token, so
that its whole text is predicted, and ends with its end token. A document of more than `max_length`
tokens is cut into windows that share one token, so that each token is predicted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_study.errors import InputError
from lowrank_study.tasks.causal import CausalTask

if TYPE_CHECKING:
    import pandas as pd

    from lowrank_study.config.fields import Fields
    from lowrank_study.data.reading import Rows
    from lowrank_study.data.selection import Selected
    from lowrank_study.data.splits import Account, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelling(CausalTask):
    """Documents to predict, and how they are split."""

    text_column: str
    """The column with the documents; in a folder of files it is `text`."""

    reads_files: ClassVar[bool] = True

    @classmethod
    def from_fields(cls, fields: Fields, shared: Mapping[str, Any]) -> LanguageModelling:
        """Read the column."""
        column = fields.text("text_column")
        if column == shared["group_column"]:
            raise InputError(
                f"task.group_column={column!r} is also task.text_column: name another column, or "
                "null"
            )
        return cls(text_column=column, **shared)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, each with the setting that names it."""
        settings = {self.text_column: "task.text_column"}
        if self.group_column:
            settings[self.group_column] = "task.group_column"
        return settings

    def selected(self, split: str, rows: Rows) -> Selected:
        """Select the rows that are not empty."""
        import pandas as pd

        from lowrank_study.data.selection import select

        wanted = pd.Series(True, index=rows.frame.index)
        return select(
            self, split, rows, text_columns=[self.text_column], required={}, wanted=wanted
        )

    def tokenised(self, rows: pd.DataFrame, tokenizer: Any, *, of: str) -> tuple[Split, Account]:
        """Turn documents into windows of at most `max_length` tokens."""
        from lowrank_study.data.documents import in_windows

        return in_windows(tokenizer, rows["text"].tolist(), max_length=self.max_length, of=of)
