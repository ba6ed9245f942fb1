"""Splits → batches of tensors: training batches in a seeded order, evaluation ones by length.

Padding costs as much as text. Texts of about the same length are therefore put together:
training shuffles, sorts within windows of many batches, and shuffles the batches, so that
which texts meet stays random; evaluation sorts everything, since order changes nothing there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lowrank_study.training.data import Split

_WINDOW_BATCHES = 32
_EVALUATION_TOKENS = 1024  # with padding: larger batches leave the caches and gain nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some texts of a split, padded to the longest. N texts, T tokens."""

    rows: np.ndarray
    """Which rows of the split these are, (N,)."""
    ids_NT: torch.Tensor
    types_NT: torch.Tensor
    mask_NT: torch.Tensor
    """1 for text, 0 for padding."""
    labels_N: torch.Tensor


def training_batches(
    split: Split, *, batch_size: int, epochs: int, seed: int, pad_id: int
) -> Iterator[Batch]:
    """Yield every epoch's batches: the same for every method that trains with this seed."""
    generator = np.random.default_rng([seed, 1])
    window = batch_size * _WINDOW_BATCHES
    for _ in range(epochs):
        shuffled = generator.permutation(len(split))
        by_length = np.concatenate(
            [
                part[np.argsort(split.lengths[part], kind="stable")]
                for part in np.split(shuffled, range(window, len(shuffled), window))
            ]
        )
        groups = np.split(by_length, range(batch_size, len(by_length), batch_size))
        for number in generator.permutation(len(groups)):
            yield collate(split, groups[number], pad_id)


def evaluation_batches(split: Split, *, pad_id: int) -> Iterator[Batch]:
    """Yield the whole split in batches of a bounded number of tokens, longest texts first."""
    order = np.argsort(-split.lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, _EVALUATION_TOKENS // int(split.lengths[order[start]]))
        yield collate(split, order[start : start + count], pad_id)
        start += count


def steps_of(split: Split, *, batch_size: int, epochs: int) -> int:
    """Return how many training batches there are."""
    return epochs * -(-len(split) // batch_size)


def collate(split: Split, rows: np.ndarray, pad_id: int) -> Batch:
    """Pad these rows of a split to the longest of them."""
    lengths = split.lengths[rows]
    shape = (len(rows), int(lengths.max()))
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    where = split.offsets[rows][:, None] + np.arange(shape[1])[None, :]
    where = np.where(mask, where, 0)
    return Batch(
        rows=rows,
        ids_NT=torch.from_numpy(np.where(mask, split.ids[where], pad_id).astype(np.int64)),
        types_NT=torch.from_numpy(np.where(mask, split.types[where], 0).astype(np.int64)),
        mask_NT=torch.from_numpy(mask.astype(np.int64)),
        labels_N=torch.from_numpy(split.labels[rows]),
    )
