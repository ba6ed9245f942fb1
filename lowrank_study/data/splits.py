"""Load the tokenised splits of a task; they are made once and then read from the cache.

    >>> splits = load_splits(spec.task, model_folder)
    >>> splits.train.tokens(0)        # token ids of the first training text
    array([ 101, 1037, ...], dtype=int32)

Splits depend on the task's `split_seed`, never on a run's seed, so that all runs of a task see the
same rows.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_study import assets
from lowrank_study.data.tokenizer import load_tokenizer, tokenizer_sha256
from lowrank_study.errors import InputError
from lowrank_study.hashing import find_named, keep_named
from lowrank_study.left_out import LeftOut, in_words
from lowrank_study.spec import HubRepo, to_mapping

if TYPE_CHECKING:
    import pandas as pd

    from lowrank_study.tasks import Task

_FORMAT = 5
"""Version of the cached files; increase it when their meaning changes."""
_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Concatenated tokenised texts, with their labels."""

    ids: np.ndarray
    """Token ids of all texts, int32."""
    types: np.ndarray
    """Segment of each token (1 in the second text of a pair), int8."""
    offsets: np.ndarray
    """Text i is ids[offsets[i] : offsets[i + 1]], int64."""
    labels: np.ndarray
    """What is asked of each text, int64: its class number in classification, the number of its
    document in language modelling, where a text is a part of a document, and the number of its
    question in multiple choice, where a text is an option after its prompt."""
    scored: np.ndarray
    """Whether each token is to be predicted from those before it, bool."""
    text_bytes: np.ndarray
    """UTF-8 bytes of the predicted part of each text, int64; 0 without one."""
    is_right: np.ndarray
    """Whether each text has the right option, bool; true in tasks without options."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def examples(self) -> int:
        """Number of rows of predictions: documents or questions, or texts in classification."""
        return len(np.unique(self.labels)) if self.scored.any() else len(self)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text."""
        return np.diff(self.offsets)

    def tokens(self, index: int) -> np.ndarray:
        """Return the token ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def first(self, count: int) -> "Split":
        """Return the first texts, or all if there are fewer."""
        count = min(count, len(self))
        end = self.offsets[count]
        return Split(
            ids=self.ids[:end],
            types=self.types[:end],
            offsets=self.offsets[: count + 1],
            labels=self.labels[:count],
            scored=self.scored[:end],
            text_bytes=self.text_bytes[:count],
            is_right=self.is_right[:count],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Messages on a task's rows: what was read, what was left out, and warnings."""

    left_out: tuple[LeftOut, ...]
    read: tuple[str, ...]
    """Files, encodings, split sizes and class counts, one line each."""
    warnings: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """All messages; the left-out parts come first."""
        warned = [f"warning: {warning}" for warning in self.warnings]
        return [*in_words(self.left_out), *self.read, *warned]

    def __add__(self, other: "Account") -> "Account":
        """Return the messages of both."""
        return Account(
            left_out=self.left_out + other.left_out,
            read=self.read + other.read,
            warnings=self.warnings + other.warnings,
        )


NO_ACCOUNT = Account(left_out=(), read=(), warnings=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The three splits of a task, tokenised for one model."""

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    """Class names; a label is an index into them."""
    test_sets: Mapping[str, int]
    """Name of each test set → its number of rows, in the order of the test split; empty for one."""
    sha256: str
    """Hash of everything above, which runs record."""
    account: Account

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return max(int(split.lengths.max()) for split in (self.train, self.validation, self.test))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRows:
    """The rows of the three splits, as text."""

    frames: "Mapping[str, pd.DataFrame]"
    """Columns are `text`, `text_pair` (pairs only), `label` (a class number), `group` and
    `test_set` (where there are several)."""
    labels: tuple[str, ...]
    account: Account


def load_splits(task: "Task", model_folder: Path) -> Splits:
    """Return the task's splits, tokenised by the model's own tokenizer.

    Raises:
        InputError: A column or label is missing, a source can't be reached or has changed, or the
            splits are too small to learn from.
    """
    if not isinstance(task.source, HubRepo):
        assets.fetch(task.source, task.files)
    folder, key = assets.cache_folder() / "tokens", _cache_key(task, model_folder)
    if (path := find_named(folder, stem=key, suffix=".npz")) is not None:
        return _read_cache(path)
    splits = _tokenise(task, task.split_rows(), model_folder)
    _write_cache(folder, key, splits)
    return splits


def _cache_key(task: "Task", model_folder: Path) -> str:
    """Hash what determines the tokens: the rows, the tokenizer and its library.

    A data set of the hub without `task.revision` is not looked up again once it is cached.
    """
    settings = to_mapping(task)
    settings["source"]["path"] = Path(settings["source"].get("path", "")).name  # messages show it
    parts = [_FORMAT, settings, tokenizer_sha256(model_folder), _libraries()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def _libraries() -> list[str]:
    return [metadata.version(name) for name in ("tokenizers", "transformers")]


def with_shuffled_labels(splits: Splits, seed: int) -> Splits:
    """Permute the labels of the training rows; the class counts stay the same.

    In language modelling, permute the predicted tokens; their frequencies stay the same.
    """
    generator, train = np.random.default_rng([seed, 2]), splits.train
    if not train.scored.any():
        shuffled = dataclasses.replace(train, labels=generator.permutation(train.labels))
    else:
        ids = train.ids.copy()
        ids[train.scored] = generator.permutation(ids[train.scored])
        shuffled = dataclasses.replace(train, ids=ids)
    return dataclasses.replace(splits, train=shuffled)


def _tokenise(task: "Task", rows: SplitRows, model_folder: Path) -> Splits:
    if task.scores_tokens:  # an encoder's tokenizer lacks what a decoder's has
        from transformers import AutoConfig

        task.configure(AutoConfig.from_pretrained(model_folder), len(rows.labels))
    tokenizer = load_tokenizer(model_folder)
    total = hashlib.sha256("\0".join(rows.labels).encode())
    made, account, sets = {}, rows.account, {}
    for name in _NAMES:
        frame = rows.frames[name]
        parts = {}
        for of, part in _parts(name, frame).items():
            parts[of], of_part = task.tokenised(part, tokenizer, of=of)
            account += of_part
            if empty := np.flatnonzero(parts[of].lengths == 0).tolist():
                raise InputError(
                    f"the {of} split of {task.name!r} has a text without tokens, "
                    f"{part['text'].iloc[empty[0]][:60]!r}: remove its row"
                )
        made[name] = _together(list(parts.values()))
        if name not in parts:
            sets = {of: split.examples for of, split in parts.items()}
            total.update(json.dumps(sets).encode())
        for field in dataclasses.fields(Split):
            if _is_hashed(field.name, made[name]):
                total.update(getattr(made[name], field.name).tobytes())
    return Splits(
        **made, labels=rows.labels, test_sets=sets, sha256=total.hexdigest(), account=account
    )


def _is_hashed(name: str, split: Split) -> bool:
    """Return whether a field is hashed; other splits keep the hash that older versions gave."""
    if name == "is_right":
        return not split.is_right.all()
    return name not in ("scored", "text_bytes") or bool(split.scored.any())


def _parts(name: str, frame: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """Return the test sets of the test split, and every other split whole."""
    if name != "test" or "test_set" not in frame:
        return {name: frame}
    return {str(of): part for of, part in frame.groupby("test_set", sort=False)}


def _together(parts: Sequence[Split]) -> Split:
    """Concatenate splits; the documents of a later one are numbered after those before it."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    numbers = np.cumsum([0, *(part.examples * part.scored.any() for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    labels = [part.labels + number for part, number in zip(parts, numbers, strict=False)]
    others = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "types", "scored", "text_bytes", "is_right")
    }
    return Split(offsets=np.concatenate([[0], *offsets]), labels=np.concatenate(labels), **others)


def encoded(
    tokenizer: Any, texts: Sequence[Sequence[str]], *, max_length: int, labels: np.ndarray
) -> Split:
    """Tokenise texts, or pairs of texts, and concatenate them; no token is to be predicted.

    Args:
        texts: The texts; the second list, if there is one, holds the second text of each pair.
    """
    found = tokenizer(
        *map(list, texts),
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    lengths = [len(tokens) for tokens in found["input_ids"]]
    return Split(
        ids=joined(found["input_ids"], np.int32),
        types=joined(found["token_type_ids"], np.int8),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=labels.astype(np.int64),
        scored=np.zeros(sum(lengths), dtype=bool),
        text_bytes=np.zeros(len(lengths), dtype=np.int64),
        is_right=np.ones(len(lengths), dtype=bool),
    )


def joined(lists: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    """Concatenate the values of all texts."""
    return np.concatenate([np.asarray(each, dtype=dtype) for each in lists])


def _write_cache(folder: Path, key: str, splits: Splits) -> None:
    about = {
        "labels": splits.labels,
        "test_sets": splits.test_sets,
        "sha256": splits.sha256,
        "account": dataclasses.asdict(splits.account),
    }
    arrays: dict[str, Any] = {"about": np.asarray(json.dumps(about))}
    for name in _NAMES:
        for field in dataclasses.fields(Split):
            arrays[f"{name}.{field.name}"] = getattr(getattr(splits, name), field.name)
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        keep_named(Path(partial), folder, stem=key, suffix=".npz")
    finally:
        Path(partial).unlink(missing_ok=True)


@functools.lru_cache(maxsize=8)
def _read_cache(path: Path) -> Splits:
    """Return the content of a verified file; its name holds the hash of its content."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
        made = {
            name: Split(**{f.name: stored[f"{name}.{f.name}"] for f in dataclasses.fields(Split)})
            for name in _NAMES
        }
        about = json.loads(str(stored["about"]))
    account = Account(
        left_out=tuple(LeftOut(**part) for part in about["account"]["left_out"]),
        read=tuple(about["account"]["read"]),
        warnings=tuple(about["account"]["warnings"]),
    )
    return Splits(
        **made,
        labels=tuple(about["labels"]),
        test_sets=about["test_sets"],
        sha256=about["sha256"],
        account=account,
    )
