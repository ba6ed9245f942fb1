"""Split rows into train, validation and test: whole groups, and no text in two splits.

Texts are equal if they differ only in case, white space or Unicode form. A row whose text is
already in another split is replaced by an unused row. If no row is left, equal texts are grouped
before the split, together with `task.group_column`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.data.selection import normal_form
from lowrank_study.errors import InputError

if TYPE_CHECKING:
    from lowrank_study.tasks import Task

Frames = Mapping[str, pd.DataFrame]


def carve(task: "Task", frames: Frames) -> dict[str, pd.DataFrame]:
    """Return the rows of the three splits; missing splits are drawn from the training rows."""
    train = frames["train"]
    if task.group_column:
        normal = train["group"].map(normal_form)
        if normal.nunique() < train["group"].nunique():
            train = train.assign(group=normal)
        _check_groups(task, frames, train["group"].nunique())
    chosen = _drawn(task, {**frames, "train": train}, linked=False)
    if chosen is None:
        linked = train.assign(group=_linked_groups(train))
        chosen = _drawn(task, {**frames, "train": linked}, linked=True)
    if chosen is None or any(frame.empty for frame in chosen.values()):
        raise InputError(_why_empty(task, frames))
    return {name: chosen[name] for name in ("train", "validation", "test")}


def _check_groups(task: "Task", frames: Frames, groups: int) -> None:
    needed = 1 + sum(name not in frames for name in ("validation", "test"))
    if groups < needed:
        raise InputError(
            f"task.group_column={task.group_column!r} has {groups} "
            f"{'value' if groups == 1 else 'values'}: rows that share one stay in one split, but "
            f"{needed} splits are made of the training rows; name another column, or null"
        )


def _drawn(task: "Task", given: Frames, *, linked: bool) -> dict[str, pd.DataFrame] | None:
    """Draw the splits by groups; None if rows would be lost because of equal texts."""
    generator = np.random.default_rng(task.split_seed)
    frames = dict(given)
    carved = {name: task.sizes[name] or 0 for name in ("test", "validation") if name not in frames}
    # Unused rows are distributed too, so that each split is drawn from as many groups (films,
    # authors) as possible and differs less from the others by chance.
    wanted = sum(carved.values()) + (task.train_size or len(frames["train"]))
    spare = max(1.0, len(frames["train"]) / wanted)
    for name, size in carved.items():
        pool = int(size * spare)
        frames[name], frames["train"] = _taken(frames["train"], pool, generator, linked=linked)
    sizes = task.sizes
    orders = {name: _order(len(frames[name]), size, generator) for name, size in sizes.items()}
    chosen: dict[str, pd.DataFrame] = {}
    keys: set[str] = set()
    for name in ("test", "validation", "train"):
        frame, order = frames[name], orders[name]
        size = min(sizes[name] or len(frame), len(frame))
        if name in carved or name == "train":
            order = order[~frame["key"].isin(keys).to_numpy()[order]]
        if len(order) < size:
            return None
        chosen[name] = frame.iloc[np.sort(order[:size])]
        if name in carved:
            keys |= set(chosen[name]["key"])
    return chosen


def _taken(
    frame: pd.DataFrame, size: int, generator: np.random.Generator, *, linked: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take at least `size` rows, in whole groups; return them, and the rest."""
    names, members = np.unique(frame["group"].to_numpy(), return_inverse=True)
    order = generator.permutation(len(names))
    counts = np.bincount(members, minlength=len(names))
    if linked:  # else a text with more rows than wanted could be the whole split
        order = order[np.argsort(counts[order] > size, kind="stable")]
    taken = order[: int(np.searchsorted(np.cumsum(counts[order]), size)) + 1]
    inside = np.isin(members, taken)
    return frame[inside], frame[~inside]


def _order(rows: int, size: int | None, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return the rows in the order in which they are chosen."""
    if size is None or rows <= size:
        return np.arange(rows)
    return generator.permutation(rows)


def _linked_groups(frame: pd.DataFrame) -> npt.NDArray[np.int32]:
    """Return one number for all rows linked by a group or a text, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups, group_names = pd.factorize(frame["group"])
    texts, text_names = pd.factorize(frame["key"])
    nodes = len(group_names) + len(text_names)
    edges = coo_array(
        (np.ones(len(frame)), (groups, len(group_names) + texts)), shape=(nodes, nodes)
    )
    _, component = connected_components(edges, directed=False)
    return np.asarray(component[groups], dtype=np.int32)


def _why_empty(task: "Task", frames: Frames) -> str:
    train = frames["train"]
    rows, texts = len(train), train["key"].nunique()
    groups = f" in {train['group'].nunique():,} groups" if task.group_column else ""
    found = f"{task.name!r} has {rows:,} training rows ({texts:,} different texts{groups})"
    splits = 1 + len(carved_from(frames))
    if texts < splits:
        each = "; each row or file is one text" if task.reads_files else ""
        return f"{found}, but {splits} splits are made of them{each}: give more data"
    asked = f"task.validation_size={task.validation_size} and task.test_size={task.test_size}"
    return (
        f"{found}: {asked} leave a split with no rows; set smaller sizes, as in "
        f"{smaller_sizes(frames)}, or give more data"
    )


def carved_from(frames: Frames) -> list[str]:
    """Return the splits that have no file, so that they are drawn from the training rows."""
    return [name for name in ("validation", "test") if name not in frames]


def smaller_sizes(frames: Frames) -> str:
    """Return settings that take a fifth of the training rows for each split drawn from them."""
    size = max(1, frames["train"]["key"].nunique() // 5)
    return " ".join(f"task.{name}_size={size}" for name in carved_from(frames))
