"""Splits → batches of tensors: texts laid end to end, in a seeded order.

    >>> batch = next(training_batches(split, batch_size=16, epochs=1, seed=0))
    >>> batch.ids_T.shape, len(batch.lengths)
    (torch.Size([431]), 16)

Padding to the longest text would be half of all work here. Texts laid end to end, with their
lengths beside them, need none, so that texts need not be sorted by length either: which of them
share a batch is chance alone. `padded` gives the usual rectangle, for models that need it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lowrank_study.data.splits import Split

_EVALUATION_TOKENS = 1024  # larger batches leave the caches and gain nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some texts of a split, end to end. N texts, T tokens in all."""

    rows: np.ndarray
    """Which rows of the split these are, (N,)."""
    lengths: tuple[int, ...]
    """Tokens of each text; they add up to T."""
    ids_T: torch.Tensor
    types_T: torch.Tensor
    """Segment of each token."""
    labels_N: torch.Tensor

    def parts(self, tokens: int) -> "Iterator[Batch]":
        """Yield the texts in parts of at most so many tokens, whole texts each.

        Gradients of a sum add up over its parts, and what is kept for the backward pass is that
        of a part.
        """
        for start, end in _spans(np.asarray(self.lengths), tokens):
            first, last = sum(self.lengths[:start]), sum(self.lengths[:end])
            yield Batch(
                rows=self.rows[start:end],
                lengths=self.lengths[start:end],
                ids_T=self.ids_T[first:last],
                types_T=self.types_T[first:last],
                labels_N=self.labels_N[start:end],
            )


def training_batches(split: Split, *, batch_size: int, epochs: int, seed: int) -> Iterator[Batch]:
    """Yield every epoch's batches: the same for every run that has this seed of the data."""
    for order in training_order(len(split), epochs=epochs, seed=seed):
        for start in range(0, len(order), batch_size):
            yield batch_of(split, order[start : start + batch_size])


def training_order(rows: int, *, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the order in which each epoch reads the rows of the training split."""
    generator = np.random.default_rng([seed, 1])
    for _ in range(epochs):
        yield generator.permutation(rows)


def evaluation_batches(split: Split) -> Iterator[Batch]:
    """Yield the whole split in its order, in batches of a bounded number of tokens."""
    for start, end in _spans(split.lengths, _EVALUATION_TOKENS):
        yield batch_of(split, np.arange(start, end))


def _spans(lengths: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut a row of texts into spans of at most so many tokens, or of a single longer text."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        limit = (ends[start - 1] if start else 0) + most
        end = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield start, end
        start = end


def steps_of(split: Split, *, batch_size: int, epochs: int) -> int:
    """Return how many training batches there are."""
    return epochs * -(-len(split) // batch_size)


def extreme_texts(splits: Sequence[Split], count: int) -> Batch:
    """Return a batch that alternates the longest and the shortest texts of some splits.

    It reveals anything that depends on the length of a text, or on padding.
    """
    order = np.argsort(np.concatenate([split.lengths for split in splits]), kind="stable")
    owners = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    rows = np.concatenate([np.arange(len(split)) for split in splits])
    count = min(count, len(order))
    alternating = [place for step in range(count) for place in (-1 - step, step)][:count]
    chosen = [(splits[owners[n]], rows[n]) for n in order[alternating]]
    ids = [split.tokens(row) for split, row in chosen]
    types = [split.types[split.offsets[row] : split.offsets[row + 1]] for split, row in chosen]
    together = Split(
        ids=np.concatenate(ids),
        types=np.concatenate(types),
        offsets=np.cumsum([0, *(len(tokens) for tokens in ids)]),
        labels=np.array([split.labels[row] for split, row in chosen]),
    )
    return batch_of(together, np.arange(len(chosen)))


def batch_of(split: Split, rows: np.ndarray) -> Batch:
    """Lay these rows of a split end to end."""
    where = np.concatenate([np.arange(split.offsets[r], split.offsets[r + 1]) for r in rows])
    return Batch(
        rows=rows,
        lengths=tuple(int(length) for length in split.lengths[rows]),
        ids_T=torch.from_numpy(split.ids[where].astype(np.int64)),
        types_T=torch.from_numpy(split.types[where].astype(np.int64)),
        labels_N=torch.from_numpy(split.labels[rows]),
    )


def padded(values_T: torch.Tensor, lengths: tuple[int, ...], fill: int) -> torch.Tensor:
    """Turn texts laid end to end, (T,), into rows filled up to the longest, (N, longest)."""
    return torch.nn.utils.rnn.pad_sequence(
        list(torch.split(values_T, list(lengths))), batch_first=True, padding_value=fill
    )
