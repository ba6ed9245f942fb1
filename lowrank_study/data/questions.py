r"""Read questions with options, and tokenise each option after its prompt.

    Question: What is ice made of?\nAnswer:      prompt
     water                                       option, predicted

White space between the two belongs to the option. They are tokenised together, and the option is
what follows as many tokens as the prompt has alone. These are the rules of lm-evaluation-harness
(`_encode_pair` in `lm_eval/api/model.py`).
"""

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.data.labels import read_labels
from lowrank_study.data.reading import Rows, as_text
from lowrank_study.data.splits import Account, Split, joined
from lowrank_study.data.tokenizer import text_start
from lowrank_study.errors import InputError

FORMATS = ("index", "number", "letter", "text")
"""How the right option is given: counted from 0, counted from 1, as A, B …, or as its text."""


def read_options(rows: Rows, columns: Sequence[str], kept: pd.Index) -> pd.Series:
    """Return the list of options of each kept row.

    Args:
        columns: One column with lists, or one column for each option, where the last may be empty.

    Raises:
        InputError: A row has fewer than two options, or an empty or repeated one.
    """
    found = []
    for row, *values in rows.frame.loc[kept, list(columns)].itertuples():
        place = f"{rows.of} row {row + 1:,}"
        names = [f"{place}: column {name!r}" for name in columns]
        if len(columns) == 1:
            values = _list_of(values[0], names[0])
            names *= len(values)
        options = [as_text(value, name) for value, name in zip(values, names, strict=True)]
        while len(columns) > 1 and options and not _filled(options[-1]):
            options.pop()
        found.append(_checked(options, place))
    return pd.Series(found, kept, object)


def _list_of(value: Any, place: str) -> list[Any]:
    """Read a list, or its JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list | tuple | np.ndarray):
        raise InputError(
            f'{place} is not a list of options: give a list of texts, as in ["red", "green"], or '
            "one column for each option in task.option_columns"
        )
    return list(value)


def _filled(option: str | None) -> bool:
    return option is not None and bool(option.strip())


def _checked(options: Sequence[str | None], place: str) -> list[str]:
    """Refuse options among which a model can't choose."""
    if len(options) < 2:
        raise InputError(
            f"{place}: a question needs two or more options, but this one has {len(options)}: add "
            "options, or remove the row"
        )
    seen: dict[str, int] = {}
    for number, option in enumerate(options, start=1):
        if option is None or not option.strip():
            raise InputError(f"{place}: option {number} is empty: give its text, or remove it")
        first = seen.setdefault(option.strip(), number)
        if first < number:
            raise InputError(
                f"{place}: option {number} repeats option {first}, {option.strip()[:60]!r}: remove "
                "one of the two"
            )
    return [str(option) for option in options]


def read_answers(rows: Rows, column: str, answer_format: str, options: pd.Series) -> list[int]:
    """Return the place of the right option of each row, counted from 0.

    Args:
        answer_format: One of `FORMATS`.
        options: Options of the kept rows.

    Raises:
        InputError: The answer is none of the options.
    """
    given, _ = read_labels(rows, column)
    found = []
    places = options.index.tolist()
    for row, texts, answer in zip(places, options, given[options.index], strict=True):
        names = _names(texts, answer_format)
        answer = _written_as(answer_format, answer)
        if answer not in names:
            others = ", ".join(each for each in FORMATS if each != answer_format)
            raise InputError(
                f"{rows.of} row {row + 1:,}: {column!r} is {answer[:60]!r}, but "
                f"task.answer_format={answer_format} allows {', '.join(names)[:200]}; "
                f"other formats are {others}"
            )
        found.append(names.index(answer))
    return found


def _written_as(answer_format: str, answer: str) -> str:
    """Write `b` as B and 1.0 as 1, as an empty cell makes a column of whole numbers fractional."""
    if answer_format == "letter":
        return answer.upper()
    return answer if answer_format == "text" else answer.removesuffix(".0")


def _names(options: Sequence[str], answer_format: str) -> list[str]:
    """Return what an answer can be, in the order of the options."""
    if answer_format == "text":
        return [option.strip() for option in options]
    if answer_format == "letter":
        return list(ascii_uppercase[: len(options)])
    start = 1 if answer_format == "number" else 0
    return [str(start + place) for place in range(len(options))]


def tokenise_questions(
    tokenizer: Any, rows: pd.DataFrame, *, template: str, max_length: int, of: str
) -> tuple[Split, Account]:
    """Return a text for each option, and only the right one in training.

    A text of more than `max_length` tokens loses the beginning of its prompt.

    Args:
        rows: Columns `text`, `options` and `right`.
        template: Text before an option, with `{prompt}`.
        of: Name of the split, for messages.

    Raises:
        InputError: An option leaves no room for a prompt, or has no token of its own.
    """
    prompts, options, questions, is_right = [], [], [], []
    for question, (text, texts, right) in enumerate(
        zip(rows["text"], rows["options"], rows["right"], strict=True)
    ):
        chosen = [right] if of == "train" else range(len(texts))
        prompts += [template.replace("{prompt}", text)] * len(chosen)
        options += [texts[place] for place in chosen]
        questions += [question] * len(chosen)
        is_right += [place == right for place in chosen]
    starts = [prompt.rstrip() for prompt in prompts]
    ends = [
        (prompt[len(start) :] or " ") + option
        for prompt, start, option in zip(prompts, starts, options, strict=True)
    ]
    alone = tokenizer(starts, add_special_tokens=False)["input_ids"]
    together = tokenizer(
        [start + end for start, end in zip(starts, ends, strict=True)], add_special_tokens=False
    )["input_ids"]
    first = text_start(tokenizer)
    ids = [
        [*first, *before, *whole[len(before) :]]
        for before, whole in zip(alone, together, strict=True)
    ]
    predicted = np.array([len(w) - len(b) for b, w in zip(alone, together, strict=True)])
    lengths = np.array([len(each) for each in ids])
    _require_tokens(predicted, options, max_length, of)
    kept = np.minimum(lengths, max_length)
    offsets = np.cumsum([0, *kept], dtype=np.int64)
    split = Split(
        ids=joined([each[-max_length:] for each in ids], np.int32),
        types=np.zeros(offsets[-1], dtype=np.int8),
        offsets=offsets,
        labels=np.array(questions, dtype=np.int64),
        scored=np.arange(offsets[-1]) >= np.repeat(offsets[1:] - predicted, kept),
        text_bytes=np.array([len(option.encode()) for option in options], dtype=np.int64),
        is_right=np.array(is_right),
    )
    return split, _account(split, lengths, max_length, of)


def _require_tokens(
    predicted: np.ndarray, options: Sequence[str], max_length: int, of: str
) -> None:
    if (predicted <= 0).any():
        option = options[int(predicted.argmin())]
        raise InputError(
            f"option {option[:60]!r} of the {of} split has no token of its own, because the "
            "tokenizer merges it with the prompt: change the end of task.prompt_template"
        )
    if predicted.max() >= max_length:
        option = options[int(predicted.argmax())]
        raise InputError(
            f"task.max_length={max_length} leaves no room for a prompt before an option of "
            f"{predicted.max()} tokens in the {of} split, {option[:60]!r}: set a larger one"
        )


def _account(split: Split, lengths: np.ndarray, max_length: int, of: str) -> Account:
    """Say how many questions and options are read, and how many prompts are truncated."""
    counts = np.bincount(split.labels)
    options = " to ".join(f"{count}" for count in sorted({counts.min(), counts.max()}))
    each = "the right option of each" if of == "train" else f"{options} options each"
    read = f"{of}: {len(counts):,} questions, {each}, {int(split.scored.sum()):,} predicted tokens"
    longer = int((lengths > max_length).sum())
    warning = (
        f"{of}: {longer:,} of {len(split):,} texts have more than task.max_length={max_length} "
        f"tokens (up to {lengths.max()}), so the beginning of their prompt is cut off"
    )
    return Account(left_out=(), read=(read,), warnings=(warning,) * (longer > 0))
