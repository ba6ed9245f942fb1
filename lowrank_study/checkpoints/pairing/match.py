"""One matrix that two checkpoints share, read as a whole or in blocks.

    W0_OI, W_OI = match.read()

Axis suffixes: O out features, I in features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lowrank_study.checkpoints.formats import Array, coarser
from lowrank_study.checkpoints.matrices import Matrix
from lowrank_study.checkpoints.names import is_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """One matrix that both checkpoints have."""

    name: str
    """Module path, as in the tuned checkpoint."""
    storage_dtype: str
    """The coarser of the two storage dtypes."""
    shape: tuple[int, int]
    """(out, in) of the compared part: for a resized vocabulary, the rows both have."""
    before: Matrix
    after: Matrix

    def read(self) -> tuple[Array, Array]:
        """Return (W0_OI, W_OI) exactly; for a resized vocabulary, the rows both have."""
        rows = self.shape[0]
        return self.before.read()[:rows], self.after.read()[:rows]

    def read_blocks(self, entries: int) -> Iterator[tuple[slice, Array, Array]]:
        """Yield (range, W0, W) in blocks of `entries` along the longer axis, which comes first.

        The numbers equal those of `read`, but only one block is in memory at a time. Formats that
        can't be read in parts (GGUF, PyTorch's own files, interleaved heads) are held as a whole.
        """
        first = 0
        blocks = (each.read_blocks(self.shape, entries) for each in (self.before, self.after))
        for W0, W in zip(*blocks, strict=True):
            yield slice(first, first + W0.shape[0]), W0, W
            first += W0.shape[0]

    @property
    def is_single(self) -> bool:
        """Whether both are read as float32, so a sum of squares in float64 can't overflow."""
        return not any(
            matrix.storage_dtype == "float64" or matrix.weights.is_scaled(matrix.tensor)
            for matrix in (self.before, self.after)
        )


def match_of(name: str, before: Matrix, after: Matrix) -> Match | None:
    """Return the match of two matrices, or None if their shapes differ.

    The rows of a vocabulary, recognised by its module path, may differ.
    """
    rows = min(before.shape[0], after.shape[0])
    resized = before.shape[0] != after.shape[0]
    if before.shape[1] != after.shape[1] or (resized and not is_vocabulary(name)):
        return None
    return Match(
        name=name,
        storage_dtype=coarser(before.storage_dtype, after.storage_dtype),
        shape=(rows, before.shape[1]),
        before=before,
        after=after,
    )
