"""Batches have every text once, in a seeded order, and no padding."""

import math

import numpy as np
import pytest
import torch

from lowrank_study.data.splits import Split
from lowrank_study.training.batches import (
    Batch,
    batch_of,
    evaluation_batches,
    steps_of,
    training_batches,
)


def split_of(lengths: list[int]) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(
        ids=np.arange(1, offsets[-1] + 1, dtype=np.int32),
        types=np.zeros(offsets[-1], dtype=np.int8),
        offsets=offsets.astype(np.int64),
        labels=np.arange(len(lengths)) % 2,
        scored=np.arange(offsets[-1]) % 3 > 0,
        text_bytes=np.arange(len(lengths)),
        is_right=np.ones(len(lengths), dtype=bool),
    )


def test_every_epoch_has_every_text_once_and_no_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500).tolist()
    split = split_of(lengths)
    seen: list[int] = []
    for batch in training_batches(split, batch_size=16, epochs=2, seed=3):
        seen += batch.rows.tolist()
        assert len(batch.ids_T) == sum(batch.lengths)
        for row, ids in zip(batch.rows, torch.split(batch.ids_T, list(batch.lengths)), strict=True):
            assert ids.tolist() == split.tokens(row).tolist()
        assert batch.labels_N.tolist() == split.labels[batch.rows].tolist()
    assert sorted(seen) == sorted(list(range(500)) * 2)
    assert seen[:500] != seen[500:]
    assert len(seen) // 16 <= steps_of(split, batch_size=16, epochs=2) == 2 * math.ceil(500 / 16)


def test_the_order_follows_from_the_seed() -> None:
    split = split_of(list(range(3, 60)))

    def order(seed: int) -> list[int]:
        found = training_batches(split, batch_size=4, epochs=1, seed=seed)
        return [int(row) for batch in found for row in batch.rows]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_evaluation_reads_every_text_once_within_the_token_budget() -> None:
    split = split_of(np.random.default_rng(0).integers(3, 700, 90).tolist())
    rows: list[int] = []
    for batch in evaluation_batches(split, tokens=1000):
        rows += batch.rows.tolist()
        assert len(batch.ids_T) <= 1000 or len(batch.rows) == 1
    assert rows == list(range(90))


@pytest.mark.parametrize("tokens", [1, 5, 8, 100])
def test_parts_are_whole_texts_and_nothing_is_lost(tokens: int) -> None:
    lengths = [3, 4, 9, 1, 2, 2]
    batch = batch_of(split_of(lengths), np.arange(6))
    parts = list(batch.parts(tokens))
    assert torch.equal(torch.cat([part.ids_T for part in parts]), batch.ids_T)
    assert torch.equal(torch.cat([part.labels_N for part in parts]), batch.labels_N)
    assert sum((part.lengths for part in parts), ()) == batch.lengths
    assert all(len(part.ids_T) <= tokens or len(part.lengths) == 1 for part in parts)
    assert list(np.concatenate([part.rows for part in parts])) == list(range(6))


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_part_of_long_texts_has_the_least_number(tokens: int) -> None:
    batch = batch_of(split_of([30, 3, 20, 2, 10]), np.arange(5))
    parts = [part.lengths for part in batch.parts(tokens, least=2)]
    assert parts == [(30, 3), (20, 2), (10,)]


def test_a_filled_batch_repeats_its_first_tokens_as_one_more_text() -> None:
    batch = Batch(
        rows=np.array([4, 2]),
        lengths=(3, 4),
        ids_T=torch.arange(7),
        types_T=torch.zeros(7, dtype=torch.long),
        labels_N=torch.tensor([1, 0]),
        scored_T=torch.ones(7, dtype=torch.bool),
    )
    filled = batch.filled(10)
    assert filled.lengths == (3, 4, 3)
    assert filled.ids_T.tolist() == [*range(7), 0, 1, 2]
    assert len(filled.types_T) == 10
    assert filled.scored_T.tolist() == [True] * 7 + [False] * 3
    assert len(filled.rows) == len(filled.labels_N) == 3
    assert batch.filled(7) is batch
    assert batch.filled(32) is batch, "25 tokens would be longer than the longest text"
