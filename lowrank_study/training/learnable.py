"""What the splits hold, in words, and a refusal where nothing can be learnt from them."""

from collections import Counter

import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.left_out import LARGEST_SHARE
from lowrank_study.spec import Task

_MANY_CLASSES = 50
_LEAST_SHARE = 0.1
"""Of the rows that validation and test are carved from: what has to be left for training."""
_SHOWN_CLASSES = 8
_FEW_ROWS = 2


def described(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Return one line a split: its rows, and those of each class."""
    return [f"{name}: {len(frame):,} rows ({_counts(frame)})" for name, frame in frames.items()]


def _counts(frame: pd.DataFrame) -> str:
    counts = Counter(frame["label"])
    if len(counts) <= _SHOWN_CLASSES:
        return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    shown = [f"{name} {count:,}" for name, count in counts.most_common(_SHOWN_CLASSES)]
    return f"{', '.join(shown)} … {len(counts)} classes, the smallest with {min(counts.values()):,}"


def check_learnable(
    task: Task, frames: dict[str, pd.DataFrame], whole: dict[str, pd.DataFrame]
) -> list[str]:
    """Return what is odd about the splits, one line each.

    Parameters
    ----------
    task
        What was asked for.
    frames
        The splits.
    whole
        All rows that they were drawn from.

    Raises
    ------
    InputError
        Too few training rows or classes are left.
    """
    train = frames["train"]
    classes = Counter(train["label"])
    if len(classes) < 2:
        raise InputError(
            f"the training split of {task.name!r} has {len(train):,} rows of one class, "
            f"{next(iter(classes))!r}: a classifier needs two; give more rows of the others, ask "
            "for a larger task.train_size, or another task.split_seed"
        )
    _check_size(task, len(train), whole)
    once = sum(count == 1 for count in classes.values())
    if once > len(train) / 2:
        raise InputError(
            f"task.label_column={task.label_column!r}: {once:,} of {len(train):,} training rows "
            "have a label of their own, so that nothing can be learnt: name the column of the "
            "classes, or list those to keep in task.labels"
        )
    warnings = _unseen(frames)
    if once > _MANY_CLASSES:
        warnings.append(f"{once} of {len(classes)} classes have one training row each")
    return warnings + _sizes_missed(task, frames) + _repeated(task, frames, whole)


def _check_size(task: Task, left: int, whole: dict[str, pd.DataFrame]) -> None:
    """Refuse a training split that carving has eaten."""
    rows = len(whole["train"])
    if left >= _LEAST_SHARE * rows or left == task.train_size:
        return
    carved = {"validation": task.validation_size, "test": task.test_size}
    taken = " and ".join(f"task.{n}_size={s}" for n, s in carved.items() if n not in whole)
    remedy = " ".join(f"task.{n}_size={max(1, rows // 5)}" for n in carved if n not in whole)
    raise InputError(
        f"{task.name!r} has {rows:,} rows, of which {taken} leave {left:,} for training: ask for "
        f"less, as in {remedy}"
    )


def _unseen(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Say which rows have a class that no training row has; refuse more than a few."""
    warnings = []
    known = set(frames["train"]["label"])
    for name in ("validation", "test"):
        labels = frames[name]["label"]
        unseen = labels[~labels.isin(known)]
        if unseen.empty:
            continue
        share = len(unseen) / len(labels)
        told = (
            f"{len(unseen):,} of {len(labels):,} {name} rows ({100 * share:.3g} %) have a class "
            f"without training rows, such as {unseen.iloc[0]!r}, and can't be predicted"
        )
        if share > LARGEST_SHARE and len(unseen) > _FEW_ROWS:
            raise InputError(
                f"{told}: give more rows, ask for a larger task.train_size, name the classes to "
                "keep in task.labels, or choose another task.group_column or task.split_seed"
            )
        warnings.append(told)
    return warnings


def _sizes_missed(task: Task, frames: dict[str, pd.DataFrame]) -> list[str]:
    asked = {
        "train": task.train_size,
        "validation": task.validation_size,
        "test": task.test_size,
    }
    return [
        f"task.{name}_size={size} was asked for, and {len(frames[name]):,} rows are there"
        for name, size in asked.items()
        if size is not None and len(frames[name]) < size
    ]


def _repeated(
    task: Task, frames: dict[str, pd.DataFrame], whole: dict[str, pd.DataFrame]
) -> list[str]:
    """Say which texts stand in several rows or splits, and which of them have several labels."""
    told = []
    repeated = whole["train"][whole["train"]["key"].duplicated(keep=False)]
    if len(repeated):
        texts = repeated.groupby("key")["label"].nunique()
        told.append(
            f"{len(repeated):,} of {len(whole['train']):,} rows to train on share {len(texts):,} "
            f"texts; equal ones are kept in one split where splits are carved"
            + (f", and {int((texts > 1).sum()):,} have several labels" if (texts > 1).any() else "")
        )
    trained = set(frames["train"]["key"])
    for name in ("validation", "test"):
        if count := int(frames[name]["key"].isin(trained).sum()):
            told.append(
                f"{count:,} of {len(frames[name]):,} {name} texts "
                f"({100 * count / len(frames[name]):.2g} %) stand in the training split too, so "
                f"that accuracy is too high: the files of {task.name!r} share them"
            )
    return told
