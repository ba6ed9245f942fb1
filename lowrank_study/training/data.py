"""Task → tokenised splits: read once, split once, tokenised once, then kept in the cache.

    >>> splits = load_splits(spec.task, model_folder)
    >>> splits.train.tokens(0)        # token ids of the first training text
    array([ 101, 1037, ...], dtype=int32)

Splits depend on the task alone (its `split_seed`), never on a run's seed, so that every run of
a task sees the same rows.
"""

import csv
import dataclasses
import hashlib
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study import assets
from lowrank_study.errors import InputError
from lowrank_study.files import whole_file
from lowrank_study.spec import HubRepo, Task, to_mapping

_log = logging.getLogger(__name__)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "merges.txt",
    "vocab.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
"""Files that decide how a text is cut into tokens."""
_FORMAT = 1  # raised when what is cached changes its meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Tokenised texts laid end to end, with their labels."""

    ids: np.ndarray
    """Token ids of all texts, int32."""
    types: np.ndarray
    """Segment of each token (1 in the second text of a pair), int8."""
    offsets: np.ndarray
    """Text i is ids[offsets[i] : offsets[i + 1]], int64."""
    labels: np.ndarray
    """Class number of each text, int64."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def tokens(self, index: int) -> np.ndarray:
        """Return the token ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def first(self, count: int) -> "Split":
        """Return the first texts, all of them if there are fewer."""
        count = min(count, len(self))
        end = self.offsets[count]
        return Split(
            ids=self.ids[:end],
            types=self.types[:end],
            offsets=self.offsets[: count + 1],
            labels=self.labels[:count],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The three splits of a task, tokenised for one model."""

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    """Class names; a label is an index into them."""
    sha256: str
    """Hash of everything above: what the runs' numbers were measured on."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text of all splits."""
        return max(int(split.lengths.max()) for split in (self.train, self.validation, self.test))


def load_splits(task: Task, model_folder: Path) -> Splits:
    """Return the task's splits, tokenised by the model's own tokenizer.

    Raises
    ------
    InputError
        A missing column or label, a split without rows, a label that only test has, an
        unreachable source.
    """
    rows = _source_fingerprint(task)
    described = [_FORMAT, to_mapping(task), rows, _tokenizer_hash(model_folder)]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]
    path = assets.cache_folder() / "tokens" / f"{key}.npz"
    if (cached := _read_cache(path)) is not None:
        return cached
    frames, labels = split_rows(task)
    splits = _tokenise(task, frames, labels, model_folder)
    _write_cache(path, splits)
    return splits


def split_rows(task: Task) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """Return the rows of train, validation and test, and the class names.

    Columns are `text`, `text_pair` (pairs only), `label` (a class number) and `group`.
    """
    files = {"train": task.train, "validation": task.validation, "test": task.test}
    frames = {
        name: _selected(task, name, _read(task, file))
        for name, file in files.items()
        if file is not None
    }
    labels = task.labels or tuple(sorted(frames["train"]["label"].unique()))
    if len(labels) < 2:
        raise InputError(
            f"task.label_column={task.label_column!r}: the training rows have "
            f"{len(labels)} label, {list(labels)}, and a classifier needs two"
        )
    for name, frame in frames.items():
        if unknown := sorted(set(frame["label"]) - set(labels)):
            raise InputError(
                f"the {name} split has the label {unknown[0]!r}, which train has not: "
                f"its labels are {', '.join(labels[:20])}"
            )
    numbers = {label: number for number, label in enumerate(labels)}
    frames = {n: f.assign(label=f["label"].map(numbers)) for n, f in frames.items()}
    generator = np.random.default_rng(task.split_seed)
    carved = {
        name: size or 0
        for name, size in (("test", task.test_size), ("validation", task.validation_size))
        if name not in frames
    }
    # Rows that nobody uses are shared out too: each split is then drawn from as many groups
    # (films, authors) as can be, and differs less from the others by chance.
    wanted = sum(carved.values()) + (task.train_size or len(frames["train"]))
    spare = max(1.0, len(frames["train"]) / wanted)
    for name, size in carved.items():
        pool = int(size * spare)
        frames[name], frames["train"] = _carve(frames["train"], pool, generator)
    sizes = {
        "train": task.train_size,
        "validation": task.validation_size,
        "test": task.test_size,
    }
    chosen = {name: _sample(frames[name], size, generator) for name, size in sizes.items()}
    for name, frame in chosen.items():
        if frame.empty:
            raise InputError(
                f"the {name} split of {task.name!r} has no rows: ask for smaller validation_size "
                f"({task.validation_size}) and test_size ({task.test_size}), or give more data"
            )
    return chosen, labels


def _source_fingerprint(task: Task) -> str:
    """What identifies the rows: the files' hashes; of the hub, its id and revision.

    A hub set without a revision is not looked up again once it is cached: who wants another state
    of it names `task.source.revision`.
    """
    if isinstance(task.source, HubRepo):
        return json.dumps(to_mapping(task.source), sort_keys=True)
    path = assets.fetch(task.source)
    files = [path] if path.is_file() else [path / f for f in _named_files(task)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        there = sorted(p.name for p in path.iterdir() if p.is_file())
        raise InputError(
            f"no file {missing[0].name!r} in {path}: there are {', '.join(there[:12]) or 'none'}"
        )
    return " ".join(assets.sha256_of_file(file) for file in files)


def _named_files(task: Task) -> list[str]:
    if not task.train:
        raise InputError(
            f"task.train='' names no file, but the source of {task.name!r} is a folder: "
            "name its training file with task.train=FILE"
        )
    return [file for file in (task.train, task.validation, task.test) if file]


def _read(task: Task, file: str) -> pd.DataFrame:
    if isinstance(task.source, HubRepo):
        return _read_hub(task.source, file)
    path = assets.fetch(task.source)
    return _read_file(path / file if file else path)


def _read_hub(source: HubRepo, split: str) -> pd.DataFrame:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.repo_id, source.subset, split=split, revision=source.revision
        )
    except Exception as error:  # the library raises a score of types, none in common
        raise InputError(assets.why_hub_failed(source, error)) from error
    frame: pd.DataFrame = rows.to_pandas()
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.ClassLabel):
            names = dict(enumerate(feature.names))
            frame[name] = frame[name].map(names)
    return frame


def _read_file(path: Path) -> pd.DataFrame:
    """Read a table by its suffix, compressed or not, every column as text."""
    suffixes = [s for s in path.suffixes if s not in (".gz", ".bz2", ".xz", ".zst")]
    suffix = suffixes[-1] if suffixes else ""
    try:
        match suffix:
            case ".csv":
                return pd.read_csv(path, dtype=str, keep_default_na=False)
            case ".tsv":
                return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
            case ".tab":  # Orange's: names, then types, then roles; quotes mean nothing
                return pd.read_csv(
                    path,
                    sep="\t",
                    skiprows=[1, 2],
                    quoting=csv.QUOTE_NONE,
                    dtype=str,
                    keep_default_na=False,
                )
            case ".jsonl" | ".ndjson":
                return pd.read_json(path, lines=True, dtype=False)
            case ".json":
                return pd.read_json(path, dtype=False)
            case ".parquet":
                return pd.read_parquet(path)
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{path} can't be read as {suffix}: {reason}") from error
    valid = ".csv, .tsv, .tab, .jsonl, .json, .parquet"
    raise InputError(f"{path}: the suffix {suffix!r} is none of {valid}")


def _selected(task: Task, split: str, frame: pd.DataFrame) -> pd.DataFrame:
    wanted = [*task.text_columns, task.label_column]
    wanted += [task.group_column] if task.group_column else []
    if missing := [column for column in wanted if column not in frame.columns]:
        there = ", ".join(map(str, frame.columns))
        raise InputError(f"no column {missing[0]!r} in the {split} rows: the columns are {there}")
    filled = frame[wanted].notna() & (frame[wanted].astype(str) != "")
    kept = frame[filled.all(axis=1)]
    if len(kept) < len(frame):
        _log.warning(
            "%s: left out %d %s rows with an empty %s",
            task.name,
            len(frame) - len(kept),
            split,
            " or ".join(wanted),
        )
    label = kept[task.label_column].astype(str)
    if task.labels:
        if absent := [name for name in task.labels if not (label == name).any()]:
            there = ", ".join(sorted(label.unique())[:20])
            raise InputError(
                f"no row of the {split} rows has the label {absent[0]!r}: it has {there}"
            )
        kept, label = kept[label.isin(task.labels)], label[label.isin(task.labels)]
    columns = {"text": kept[task.text_columns[0]].astype(str), "label": label}
    if len(task.text_columns) == 2:
        columns["text_pair"] = kept[task.text_columns[1]].astype(str)
    columns["group"] = (
        kept[task.group_column].astype(str)
        if task.group_column
        else pd.Series(kept.index, kept.index)
    )
    if kept.empty:
        raise InputError(f"the {split} split of {task.name!r} has no rows")
    return pd.DataFrame(columns).reset_index(drop=True)


def _carve(
    frame: pd.DataFrame, size: int, generator: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take at least `size` rows away, whole groups at a time: return them, and the rest."""
    groups = frame["group"].to_numpy()
    names, members = np.unique(groups, return_inverse=True)
    order = generator.permutation(len(names))
    counts = np.bincount(members)[order]
    taken = order[: int(np.searchsorted(np.cumsum(counts), size)) + 1]
    inside = np.isin(members, taken)
    return frame[inside], frame[~inside]


def _sample(frame: pd.DataFrame, size: int | None, generator: np.random.Generator) -> pd.DataFrame:
    if size is None or len(frame) <= size:
        return frame
    return frame.iloc[np.sort(generator.permutation(len(frame))[:size])]


def with_shuffled_labels(splits: Splits, seed: int) -> Splits:
    """Deal the training labels out anew among the rows; each class stays as common as it was."""
    labels = np.random.default_rng([seed, 2]).permutation(splits.train.labels)
    return dataclasses.replace(splits, train=dataclasses.replace(splits.train, labels=labels))


def _tokenizer_hash(model_folder: Path) -> str:
    """Hash of the tokenizer's files."""
    present = _tokenizer_files(model_folder)
    if not present:
        needed = ", ".join(_TOKENIZER_FILES[:-1])
        raise InputError(f"{model_folder} holds no tokenizer: one of {needed} is needed")
    return " ".join(assets.sha256_of_file(file) for file in present)


def _tokenizer_files(model_folder: Path) -> list[Path]:
    files = [model_folder / name for name in _TOKENIZER_FILES]
    return [file for file in files if file.is_file()]


def load_tokenizer(model_folder: Path) -> Any:
    """Return the model's tokenizer, with a padding token even where the model has none.

    Raises
    ------
    InputError
        It has no token to pad with.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(
            f"{model_folder}: its tokenizer has no padding token, and no end token to pad with: "
            'name one of its tokens in tokenizer_config.json, as in "pad_token": "[PAD]"'
        )
    return tokenizer


def padding_id(model_folder: Path) -> int | None:
    """Return the number of the padding token; None where a folder has no tokenizer, as runs do."""
    if not _tokenizer_files(model_folder):
        return None
    return int(load_tokenizer(model_folder).pad_token_id)


def _tokenise(
    task: Task, frames: dict[str, pd.DataFrame], labels: tuple[str, ...], model_folder: Path
) -> Splits:
    tokenizer = load_tokenizer(model_folder)
    total = hashlib.sha256("\0".join(labels).encode())
    made = {}
    for name in ("train", "validation", "test"):
        frame = frames[name]
        pairs = [frame["text_pair"].tolist()] if "text_pair" in frame else []
        encoded = tokenizer(
            frame["text"].tolist(),
            *pairs,
            truncation=True,
            max_length=task.max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        ids = [np.asarray(tokens, dtype=np.int32) for tokens in encoded["input_ids"]]
        made[name] = Split(
            ids=np.concatenate(ids),
            types=np.concatenate([np.asarray(t, dtype=np.int8) for t in encoded["token_type_ids"]]),
            offsets=np.concatenate([[0], np.cumsum([len(tokens) for tokens in ids])]).astype(
                np.int64
            ),
            labels=frame["label"].to_numpy(dtype=np.int64),
        )
        for field in dataclasses.fields(Split):
            total.update(getattr(made[name], field.name).tobytes())
    return Splits(**made, labels=labels, sha256=total.hexdigest())


def _write_cache(path: Path, splits: Splits) -> None:
    arrays: dict[str, Any] = {
        "labels": np.asarray(splits.labels),
        "sha256": np.asarray(splits.sha256),
    }
    for name in ("train", "validation", "test"):
        for field in dataclasses.fields(Split):
            arrays[f"{name}.{field.name}"] = getattr(getattr(splits, name), field.name)
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read_cache(path: Path) -> Splits | None:
    """Return what is cached, or `None` where nothing is or the file is damaged (zip checksums)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            made = {
                name: Split(
                    **{f.name: stored[f"{name}.{f.name}"] for f in dataclasses.fields(Split)}
                )
                for name in ("train", "validation", "test")
            }
            labels = tuple(str(label) for label in stored["labels"])
            return Splits(**made, labels=labels, sha256=str(stored["sha256"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return None
