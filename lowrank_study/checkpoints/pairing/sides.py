"""Match the matrices and vectors of two checkpoints by name.

left = Side("before", before, names.before, names.prefix_before, config)
matches, differing = matched(left, right)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lowrank_study.checkpoints.formats.quantized import PACKED
from lowrank_study.checkpoints.matrices import Matrix, find_matrices, models_within, split_expert
from lowrank_study.checkpoints.names import canonical, is_buffer, module_of
from lowrank_study.checkpoints.pairing.match import Match, match_of
from lowrank_study.checkpoints.pairing.unpaired import Unpaired, of_other_shape
from lowrank_study.checkpoints.weights import Weights

ALONE = {"before": "only in the pretrained checkpoint", "after": "only in the tuned checkpoint"}
_BESIDE = "in a separate folder beside the model, which isn't read"


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
        """Sort the tensors of a checkpoint by their keys; only headers are read."""
        self.side = side
        self.weights = weights
        self.prefix = prefix
        """A prefix of its names when shown."""
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
            if name in no_matrices and is_buffer(name, shape):
                self.ignored[name] = "a mask or a table that the model's code computes"
            elif name in no_matrices or len(shape) < 2:
                self.others[keys[name]] = name

    def shown(self, name: str) -> str:
        """Return the name to show."""
        return self.prefix + name

    def alone(self) -> Iterator[Unpaired]:
        """Yield the tensors that have not been paired."""
        alone = ALONE[self.side]
        for matrix in self.matrices.values():
            yield self._unpaired(matrix.name, matrix.shape, alone, is_matrix=True)
        for name in self.others.values():
            shape = (0,) if is_buffer(name, ()) else self.weights.shape(name)
            yield self._unpaired(name, shape, alone, is_matrix=False)
        for name, reason in self.ignored.items():
            if reason == PACKED:
                yield self._unpaired(name, self.weights.stored_shape(name), reason, is_matrix=True)
        for name, count in self.weights.beside.items():
            yield Unpaired.of(self.side, name, (count,), _BESIDE, is_matrix=True)

    def _unpaired(
        self, name: str, shape: tuple[int, ...], why: str, *, is_matrix: bool
    ) -> Unpaired:
        return Unpaired.of(self.side, self.shown(name), shape, why, is_matrix=is_matrix)


def _key(matrix: Matrix, keys: Mapping[str, str]) -> str:
    """Return the key of a matrix: its tensor's key and its part of the tensor."""
    part = matrix.name.removeprefix(module_of(matrix.tensor))
    return module_of(keys[matrix.tensor]) + part


def matched(left: Side, right: Side) -> tuple[list[Match], list[Unpaired]]:
    """Return the matrices that both have, and those whose shapes differ.

    Both kinds are removed from both sides.
    """
    matches: list[Match] = []
    differing: list[Unpaired] = []
    for key in [key for key in right.matrices if key in left.matrices]:
        before, after = left.matrices.pop(key), right.matrices.pop(key)
        name = right.shown(after.name)
        match = match_of(name, before, after)
        if match is None:
            differing += of_other_shape(name, before.shape, after.shape, is_matrix=True)
        else:
            matches.append(match)
    for stacked, single in ((left, right), (right, left)):
        for piece, other in _split_alike(stacked, single):
            before, after = (piece, other) if stacked is left else (other, piece)
            match = match_of(right.shown(after.name), before, after)
            assert match is not None
            matches.append(match)
    return matches, differing


def _split_alike(stacked: Side, single: Side) -> Iterator[tuple[Matrix, Matrix]]:
    """Yield the experts of a stack that the other checkpoint stores separately; remove both."""
    keys = {canonical(key): key for key in single.matrices}
    for key, matrix in list(stacked.matrices.items()):
        pieces = split_expert(matrix, stacked.models)
        names = [keys[name] for piece in pieces if (name := canonical(piece.name)) in keys]
        found = [single.matrices[name] for name in names if name in single.matrices]
        if found and [other.shape for other in found] == [piece.shape for piece in pieces]:
            del stacked.matrices[key]
            for name in names:
                del single.matrices[name]
            yield from zip(pieces, found, strict=True)


def matched_others(left: Side, right: Side) -> tuple[dict[str, tuple[str, str]], list[Unpaired]]:
    """Return the tensors other than matrices that both have, and those whose shapes differ."""
    pairs: dict[str, tuple[str, str]] = {}
    differing: list[Unpaired] = []
    for key in [key for key in right.others if key in left.others]:
        before, after = left.others.pop(key), right.others.pop(key)
        shapes = left.weights.shape(before), right.weights.shape(after)
        name = right.shown(after)
        if shapes[0] == shapes[1]:
            pairs[name] = before, after
        else:
            differing += of_other_shape(name, *shapes, is_matrix=False)
    return pairs, differing
