"""Eigenvalues of a Gram matrix X^T X, which is summed over blocks of rows of X.

    gram = GramMatrix(side=X.shape[1])
    for block in blocks:
        gram.add(block)
    gram.singular_values()

From `NATIVE_FROM` columns, `native/tridiagonal.c` does this if it can be compiled. It stores half
of the matrix as tiles and reduces it to a band and then to tridiagonal form by reflections, with
nearly all operations in products of small matrices. LAPACK reads the whole matrix once per column
instead, so at 4096 columns it waits for memory. Otherwise NumPy's BLAS forms the matrix, and NumPy
(PyTorch for large ones) computes the eigenvalues.

From `GPU_FROM` columns, PyTorch does both on a GPU instead, if there is one.

All are backward stable: the error is a few 1e-16 of the largest eigenvalue, times a slowly
growing function of the size (4e-15 measured at 1024 columns on processors).
"""

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowrank_study import native

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]

NATIVE_FROM = 1024
"""Columns from which the native code is faster."""
GPU_FROM = 1024
"""Columns from which a GPU is used if there is one."""
LARGE_GRAM = 2048
"""Columns from which PyTorch's eigenvalues are faster than NumPy's."""
GRAM_ZERO = 5e-8
"""Singular values below this are returned as zero, in units of sigma_1."""
CACHE_LINE = 64


class GramMatrix:
    """X^T X of a matrix whose rows arrive in blocks."""

    def __init__(self, side: int, device: "torch.device | None" = None) -> None:
        """Start without rows.

        Args:
            side: Number of columns of X.
            device: Where to compute; None is a GPU if there is one and X is large.
        """
        self._side = side
        self._sum: _OnGpu | _Tiles | _Dense
        device = device or _gpu_for(side)
        if device is not None and device.type != "cpu":
            self._sum = _OnGpu(side, device)
            return
        code = native.library("tridiagonal.c") if side >= NATIVE_FROM else None
        self._sum = _Dense(side) if code is None else _Tiles(side, code)

    def add(self, block_RS: Array) -> None:
        """Add finite rows of X.

        The largest magnitude of all rows should be between 1e-60 and 1e60, so that squares are
        safe. Entries below 1e-140 count as zero.
        """
        assert block_RS.shape[1] == self._side
        assert block_RS.dtype == np.float64
        self._sum.add(block_RS)

    def eigenvalues(self) -> Array:
        """Return all eigenvalues in ascending order, and use up the matrix.

        Zero eigenvalues may come out slightly negative.
        """
        eigenvalues = self._sum.eigenvalues()
        assert np.isfinite(eigenvalues).all(), "rows with NaN, Inf or too large entries"
        return eigenvalues

    def singular_values(self) -> Array:
        """Return all singular values of X, descending, and use up the matrix.

        Values within the rounding of X^T X are set to zero: thousands of roots of rounding errors
        would add up in an effective rank.
        """
        values: Array = np.sqrt(np.maximum(self.eigenvalues(), 0.0))[::-1].copy()
        values[values < GRAM_ZERO * values[0]] = 0.0
        return values


def _gpu_for(side: int) -> "torch.device | None":
    if side < GPU_FROM:
        return None
    import torch  # takes seconds, and smaller matrices need none of it

    return torch.device("cuda") if torch.cuda.is_available() else None


class _OnGpu:
    """The Gram matrix in a GPU's memory; it moves to the processor's if that is too small."""

    def __init__(self, side: int, device: "torch.device") -> None:
        import torch

        self._gram_SS = torch.zeros(side, side, dtype=torch.float64, device=device)

    def add(self, block_RS: Array) -> None:
        import torch

        block = torch.from_numpy(np.ascontiguousarray(block_RS)).to(self._gram_SS.device)
        self._gram_SS.addmm_(block.T, block)

    def eigenvalues(self) -> Array:
        import torch

        try:
            values = torch.linalg.eigvalsh(self._gram_SS)
        except torch.OutOfMemoryError:
            values = torch.linalg.eigvalsh(self._gram_SS.cpu())
        return np.asarray(values.cpu())


class _Dense:
    """The Gram matrix as an array."""

    def __init__(self, side: int) -> None:
        self._gram_SS: Array | None = None
        self._side = side

    def add(self, block_RS: Array) -> None:
        product_SS = block_RS.T @ block_RS
        if self._gram_SS is None:
            self._gram_SS = product_SS
        else:
            self._gram_SS += product_SS

    def eigenvalues(self) -> Array:
        if self._gram_SS is None:
            return np.zeros(self._side)
        if self._side >= LARGE_GRAM:
            import torch

            return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(self._gram_SS)))
        return np.asarray(np.linalg.eigvalsh(self._gram_SS), dtype=np.float64)


class _Tiles:
    """The Gram matrix as tiles on and below its diagonal, for `native/tridiagonal.c`."""

    def __init__(self, side: int, code: ctypes.CDLL) -> None:
        self._code, self._side = code, side
        code.tiles_length.restype = ctypes.c_int64
        length = code.tiles_length(ctypes.c_int64(side))
        # Rows of tiles fill whole cache lines only if the first row starts a line.
        space = np.zeros(length + CACHE_LINE // 8)
        start = -space.ctypes.data % CACHE_LINE // 8
        self._tiles = space[start : start + length]

    def add(self, block_RS: Array) -> None:
        by_row, by_column = (ctypes.c_int64(stride // 8) for stride in block_RS.strides)
        rows, side = (ctypes.c_int64(size) for size in block_RS.shape)
        self._call("gram", _pointer(block_RS), by_row, by_column, rows, side, _pointer(self._tiles))

    def eigenvalues(self) -> Array:
        diagonal, beside = np.empty(self._side), np.empty(self._side - 1)
        side = ctypes.c_int64(self._side)
        tiles = _pointer(self._tiles)
        self._call("tridiagonal", tiles, side, _pointer(diagonal), _pointer(beside))
        values = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside, lapack_driver="sterf")
        return np.asarray(values, dtype=np.float64)

    def _call(self, name: str, *arguments: Any) -> None:
        import torch

        threads = ctypes.c_int(torch.get_num_threads())
        if getattr(self._code, name)(*arguments, threads) != 0:
            raise MemoryError(f"no memory for the eigenvalues of {self._side} columns")


def _pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
