"""Match the matrices of two checkpoints by name: split alike, tied ones once.

left = Side("before", before, names.before, names.prefix_before, config)
matches, differing = matched(left, right)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats.quantized import PACKED
from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.checkpoints.matrices.finding import (
    Matrix,
    find_matrices,
    module_of,
    split_expert,
)
from lowrank_study.checkpoints.matrices.fused import models_within
from lowrank_study.checkpoints.pairing.match import (
    Match,
    is_head,
    is_vocabulary,
    match_of,
    may_be_tied,
)
from lowrank_study.checkpoints.pairing.renames import canonical
from lowrank_study.checkpoints.pairing.unpaired import SIDES, Unpaired, is_buffer
from lowrank_study.checkpoints.weights import Weights

ALONE = {
    "before": "only in the pretrained checkpoint",
    "after": "only in the tuned checkpoint",
}
_BESIDE = "in a separate folder beside the model, which isn't read"
_SAMPLE = 4096
_BLOCK = 2**22
"""Entries of two matrices that are compared at a time."""


class Side:
    """One of two checkpoints, with its tensors that have not been paired yet."""

    def __init__(
        self,
        side: str,
        weights: Weights,
        keys: Mapping[str, str],
        prefix: str,
        config: Mapping[str, Any],
    ) -> None:
        """Sort the tensors of a checkpoint; this reads only headers.

        Args:
            side: one of `SIDES`.
            weights: the checkpoint.
            keys: name of each tensor to its key.
            prefix: prefix of its names when shown.
            config: config.json to read it by.
        """
        self.side = side
        self.weights = weights
        self.prefix = prefix
        self.models = models_within(config)
        found, no_matrices = find_matrices(weights, config)
        self.matrices = {_key(matrix, keys): matrix for matrix in found.values()}
        """Matrices by key; paired ones are removed."""
        self.others: dict[str, str] = {}
        """Other tensors by key; paired ones are removed."""
        self.ignored = dict(weights.skipped)
        """Tensors without weights, with the reason."""
        for name in weights.names():
            shape = weights.shape(name)
            if len(shape) < 2 or name in no_matrices:
                if len(shape) > 1 and is_buffer(name, shape):
                    self.ignored[name] = "a mask or a table that the model's code computes"
                else:
                    self.others[keys[name]] = name

    def shown(self, name: str) -> str:
        """Return the name to show."""
        return self.prefix + name

    def alone(self) -> Iterator[Unpaired]:
        """Yield the tensors that have not been paired."""
        for matrix in self.matrices.values():
            yield Unpaired.of(
                self.side, self.shown(matrix.name), matrix.shape, ALONE[self.side], is_matrix=True
            )
        for name in self.others.values():
            shape = (0,) if is_buffer(name, ()) else self.weights.shape(name)
            yield Unpaired.of(self.side, self.shown(name), shape, ALONE[self.side], is_matrix=False)
        for name, reason in self.ignored.items():
            if reason == PACKED:
                shape = self.weights.stored_shape(name)
                yield Unpaired.of(self.side, self.shown(name), shape, reason, is_matrix=True)
        for name, count in self.weights.beside.items():
            yield Unpaired.of(self.side, name, (count,), _BESIDE, is_matrix=True)


def _key(matrix: Matrix, keys: Mapping[str, str]) -> str:
    """Return the key of a matrix: its tensor's key and its part of the tensor."""
    part = matrix.name.removeprefix(module_of(matrix.tensor))
    return module_of(keys[matrix.tensor]) + part


def matched(left: Side, right: Side) -> tuple[list[Match], list[Unpaired]]:
    """Return the matrices that both have, and those that differ.

    Both kinds are removed from both sides.
    """
    matches: list[Match] = []
    differing: list[Unpaired] = []
    for key in [key for key in right.matrices if key in left.matrices]:
        before, after = left.matrices.pop(key), right.matrices.pop(key)
        name = right.shown(after.name)
        match = match_of(name, before, after)
        if match is not None:
            matches.append(match)
            continue
        why = f"shape {list(before.shape)} before, {list(after.shape)} after"
        differing += [
            Unpaired.of(side, name, matrix.shape, why, is_matrix=True)
            for side, matrix in zip(SIDES, (before, after), strict=True)
        ]
    for stacked, single in ((left, right), (right, left)):
        for pieces in _split_alike(stacked, single):
            for piece, other in pieces:
                before, after = (piece, other) if stacked is left else (other, piece)
                match = match_of(right.shown(after.name), before, after)
                assert match is not None
                matches.append(match)
    return matches, differing


def _split_alike(stacked: Side, single: Side) -> Iterator[list[tuple[Matrix, Matrix]]]:
    """Yield experts of a stack that the other checkpoint stores separately, and remove them."""
    keys = {canonical(key): key for key in single.matrices}
    for key, matrix in list(stacked.matrices.items()):
        pieces = split_expert(matrix, stacked.models)
        names = [keys.get(canonical(piece.name)) for piece in pieces]
        found = [single.matrices[name] for name in names if name is not None]
        shapes = [piece.shape for piece in pieces]
        if found and [other.shape for other in found] == shapes:
            del stacked.matrices[key]
            for name in names:
                assert name is not None
                del single.matrices[name]
            yield list(zip(pieces, found, strict=True))


def matched_tied(left: Side, right: Side, matches: list[Match]) -> list[Match]:
    """Match a vocabulary that one side lacks, as it is tied there, with the only one stored there.

    A tied model stores head and embedding once, under either name. Where a tuned model's head
    was untied, its W0 is the embedding.
    """
    for side, other in ((left, right), (right, left)):
        config = other.weights.config
        stored = [m for m in other.matrices.values() if is_vocabulary(m.name)]
        compared = [match.before for match in matches if is_vocabulary(match.before.name)]
        if side is right:
            stored += compared
        elif compared:
            continue
        if len(stored) != 1 or not config or not may_be_tied(config):
            continue
        missing = [
            matrix
            for matrix in side.matrices.values()
            if is_vocabulary(matrix.name) and is_head(matrix.name) != is_head(stored[0].name)
        ]
        if len(missing) != 1:
            continue
        pair = (missing[0], stored[0]) if side is left else (stored[0], missing[0])
        match = match_of(side.shown(missing[0].name), *pair)
        if match is not None:
            for each in (left, right):
                each.matrices = {k: m for k, m in each.matrices.items() if m not in pair}
            return [match]
    return []


def matched_others(left: Side, right: Side) -> tuple[dict[str, tuple[str, str]], list[Unpaired]]:
    """Return the tensors, not matrices, that both have, and those that differ in shape."""
    pairs: dict[str, tuple[str, str]] = {}
    differing: list[Unpaired] = []
    for key in [key for key in right.others if key in left.others]:
        before, after = left.others.pop(key), right.others.pop(key)
        shapes = left.weights.shape(before), right.weights.shape(after)
        name = right.shown(after)
        if shapes[0] == shapes[1]:
            pairs[name] = before, after
            continue
        why = f"shape {list(shapes[0])} before, {list(shapes[1])} after"
        differing += [
            Unpaired.of(side, name, shape, why, is_matrix=False)
            for side, shape in zip(SIDES, shapes, strict=True)
        ]
    return pairs, differing


def without_tied(matches: Iterable[Match]) -> tuple[list[Match], dict[str, str]]:
    """Return the matches without copies of another match in both checkpoints.

    Only vocabularies are tied. The second part maps each copy to its original.
    """
    kept: list[Match] = []
    vocabulary: list[Match] = []
    tied: dict[str, str] = {}
    for match in matches:
        if is_vocabulary(match.name):
            twins = [
                other
                for other in vocabulary
                if _same(match.before, other.before) and _same(match.after, other.after)
            ]
            if twins:
                tied[match.name] = _tied_to(twins[0].name)
                continue
            vocabulary.append(match)
        kept.append(match)
    return kept, tied


def take_out_tied(side: Side, matches: Iterable[Match]) -> dict[str, str]:
    """Remove tensors that only one checkpoint stores because the other one ties them."""
    index = SIDES.index(side.side)
    paired = [
        ((match.before, match.after)[index], match.name)
        for match in matches
        if is_vocabulary(match.name)
    ]
    tied: dict[str, str] = {}
    for key, matrix in list(side.matrices.items()):
        if is_vocabulary(matrix.name):
            twin = next((name for other, name in paired if _same(matrix, other)), None)
            if twin is not None:
                del side.matrices[key]
                tied[side.shown(matrix.name)] = _tied_to(twin)
    return tied


def _tied_to(name: str) -> str:
    return f"the same as {shown(name)} (tied), counted there"


def _same(a: Matrix, b: Matrix) -> bool:
    """Whether two matrices of equal shape have the same numbers, and not all of them equal."""
    weights = a.weights
    if a.weights is not b.weights or a.shape != b.shape or a.storage_dtype != b.storage_dtype:
        return False
    rows = weights.shape(a.tensor)[0]
    few = max(1, min(rows, _SAMPLE // max(1, weights.shape(a.tensor)[-1])))
    start_a, start_b = (weights.read_rows(m.tensor, 0, few) for m in (a, b))
    if not np.array_equal(start_a, start_b):
        return False
    varied = False
    for block_a, block_b in zip(*(m.read_blocks(m.shape, _BLOCK) for m in (a, b)), strict=True):
        if not np.array_equal(block_a, block_b):
            return False
        varied = varied or bool(np.any(block_a != start_a.flat[0]))
    return varied
