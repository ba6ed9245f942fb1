r"""Write conversations with a model's chat template, and tokenise them so that responses are exact.

    <|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n      prompt
    4<|im_end|>                                                             response, predicted

A prompt has the tokens that it has in generation, when no response follows it. If a tokenizer would
merge the end of a prompt with the beginning of its response, the two are tokenised apart.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.data.reading import Rows
from lowrank_study.data.splits import Account, Split, joined
from lowrank_study.data.tokenizer import end_id, end_ids, text_start
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut

Chat = Sequence[Mapping[str, str]]
"""Messages with a `role` and a `content`."""


_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Piece = tuple[str, bool]
"""A part of a conversation's text, and whether it is a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """The tokens of one conversation."""

    ids: list[int]
    scored: list[bool]
    text_bytes: int
    """UTF-8 bytes of the responses."""


def read_chats(rows: Rows, column: str) -> pd.DataFrame:
    """Return the rows with chats as lists, and the texts of their prompts and responses.

    A chat without a response, or with an empty one, has the response `None`.

    Raises:
        InputError: A value is not a list of messages.
    """
    chats = [
        _chat_of(value, f"{rows.of} row {row}: column {column!r}")
        for row, value in enumerate(rows.frame[column], 1)
    ]
    responses = [_responses(chat) for chat in chats]
    prompts = [[m["content"] for m in chat if m["role"] != "assistant"] for chat in chats]
    written: dict[str, list[Any]] = {
        column: chats,
        f"{column} (prompt)": ["\n".join(texts) for texts in prompts],
        f"{column} (response)": [
            "\n".join(texts) if texts and all(t.strip() for t in texts) else None
            for texts in responses
        ],
    }
    frame = rows.frame.copy(deep=False)
    for name, values in written.items():
        frame[name] = pd.Series(values, frame.index, object)
    return frame


def _chat_of(value: Any, place: str) -> list[dict[str, str]]:
    """Read a chat from a list of objects, or from its JSON."""
    given = value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    chat = list(value) if isinstance(value, list | np.ndarray) else None
    if chat is None or not all(_is_message(message) for message in chat):
        raise InputError(
            f"{place} holds {str(given)[:60]!r}, which is not a chat: give a list of messages with "
            "a role and a text, as in "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
        )
    if unknown := [message["role"] for message in chat if message["role"] not in _ROLES]:
        raise InputError(
            f"{place} has the role {unknown[0]!r}: rename it to one of {', '.join(_ROLES)}; what "
            "the assistant says is the response"
        )
    return [{"role": message["role"], "content": message["content"] or ""} for message in chat]


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    return "content" in message and isinstance(message["content"], str | None)


def tokenise_chats(
    tokenizer: Any, chats: pd.Series, *, template: str | None, max_length: int, of: str
) -> tuple[Split, Account]:
    """Return the tokens of chats, of which those of responses are to be predicted.

    Args:
        chats: Chats by the number of their row in the file, counted from 0.
        template: Text before a response, with `{prompt}`; None for the tokenizer's chat template.
        of: Name of the split, for messages.

    Raises:
        InputError: There is no chat template, or it can't write a chat; no response fits.
    """
    if template is None and not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template: choose a model that "
            r"was trained on chats, or set task.prompt_template='{prompt}\n'"
        )
    pieces = [
        _with_prompt_template(chat, template)
        if template is not None
        else list(_with_chat_template(tokenizer, chat, f"row {row} of the {of} rows"))
        for row, chat in zip(np.asarray(chats.index) + 1, chats, strict=True)
    ]
    whole, unended = _ended(tokenizer, _tokenised(tokenizer, pieces, is_chat=template is None))
    sizes = [len("".join(_responses(chat)).encode()) for chat in chats]
    kept = [
        _truncated(tokenizer, ids, scored, size, max_length)
        for (ids, scored), size in zip(whole, sizes, strict=True)
        if any(scored[:max_length])
    ]
    all_lengths = np.array([len(ids) for ids, _ in whole])
    if not kept:
        raise InputError(
            f"task.max_length={max_length} cuts off every response of the {of} split: its longest "
            f"conversation has {all_lengths.max()} tokens; set a larger one"
        )
    lengths = [len(each.ids) for each in kept]
    split = Split(
        ids=joined([each.ids for each in kept], np.int32),
        types=np.zeros(sum(lengths), dtype=np.int8),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=np.arange(len(kept), dtype=np.int64),
        scored=joined([each.scored for each in kept], bool),
        text_bytes=np.array([each.text_bytes for each in kept], dtype=np.int64),
        is_right=np.ones(len(kept), dtype=bool),
    )
    account = _account(split, all_lengths, max_length, of)
    if unended and template is None:
        appended = (
            f"{of}: the chat template does not end {unended:,} of {len(whole):,} last responses "
            f"with a token of its own, so {tokenizer.eos_token} is appended"
        )
        account += Account(left_out=(), read=(), warnings=(appended,))
    return split, account


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The last response of a conversation, and what a model reads before it writes one."""

    prompt: list[int]
    """Token ids of everything before the response."""
    response: str
    end: int
    """Id of the token that ends the response."""


def last_turn(split: Split, number: int, tokenizer: Any) -> Turn | None:
    """Return the last turn of one conversation; None if it was truncated."""
    ids, start = split.tokens(number).tolist(), _prompt_length(split, number)
    if start == len(ids) or ids[-1] not in end_ids(tokenizer):
        return None
    response = tokenizer.decode(ids[start:-1], skip_special_tokens=True)
    return Turn(prompt=ids[:start], response=response, end=ids[-1])


def _prompt_length(split: Split, number: int) -> int:
    """Return the number of tokens before the last response."""
    scored = split.scored[split.offsets[number] : split.offsets[number + 1]]
    return int(np.flatnonzero(~scored)[-1]) + 1  # the first token is never scored


def longest_prompt(split: Split) -> int:
    """Return the number of tokens before the last response, in the conversation with most."""
    return max(_prompt_length(split, number) for number in range(len(split)))


def _account(split: Split, lengths: np.ndarray, max_length: int, of: str) -> Account:
    """Say how many conversations are read, truncated and left out."""
    cut_off = LeftOut(
        count=len(lengths) - len(split),
        total=len(lengths),
        unit="rows",
        of=f"the {of} split",
        why=f"task.max_length={max_length} cuts off the whole response; the longest conversation "
        f"has {lengths.max()} tokens",
    )
    shortened = int((lengths > max_length).sum()) - cut_off.count
    warning = (
        f"{of}: {shortened:,} of {len(split):,} responses are truncated, because their "
        f"conversations have more than task.max_length={max_length} tokens (up to {lengths.max()})"
    )
    read = f"{of}: {len(split):,} conversations, {int(split.scored.sum()):,} predicted tokens"
    return Account(
        left_out=(cut_off,) * (cut_off.count > 0),
        read=(read,),
        warnings=(warning,) * (shortened > 0),
    )


def _responses(chat: Chat) -> list[str]:
    return [message["content"] for message in chat if message["role"] == "assistant"]


def _with_prompt_template(chat: Chat, template: str) -> list[Piece]:
    prompt, response = chat
    text = template.replace("{prompt}", prompt["content"])
    return [(text, False), (response["content"], True)]


def _with_chat_template(tokenizer: Any, chat: Chat, place: str) -> Iterator[Piece]:
    """Yield the prompts and responses of a chat; what is after the last response is left out.

    A response starts where the template asks for one, and ends before the white space that follows
    the end of its turn.
    """
    done = ""
    for number, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        prompt = _written(tokenizer, chat[:number], place, add_generation_prompt=True)
        whole = _written(tokenizer, chat[: number + 1], place, add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise InputError(
                f"{place}: the model's chat template changes earlier text when it adds a message, "
                "so the responses can't be told from the prompts: give chats with one response"
            )
        response = whole[len(prompt) :].rstrip()
        if message["content"].strip() not in response:
            raise InputError(
                f"{place}: the model's chat template changes the response "
                f"{message['content'][:60]!r} to {response[:60]!r}: remove what it drops"
            )
        yield prompt[len(done) :], False
        yield response, True
        done = prompt + response


def _written(tokenizer: Any, chat: Chat, place: str, *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except (TemplateError, TypeError) as error:
        raise InputError(
            f"{place}: the model's chat template refuses the chat with roles "
            f"{', '.join(message['role'] for message in chat) or 'none'}: {error}"
        ) from error


def _tokenised(
    tokenizer: Any, pieces: Sequence[Sequence[Piece]], *, is_chat: bool
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield the tokens of each conversation, and which of them are in a response.

    A chat template writes the tokenizer's first token itself.
    """

    def ids_of(texts: list[str]) -> Iterator[list[int]]:
        return iter(tokenizer(texts, add_special_tokens=False)["input_ids"])

    started = [] if is_chat else text_start(tokenizer)
    until = ids_of(["".join(t for t, _ in of[: n + 1]) for of in pieces for n in range(len(of))])
    alone = ids_of([text for of in pieces for text, _ in of])
    for of in pieces:
        ids: list[int] = []
        scored: list[bool] = []
        for _, is_response in of:
            together, apart = next(until), next(alone)
            ids = together if together[: len(ids)] == ids else ids + apart
            scored += [is_response] * (len(ids) - len(scored))
        yield [*started, *ids], [False] * len(started) + scored


def _ended(
    tokenizer: Any, conversations: Iterable[tuple[list[int], list[bool]]]
) -> tuple[list[tuple[list[int], list[bool]]], int]:
    """Return conversations that end with a token that ends a text, and how many did not."""
    ends = end_ids(tokenizer)
    found, unended = [], 0
    for ids, scored in conversations:
        if ids[-1] not in ends:
            ids, scored = [*ids, end_id(tokenizer)], [*scored, True]
            unended += 1
        found.append((ids, [False, *scored[1:]]))  # nothing is before the first token
    return found, unended


def _truncated(
    tokenizer: Any, ids: list[int], scored: list[bool], text_bytes: int, max_length: int
) -> _Tokens:
    """Return the first tokens of a conversation, and the bytes of what is left of its responses."""
    if len(ids) > max_length:
        ids, scored = ids[:max_length], scored[:max_length]
        left = [token for token, is_scored in zip(ids, scored, strict=True) if is_scored]
        text_bytes = len(tokenizer.decode(left, skip_special_tokens=True).encode())
    return _Tokens(ids=ids, scored=scored, text_bytes=text_bytes)
