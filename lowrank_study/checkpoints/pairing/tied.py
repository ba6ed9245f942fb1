"""Match vocabularies that one or both checkpoints tie: stored once, under either name."""

from collections.abc import Iterable

import numpy as np

from lowrank_study.checkpoints.formats import shown
from lowrank_study.checkpoints.matrices import Matrix
from lowrank_study.checkpoints.names import is_head, is_vocabulary, may_be_tied
from lowrank_study.checkpoints.pairing.match import Match, match_of
from lowrank_study.checkpoints.pairing.sides import Side
from lowrank_study.checkpoints.pairing.unpaired import SIDES

_SAMPLE = 4096
_BLOCK = 2**22
"""Entries of two matrices that are compared at a time."""


def matched_tied(left: Side, right: Side, matches: list[Match]) -> list[Match]:
    """Match a vocabulary that one side lacks with the only one stored there, if it may be tied.

    A tied model stores head and embedding once, under either name. Where a tuned model's head
    was untied, its W0 is the embedding.
    """
    compared = [match.before for match in matches if is_vocabulary(match.before.name)]
    for side, other in ((left, right), (right, left)):
        config = other.weights.config
        stored = [m for m in other.matrices.values() if is_vocabulary(m.name)]
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


def without_tied(matches: Iterable[Match]) -> tuple[list[Match], dict[str, str]]:
    """Return the matches without vocabularies that equal another one in both checkpoints.

    The second part maps the name of each copy to the reason why it is skipped.
    """
    kept: list[Match] = []
    vocabulary: list[Match] = []
    tied: dict[str, str] = {}
    for match in matches:
        if is_vocabulary(match.name):
            twins = (
                other
                for other in vocabulary
                if _same(match.before, other.before) and _same(match.after, other.after)
            )
            if twin := next(twins, None):
                tied[match.name] = _tied_to(twin.name)
                continue
            vocabulary.append(match)
        kept.append(match)
    return kept, tied


def take_out_tied(side: Side, matches: Iterable[Match]) -> dict[str, str]:
    """Remove vocabularies that only one checkpoint stores, because the other one ties them."""
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
    """Whether two matrices of one file have the same numbers, which are not all equal."""
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
