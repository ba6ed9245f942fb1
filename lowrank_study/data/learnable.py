"""Check the sizes of the splits, and warn about texts that occur more than once."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from lowrank_study.data.carving import carved_from, smaller_sizes
from lowrank_study.errors import InputError

if TYPE_CHECKING:
    from lowrank_study.tasks import Task

Frames = Mapping[str, pd.DataFrame]
_LEAST_SHARE = 0.1
"""Smallest share of the rows that must be left for training after the split."""


def require_training_rows(task: "Task", train: pd.DataFrame, whole: Frames) -> None:
    """Refuse splits that leave too few rows for training."""
    rows = len(whole["train"])
    if len(train) >= _LEAST_SHARE * rows or len(train) == task.train_size:
        return
    taken = " and ".join(f"task.{name}_size={task.sizes[name]}" for name in carved_from(whole))
    raise InputError(
        f"{task.name!r} has {rows:,} rows, but {taken} leave {len(train):,} for training: set "
        f"smaller sizes, as in {smaller_sizes(whole)}"
    )


def missed_sizes(task: "Task", frames: Frames) -> list[str]:
    """Warn about splits with fewer rows than the task asks for."""
    return [
        f"task.{name}_size={size}, but there are only {len(frames[name]):,} rows"
        for name, size in task.sizes.items()
        if size is not None and len(frames[name]) < size
    ]


def repeated_texts(task: "Task", frames: Frames, whole: Frames) -> list[str]:
    """Warn about texts in several rows or splits, and those with several labels."""
    warnings = []
    repeated = whole["train"][whole["train"]["key"].duplicated(keep=False)]
    if len(repeated):
        labels = repeated["label"] if "label" in repeated else pd.Series(0, repeated.index)
        texts = labels.groupby(repeated["key"]).nunique()
        is_carved = any(name not in whole for name in ("validation", "test"))
        kept = "; each text stays in one carved split" if is_carved else ""
        several = int((texts > 1).sum())
        differ = f"; {several:,} of these texts have several labels" if several else ""
        warnings.append(
            f"{len(repeated):,} of the {len(whole['train']):,} rows of the training file share "
            f"{len(texts):,} texts{kept}{differ}"
        )
    trained = set(frames["train"]["key"])
    for name in ("validation", "test"):
        if count := int(frames[name]["key"].isin(trained).sum()):
            warnings.append(
                f"{count:,} of {len(frames[name]):,} {name} texts "
                f"({100 * count / len(frames[name]):.2g} %) are also in the training split, so "
                f"{task.metric.label} may be too good: the files of {task.name!r} share them"
            )
    return warnings
