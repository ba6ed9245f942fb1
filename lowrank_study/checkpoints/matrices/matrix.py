"""One (out, in) matrix of a checkpoint, and where it lies in a stored tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from lowrank_study.checkpoints.formats import Array
from lowrank_study.checkpoints.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """One (out, in) matrix and how to read it from a stored tensor."""

    name: str
    """Module path; a part of a fused tensor or an expert has its own last part."""
    tensor: str
    storage_dtype: str
    shape: tuple[int, int]
    """(out, in)."""
    weights: Weights
    expert: int | None
    """Index on the first axis of the stored tensor, for a mixture of experts."""
    transposed: bool
    """Whether the tensor is stored as (in, out)."""
    groups: int
    """Number of equal groups of rows that each hold a piece (attention heads, or 1)."""
    first: int
    """First row of the piece in each group."""
    last: int
    """One past the last row of the piece in each group."""
    note: str
    """Remark if it is not one linear map of the model; usually empty."""

    def read(self) -> Array:
        """Return the matrix as float32 or float64, exactly."""
        if self.expert is None:
            return self._oriented(self.weights.read(self.tensor))
        rows = self.weights.read_rows(self.tensor, self.expert, self.expert + 1)
        return self._oriented(rows[0])

    def read_scales(self) -> Array | None:
        """Return the scale of each entry, or None if the entries are stored unscaled."""
        if not self.weights.is_scaled(self.tensor):
            return None
        return self.cut(self.weights.read_scales(self.tensor))

    def cut(self, stored: Array) -> Array:
        """Return this matrix from an array of the stored tensor's shape."""
        return self._oriented(stored if self.expert is None else stored[self.expert])

    def put(self, stored: Array, values: Array) -> None:
        """Write (out, in) values to where `cut` reads them, in a contiguous array."""
        whole = stored if self.expert is None else stored[self.expert]
        matrix = whole.reshape(whole.shape[0], -1)
        if self.transposed:
            matrix = matrix.T
        grouped = np.arange(matrix.shape[0]).reshape(self.groups, -1)
        matrix[grouped[:, self.first : self.last].ravel()] = values

    def _oriented(self, values: Array) -> Array:
        matrix = values.reshape(values.shape[0], -1)
        if self.transposed:
            matrix = matrix.T
        if self.groups * (self.last - self.first) != matrix.shape[0]:
            grouped = matrix.reshape(self.groups, -1, matrix.shape[1])
            matrix = grouped[:, self.first : self.last].reshape(-1, matrix.shape[1])
        return np.ascontiguousarray(matrix)

    @property
    def reads_parts(self) -> bool:
        """Whether `read_part` can read a part of it without the rest."""
        return self.groups == 1 and self.weights.reads_parts(self.tensor)

    def read_part(self, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        """Return some rows and columns (first, one past the last) exactly, and read no others."""
        shape = self.weights.shape(self.tensor)
        if self.expert is not None:
            shape = shape[1:]
        above = shape[0] * (self.expert or 0)
        rows = rows[0] + self.first, rows[1] + self.first
        down, across = (columns, rows) if self.transposed else (rows, columns)
        values = self.weights.read_part(
            self.tensor,
            width=prod(shape[1:]),
            rows=(above + down[0], above + down[1]),
            columns=across,
        )
        return values.T if self.transposed else values

    def read_blocks(self, shape: tuple[int, int], entries: int) -> Iterator[Array]:
        """Yield consecutive blocks along the longer axis (the rows, if square), that axis first.

        `shape` is the part to read from the top left. A block of more than one row or column has
        at most `entries` entries.
        """
        tall = shape[0] >= shape[1]
        whole = None if self.reads_parts else self.read()[: shape[0], : shape[1]]
        step = max(1, entries // min(shape))
        for first in range(0, max(shape), step):
            part = first, min(first + step, max(shape))
            rows, columns = (part, (0, shape[1])) if tall else ((0, shape[0]), part)
            if whole is None:
                block = self.read_part(rows, columns)
            else:
                block = whole[rows[0] : rows[1], columns[0] : columns[1]]
            yield block if tall else block.T
