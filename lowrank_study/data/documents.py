"""Tokenise documents for language modelling, and cut long ones into windows.

start  The  sun  is  hot  .  end          max_length 4
start  The  sun  is
is  hot  .  end          the first token of a window is not predicted
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_study.data.splits import Account, Split, joined
from lowrank_study.data.tokenizer import end_id, start_id


def in_windows(
    tokenizer: Any, texts: Sequence[str], *, max_length: int, of: str
) -> tuple[Split, Account]:
    """Return the windows of all documents; their labels are the numbers of the documents.

    Args:
        of: Name of the split, for messages.
    """
    start, end = start_id(tokenizer), end_id(tokenizer)
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=tokenizer.is_fast,
    )
    offsets = found.get("offset_mapping", [None] * len(texts))
    windows, text_bytes, labels = [], [], []
    for number, (text, ids, places) in enumerate(
        zip(texts, found["input_ids"], offsets, strict=True)
    ):
        tokens = [start, *ids, end]
        first = range(0, len(tokens) - 1, max_length - 1)
        windows += [tokens[place : place + max_length] for place in first]
        read = _bytes_read(text, len(ids), places)
        last = np.minimum(np.array(first) + max_length - 1, len(tokens) - 1)
        text_bytes.append(np.diff(read[last], prepend=0))
        labels.append(np.full(len(first), number))
    lengths = [len(window) for window in windows]
    limits = np.cumsum([0, *lengths], dtype=np.int64)
    scored = np.ones(limits[-1], dtype=bool)
    scored[limits[:-1]] = False
    split = Split(
        ids=joined(windows, np.int32),
        types=np.zeros(limits[-1], dtype=np.int8),
        offsets=limits,
        labels=np.concatenate(labels).astype(np.int64),
        scored=scored,
        text_bytes=np.concatenate(text_bytes).astype(np.int64),
        is_right=np.ones(len(windows), dtype=bool),
    )
    return split, _account(tokenizer, split, labels, max_length, of)


def _bytes_read(text: str, tokens: int, places: Sequence[tuple[int, int]] | None) -> np.ndarray:
    """Return how many bytes of a text have been read after each token, from the start token on.

    A tokenizer without places of its tokens has none of the same number of bytes; they are
    distributed evenly over the tokens.
    """
    whole = len(text.encode())
    if places is None:
        read = np.arange(tokens) * whole // max(1, tokens)
    else:
        sizes = np.cumsum([0, *(len(letter.encode()) for letter in text)])
        ends = np.array([last for _, last in places], dtype=np.int64)
        read = np.maximum.accumulate(sizes[ends])
    return np.array([0, *read, whole])


def _account(
    tokenizer: Any, split: Split, labels: Sequence[np.ndarray], max_length: int, of: str
) -> Account:
    """Say how many documents are cut, and with which tokens they start and end."""
    parts = [len(each) for each in labels]
    cut = [count for count in parts if count > 1]
    start, end = tokenizer.convert_ids_to_tokens([start_id(tokenizer), end_id(tokenizer)])
    read = [
        f"{of}: {len(parts):,} documents, {int(split.scored.sum()):,} predicted tokens; each "
        f"starts with {start} and ends with {end}"
    ]
    if cut:
        read.append(
            f"{of}: {len(cut):,} of {len(parts):,} documents have more than "
            f"task.max_length={max_length} tokens and are cut into {sum(cut):,} windows"
        )
    return Account(left_out=(), read=tuple(read), warnings=())
