"""Describe the splits in words, and refuse those that are too small to learn from."""

from collections import Counter

import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.left_out import LARGEST_SHARE
from lowrank_study.spec import Task

_MANY_CLASSES = 50
_LEAST_SHARE = 0.1
"""Smallest share of the rows that must be left for training after the split."""
_SHOWN_CLASSES = 8
_FEW_ROWS = 2


def described(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Return one line per split with its rows, and the rows of each class."""
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
    """Return warnings about the splits, one line each.

    Parameters
    ----------
    task
        The task as configured.
    frames
        The splits.
    whole
        All rows that the splits were drawn from.

    Raises
    ------
    InputError
        There are too few training rows or classes.
    """
    train = frames["train"]
    classes = Counter(train["label"])
    if len(classes) < 2:
        raise InputError(
            f"the training split of {task.name!r} has {len(train):,} rows of one class, "
            f"{next(iter(classes))!r}: a classifier needs at least two classes; give more rows of "
            "others, set a larger task.train_size, or another task.split_seed"
        )
    _check_size(task, len(train), whole)
    once = sum(count == 1 for count in classes.values())
    if once > len(train) / 2:
        raise InputError(
            f"task.label_column={task.label_column!r}: {once:,} of {len(train):,} training rows "
            "have a label that no other row has, so nothing can be learnt: name the column of the "
            "classes, or list those to keep in task.labels"
        )
    warnings = _unseen(frames)
    if once > _MANY_CLASSES:
        warnings.append(f"{once} of {len(classes)} classes have one training row each")
    return warnings + _sizes_missed(task, frames) + _repeated(task, frames, whole)


def _check_size(task: Task, left: int, whole: dict[str, pd.DataFrame]) -> None:
    """Refuse a training split if too few rows are left for it."""
    rows = len(whole["train"])
    if left >= _LEAST_SHARE * rows or left == task.train_size:
        return
    carved = {"validation": task.validation_size, "test": task.test_size}
    taken = " and ".join(f"task.{n}_size={s}" for n, s in carved.items() if n not in whole)
    remedy = " ".join(f"task.{n}_size={max(1, rows // 5)}" for n in carved if n not in whole)
    raise InputError(
        f"{task.name!r} has {rows:,} rows, but {taken} leave {left:,} for training: set smaller "
        f"sizes, as in {remedy}"
    )


def _unseen(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Warn about rows whose class has no training row; refuse more than a few of them."""
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
                f"{told}: give more rows, set a larger task.train_size, list the classes to keep "
                "in task.labels, or choose another task.group_column or task.split_seed"
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
        f"task.{name}_size={size} was asked for, but only {len(frames[name]):,} rows are there"
        for name, size in asked.items()
        if size is not None and len(frames[name]) < size
    ]


def _repeated(
    task: Task, frames: dict[str, pd.DataFrame], whole: dict[str, pd.DataFrame]
) -> list[str]:
    """Warn about texts in several rows or splits, and those with several labels."""
    told = []
    repeated = whole["train"][whole["train"]["key"].duplicated(keep=False)]
    if len(repeated):
        texts = repeated.groupby("key")["label"].nunique()
        is_carved = any(name not in whole for name in ("validation", "test"))
        kept = "; each text stays in one carved split" if is_carved else ""
        several = int((texts > 1).sum())
        labels = f"; {several:,} of these texts have several labels" if several else ""
        told.append(
            f"{len(repeated):,} of the {len(whole['train']):,} rows of the training file share "
            f"{len(texts):,} texts{kept}{labels}"
        )
    trained = set(frames["train"]["key"])
    for name in ("validation", "test"):
        if count := int(frames[name]["key"].isin(trained).sum()):
            told.append(
                f"{count:,} of {len(frames[name]):,} {name} texts "
                f"({100 * count / len(frames[name]):.2g} %) are also in the training split, so "
                f"accuracy may be too high: the files of {task.name!r} share them"
            )
    return told
