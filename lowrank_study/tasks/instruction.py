"""Instruction tuning: prompts with responses, or chats. Only the responses are predicted.

The model's own chat template writes the conversation, or `prompt_template` the text before a
response. A response ends with the token that ends a turn in the template, which is predicted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_study.errors import InputError
from lowrank_study.tasks.causal import CausalTask

if TYPE_CHECKING:
    import pandas as pd

    from lowrank_study.config.fields import Fields
    from lowrank_study.data.reading import Rows
    from lowrank_study.data.selection import Selected
    from lowrank_study.data.splits import Account, Split

_SLOT = "{prompt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction(CausalTask):
    """Prompts and responses, and how they are split."""

    prompt_column: str | None
    """The column with the prompts; None if chats are read."""
    response_column: str | None
    """The column with the responses; None if chats are read."""
    messages_column: str | None
    """The column with chats, lists of `{role, content}`; None for prompts and responses."""
    prompt_template: str | None
    """Text before a response, with `{prompt}` in it; None for the model's chat template."""

    @classmethod
    def from_fields(cls, fields: Fields, shared: Mapping[str, Any]) -> Instruction:
        """Read the columns and the template."""
        prompt, response = fields.text("prompt_column"), fields.text("response_column")
        messages = fields.optional_text("messages_column")
        template = fields.optional_text("prompt_template")
        if messages is None and prompt == response:
            raise InputError(
                f"task.response_column={response!r} is also task.prompt_column: the response would "
                "be in the prompt; name another column"
            )
        if template is not None:
            template = template.replace("\\n", "\n")
            _check_template(template, messages)
        return cls(
            prompt_column=None if messages else prompt,
            response_column=None if messages else response,
            messages_column=messages,
            prompt_template=template,
            **shared,
        )

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, each with the setting that names it."""
        named = {
            self.prompt_column: "task.prompt_column",
            self.response_column: "task.response_column",
            self.messages_column: "task.messages_column",
            self.group_column: "task.group_column",
        }
        return {column: setting for column, setting in named.items() if column}

    def selected(self, split: str, rows: Rows) -> Selected:
        """Select the rows with a prompt and a response; equal prompts stay in one split."""
        import dataclasses

        import pandas as pd

        from lowrank_study.data.conversations import read_chats
        from lowrank_study.data.reading import as_texts
        from lowrank_study.data.selection import select

        if self.messages_column:
            rows = dataclasses.replace(rows, frame=read_chats(rows, self.messages_column))
            prompt, response = (
                f"{self.messages_column} (prompt)",
                f"{self.messages_column} (response)",
            )
        else:
            assert self.prompt_column
            assert self.response_column
            prompt, response = self.prompt_column, self.response_column
        responses = as_texts(rows.frame[response], response, rows.of)
        found = select(
            self,
            split,
            rows,
            text_columns=[prompt],
            required={response: responses},
            wanted=pd.Series(True, index=rows.frame.index),
        )
        kept = found.frame.index
        if self.messages_column:
            chats = rows.frame[self.messages_column][kept]
        else:
            turns = zip(found.frame["text"], responses[kept], strict=True)
            chats = pd.Series([_chat(*turn) for turn in turns], index=kept, dtype=object)
        return dataclasses.replace(found, frame=found.frame.assign(messages=chats))

    def tokenised(self, rows: pd.DataFrame, tokenizer: Any, *, of: str) -> tuple[Split, Account]:
        """Turn conversations into tokens; those of the responses are to be predicted."""
        from lowrank_study.data.conversations import tokenise_chats

        return tokenise_chats(
            tokenizer,
            rows["messages"],
            template=self.prompt_template,
            max_length=self.max_length,
            of=of,
        )


def _chat(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def check_slot(template: str, advice: str) -> None:
    """Refuse a template that doesn't have `{prompt}` once; `advice` says what to give instead."""
    if template.count(_SLOT) != 1:
        raise InputError(f"task.prompt_template={template!r}: give the text before {advice}")


def _check_template(template: str, messages: str | None) -> None:
    check_slot(
        template,
        r"a response, with {prompt} once, as in 'Question: {prompt}\nAnswer: '; null takes the "
        "model's chat template",
    )
    if messages:
        raise InputError(
            f"task.prompt_template={template!r}: the model's chat template writes the chats of "
            f"task.messages_column={messages!r}; leave one of the two out"
        )
