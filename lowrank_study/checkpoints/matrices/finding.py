"""Every linear map of a checkpoint as one (out, in) matrix, in the model's own terms.

A stored tensor isn't always such a matrix. GPT-2 stores (in, out); attention often stores
query, key and value fused in one tensor; a mixture of experts stores all experts in one; a
convolution has more than two axes. `find_matrices` says which rows of which tensor make up
each matrix, without reading any:

    matrices, skipped = find_matrices(weights)
    matrices["h.0.attn.c_attn.query"].read()        # (768, 768), of the stored (768, 2304)

Convolutions (out, in, *kernel) become (out, in * prod(kernel)). What is fused but can't be
split exactly is one matrix, and its `note` says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats.tensors import Array
from lowrank_study.checkpoints.matrices.experts import STACKS, gate_and_up, holds_experts, is_in_out
from lowrank_study.checkpoints.matrices.fused import (
    CONV1D_MODELS,
    Models,
    is_fused,
    models_within,
    pieces,
    unknown_layout,
)
from lowrank_study.checkpoints.weights import Weights

_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """One (out, in) matrix and how to cut it out of a stored tensor."""

    name: str
    """Module path; a part of a fused tensor or an expert has its own last part."""
    tensor: str
    """Name of the stored tensor."""
    storage_dtype: str
    """Dtype of the stored tensor."""
    shape: tuple[int, int]
    """(out, in)."""
    weights: Weights
    """The checkpoint it is read from."""
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
        """Return this matrix out of its whole stored tensor, or out of a change of it."""
        return self._oriented(stored if self.expert is None else stored[self.expert])

    def put(self, stored: Array, values: Array) -> None:
        """Write this matrix into its whole stored tensor, in place, where `cut` takes it from.

        Args:
            stored: the tensor, contiguous.
            values: (out, in).
        """
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
        """Whether `read_part` can give a part of it without reading the rest."""
        return self.groups == 1 and self.weights.reads_parts(self.tensor)

    def read_part(self, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        """Return some rows and columns of the matrix, exactly, and read nothing else of it.

        Args:
            rows: first row and one past the last.
            columns: first column and one past the last.
        """
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
        """Yield the matrix in consecutive blocks of its longer axis, that axis first.

        Args:
            shape: (out, in) of what is read, from the top left; as a rule that of the matrix.
            entries: most entries of a block, but for a single row or column.

        Yields:
            (part of the longer axis, shorter axis); a square matrix's longer axis is its rows.
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


def find_matrices(
    weights: Weights, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Matrix], dict[str, str]]:
    """Return all matrices by name, and the tensors of two or more axes left out, with the reason.

    Vectors (fewer than two axes) are in neither.

    Args:
        weights: the opened model.
        config: another config.json to go by than the one beside the weights.
    """
    matrices: dict[str, Matrix] = {}
    skipped: dict[str, str] = {}
    models = models_within(weights.config if config is None else config)
    for tensor in weights.names():
        if len(weights.shape(tensor)) < 2:
            continue
        found = _matrices_of(tensor, weights, models)
        if isinstance(found, str):
            skipped[tensor] = found
        else:
            matrices.update((matrix.name, matrix) for matrix in found)
    return matrices, skipped


def module_of(tensor: str) -> str:
    """Return the module path of a weight: its name without `.weight`."""
    return tensor.removesuffix(".weight")


def _matrices_of(tensor: str, weights: Weights, models: Models) -> list[Matrix] | str:
    """Return the matrices one stored tensor holds, or why it is left out."""
    shape = weights.shape(tensor)
    module = module_of(tensor)
    leaf = module.rpartition(".")[2]
    if leaf.endswith("bias"):
        return f"{len(shape)} axes, shape {list(shape)}: stacked biases rather than a matrix"
    transposed = _is_transposed(tensor, weights, models)
    if len(shape) == 3 and holds_experts(module):
        whole = _whole(tensor, weights, shape[1:], transposed=transposed, note="")
        return [replace(whole, name=f"{module}.{index}", expert=index) for index in range(shape[0])]
    if f"{tensor}.weight" in weights:
        return f"shape {list(shape)}, beside a module of the same name"
    if len(shape) > 2 and (shape[0] == 1 or module == tensor):
        return f"{len(shape)} axes, shape {list(shape)}: neither a matrix nor a convolution"
    note = _note(module, shape, models)
    whole = _whole(tensor, weights, shape, transposed=transposed, note=note)
    if not is_fused(leaf, models):
        return [whole]
    found = pieces(leaf, module, whole.shape[0], models)
    if found is None:
        return [replace(whole, note=unknown_layout(models))]
    groups, parts = found
    return [_piece(whole, f"{module}.{part}", groups, rows) for part, *rows in parts]


def _whole(
    tensor: str, weights: Weights, shape: tuple[int, ...], *, transposed: bool, note: str
) -> Matrix:
    """Return a stored tensor, or one expert of it, as one matrix.

    Args:
        tensor: its name.
        weights: the checkpoint.
        shape: its shape, without the axis of experts.
        transposed: whether it is stored (in, out).
        note: as in `Matrix`.
    """
    stored = shape[0], prod(shape[1:])
    out, in_ = stored[::-1] if transposed else stored
    return Matrix(
        name=module_of(tensor),
        tensor=tensor,
        storage_dtype=weights.dtype(tensor),
        shape=(out, in_),
        weights=weights,
        expert=None,
        transposed=transposed,
        groups=1,
        first=0,
        last=out,
        note=note,
    )


def _piece(whole: Matrix, name: str, groups: int, rows: Sequence[int]) -> Matrix:
    first, last = rows
    out = groups * (last - first)
    return replace(
        whole, name=name, shape=(out, whole.shape[1]), groups=groups, first=first, last=last
    )


def split_expert(matrix: Matrix, models: Models) -> list[Matrix]:
    """Return one expert of a stack as the matrices that other files store separately.

    `experts.gate_up_proj.3` becomes `experts.3.gate_proj` and `experts.3.up_proj`.

    Args:
        matrix: one from `find_matrices`.
        models: from `fused.models_within`.
    """
    if matrix.expert is None:
        return []
    parent, _, leaf = module_of(matrix.tensor).rpartition(".")
    if leaf != "gate_up_proj":
        return [replace(matrix, name=f"{parent}.{matrix.expert}.{leaf}")]
    groups, parts = gate_and_up(matrix.shape[0], models)
    return [
        _piece(matrix, f"{parent}.{matrix.expert}.{part}", groups, rows)
        for part, rows in parts.items()
    ]


def is_transposed(tensor: str, weights: Weights, config: Mapping[str, Any] | None = None) -> bool:
    """Whether the config says that the tensor is stored (in, out).

    GPT-2 and related models use Conv1D; GPT-OSS, Llama 4 and others store experts this way.
    """
    return _is_transposed(
        tensor, weights, models_within(weights.config if config is None else config)
    )


def _is_transposed(tensor: str, weights: Weights, models: Models) -> bool:
    module = module_of(tensor)
    shape = weights.shape(tensor)
    parent, _, leaf = module.rpartition(".")
    if len(shape) == 3:
        return holds_experts(module) and is_in_out(module, _stacks(parent, weights), models)
    return (
        len(shape) == 2
        and leaf in _CONV1D_NAMES
        and any(model.get("model_type") in CONV1D_MODELS for model in models)
    )


def _stacks(parent: str, weights: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all stacks of some experts, by the last part of their names."""
    names = {
        module_of(name).removeprefix(f"{parent}."): name
        for leaf in STACKS
        for name in (f"{parent}.{leaf}", f"{parent}.{leaf}.weight")
        if name in weights
    }
    shapes = {leaf: weights.shape(name) for leaf, name in names.items()}
    return {leaf: shape for leaf, shape in shapes.items() if len(shape) == 3}


def _note(module: str, shape: tuple[int, ...], models: Models) -> str:
    """Return a note if a tensor is a grouped convolution or stacked experts, not one linear map."""
    if len(shape) == 2:
        stacked = models[0].get("model_type") == "dbrx" and ".experts." in module
        return "all experts stacked in one tensor, measured as one matrix" if stacked else ""
    groups = models[0].get("num_conv_pos_embedding_groups", 1) if "pos_conv" in module else 1
    if groups != 1:
        return "a grouped convolution, whose rows read different inputs, measured as one matrix"
    if shape[1] == 1:  # the shape is the same for a depthwise convolution and for one channel
        return "a convolution in groups, or of one input channel, measured as one matrix"
    return ""
