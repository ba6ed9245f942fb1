"""Batches of concatenated texts, in a seeded order.

Padding every text to the longest would double the work. Concatenated texts need no padding, so
they need not be sorted by length either, and batches are random. `padded` returns the usual padded
rectangle for models that need it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lowrank_study.data.splits import Split

_MOST_EXTREME = 4
"""Texts with which a model is checked; each is also computed alone, which is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some texts of a split, concatenated: N texts with T tokens in total, S of them scored."""

    rows: np.ndarray
    """Numbers of the texts' rows in the split, (N,)."""
    lengths: tuple[int, ...]
    """Number of tokens of each text; the sum is T."""
    ids_T: torch.Tensor
    types_T: torch.Tensor
    """Segment of each token."""
    labels_N: torch.Tensor
    scored_T: torch.Tensor
    """Whether each token is to be predicted from those before it."""

    @property
    def scored_S(self) -> torch.Tensor:
        """Position of each scored token; the first token of a text is never scored."""
        return self.scored_T.nonzero()[:, 0]

    def parts(self, tokens: int, *, least: int = 1) -> "Iterator[Batch]":
        """Yield parts of whole texts, each of at most `tokens` tokens, or of `least` longer texts.

        The gradients of the parts add up to those of the batch, and autograd keeps the activations
        of one part at a time.
        """
        for start, end in _spans(np.asarray(self.lengths), tokens, least):
            first, last = sum(self.lengths[:start]), sum(self.lengths[:end])
            yield Batch(
                rows=self.rows[start:end],
                lengths=self.lengths[start:end],
                ids_T=self.ids_T[first:last],
                types_T=self.types_T[first:last],
                labels_N=self.labels_N[start:end],
                scored_T=self.scored_T[first:last],
            )

    def filled(self, multiple: int) -> "Batch":
        """Return the batch with one more text, so that its tokens are a multiple of a number.

        That text repeats the first tokens, and none of it is scored. It is left out if it would be
        longer than all others, because the model may have no positions for it.
        """
        more = -len(self.ids_T) % multiple
        if not 0 < more <= max(self.lengths):
            return self
        return Batch(
            rows=np.append(self.rows, self.rows[:1]),
            lengths=(*self.lengths, more),
            ids_T=torch.cat([self.ids_T, self.ids_T[:more]]),
            types_T=torch.cat([self.types_T, self.types_T[:more]]),
            labels_N=torch.cat([self.labels_N, self.labels_N[:1]]),
            scored_T=torch.cat([self.scored_T, torch.zeros_like(self.scored_T[:more])]),
        )


def training_batches(split: Split, *, batch_size: int, epochs: int, seed: int) -> Iterator[Batch]:
    """Yield the batches of every epoch; they are the same for all runs with this data seed."""
    for order in training_order(len(split), epochs=epochs, seed=seed):
        for start in range(0, len(order), batch_size):
            yield batch_of(split, order[start : start + batch_size])


def training_order(rows: int, *, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the order of the training rows in each epoch."""
    generator = np.random.default_rng([seed, 1])
    for _ in range(epochs):
        yield generator.permutation(rows)


def evaluation_batches(split: Split, *, tokens: int) -> Iterator[Batch]:
    """Yield the whole split in its order, in batches of at most `tokens` or of one longer text."""
    for start, end in _spans(split.lengths, tokens):
        yield batch_of(split, np.arange(start, end))


def _spans(lengths: np.ndarray, most: int, least: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of spans of at most `most` tokens, or of `least` longer texts."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        limit = (ends[start - 1] if start else 0) + most
        end = max(start + least, int(np.searchsorted(ends, limit, side="right")))
        yield start, min(end, len(lengths))
        start = end


def steps_of(split: Split, *, batch_size: int, epochs: int) -> int:
    """Return the number of training batches."""
    return epochs * -(-len(split) // batch_size)


def extreme_texts(splits: Sequence[Split], count: int) -> Batch:
    """Return a batch of at most `count` texts, alternately the longest and the shortest ones.

    A model whose output depends on padding or on other texts fails on such a batch.
    """
    order = np.argsort(np.concatenate([split.lengths for split in splits]), kind="stable")
    owners = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    rows = np.concatenate([np.arange(len(split)) for split in splits])
    count = min(count, len(order), _MOST_EXTREME)
    alternating = [place for step in range(count) for place in (-1 - step, step)][:count]
    chosen = [(splits[owners[n]], rows[n]) for n in order[alternating]]
    places = [slice(split.offsets[row], split.offsets[row + 1]) for split, row in chosen]

    def of_tokens(name: str) -> np.ndarray:
        values = zip(chosen, places, strict=True)
        return np.concatenate([getattr(split, name)[place] for (split, _), place in values])

    together = Split(
        ids=of_tokens("ids"),
        types=of_tokens("types"),
        offsets=np.cumsum([0, *(place.stop - place.start for place in places)]),
        labels=np.array([split.labels[row] for split, row in chosen]),
        scored=of_tokens("scored"),
        text_bytes=np.array([split.text_bytes[row] for split, row in chosen]),
        is_right=np.array([split.is_right[row] for split, row in chosen]),
    )
    return batch_of(together, np.arange(len(chosen)))


def batch_of(split: Split, rows: np.ndarray) -> Batch:
    """Concatenate some rows of a split."""
    where = np.concatenate([np.arange(split.offsets[r], split.offsets[r + 1]) for r in rows])
    return Batch(
        rows=rows,
        lengths=tuple(int(length) for length in split.lengths[rows]),
        ids_T=torch.from_numpy(split.ids[where].astype(np.int64)),
        types_T=torch.from_numpy(split.types[where].astype(np.int64)),
        labels_N=torch.from_numpy(split.labels[rows]),
        scored_T=torch.from_numpy(split.scored[where]),
    )


def padded(values_T: torch.Tensor, lengths: tuple[int, ...], fill: int) -> torch.Tensor:
    """Turn concatenated texts, (T,), into rows padded to the longest, (N, longest)."""
    return torch.nn.utils.rnn.pad_sequence(
        list(torch.split(values_T, list(lengths))), batch_first=True, padding_value=fill
    )
