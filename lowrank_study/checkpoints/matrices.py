"""Every linear map of a checkpoint as one (out, in) matrix, in the model's own terms.

A stored tensor isn't always such a matrix. GPT-2 stores (in, out); attention often stores
query, key and value fused in one tensor; a mixture of experts stores all experts in one; a
convolution has more than two axes. `find_matrices` says which rows of which tensor make up
each matrix, without reading any:

    matrices, skipped = find_matrices(weights)
    matrices["h.0.attn.c_attn.query"].read()        # (768, 768), of the stored (768, 2304)

Convolutions (out, in, *kernel) become (out, in * prod(kernel)). What is fused but can't be
split exactly is skipped with the reason.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lowrank_study.checkpoints.paths import shown
from lowrank_study.checkpoints.tensors import Array
from lowrank_study.checkpoints.weights import Weights

_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
_EXPERTS_IN_OUT = ("gpt_oss", "llama4", "llama4_text")
_FUSED_NAMES = (
    "c_attn",
    "query_key_value",
    "qkv_proj",
    "qkv",
    "Wqkv",
    "wqkv",
    "W_pack",
    "in_proj_weight",
    "attn_qkv",
)
"""Last parts of names under which query, key and value are stored together."""

_QKV = ("query", "key", "value")


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

    def read(self) -> Array:
        """Return the matrix as float32 or float64, exactly."""
        if self.expert is None:
            return self._oriented(self.weights.read(self.tensor))
        rows = self.weights.read_rows(self.tensor, self.expert, self.expert + 1)
        return self._oriented(rows[0])

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
    for tensor in weights.names():
        if len(weights.shape(tensor)) < 2:
            continue
        found = _matrices_of(tensor, weights, weights.config if config is None else config)
        if isinstance(found, str):
            skipped[tensor] = found
        else:
            matrices.update((matrix.name, matrix) for matrix in found)
    return matrices, skipped


def module_of(tensor: str) -> str:
    """Return the module path of a weight: its name without `.weight`."""
    return tensor.removesuffix(".weight")


def _matrices_of(tensor: str, weights: Weights, config: Mapping[str, Any]) -> list[Matrix] | str:
    """Return the matrices one stored tensor holds, or why it is left out."""
    shape = weights.shape(tensor)
    module = module_of(tensor)
    leaf = module.rpartition(".")[2]
    model_type = config.get("model_type")
    transposed = is_transposed(tensor, weights, config)

    def matrix(
        name: str, out: int, in_: int, *, expert: int | None, groups: int, first: int, last: int
    ) -> Matrix:
        return Matrix(
            name=name,
            tensor=tensor,
            storage_dtype=weights.dtype(tensor),
            shape=(out, in_),
            weights=weights,
            expert=expert,
            transposed=transposed,
            groups=groups,
            first=first,
            last=last,
        )

    if leaf.endswith("bias"):
        return f"{len(shape)} axes, shape {list(shape)}: stacked biases rather than a matrix"
    if len(shape) == 3 and _holds_experts(module):
        out, in_ = shape[:0:-1] if transposed else shape[1:]
        return [
            matrix(f"{module}.{index}", out, in_, expert=index, groups=1, first=0, last=out)
            for index in range(shape[0])
        ]
    if len(shape) > 2 and (shape[0] == 1 or module == tensor):
        return f"{len(shape)} axes, shape {list(shape)}: neither a matrix nor a convolution"
    out, in_ = shape[::-1] if transposed else (shape[0], prod(shape[1:]))
    if leaf in _FUSED_NAMES or (leaf == "gate_up_proj" and model_type == "phi3"):
        pieces = _pieces(leaf, module, out, config)
        if pieces is None:
            return (
                f"query, key and value fused in one tensor; how to split it exactly isn't known "
                f"for model_type {shown(model_type)} (config.json beside the weights says it)"
            )
        groups, parts = pieces
        return [
            matrix(
                f"{module}.{part}",
                groups * (last - first),
                in_,
                expert=None,
                groups=groups,
                first=first,
                last=last,
            )
            for part, first, last in parts
        ]
    return [matrix(module, out, in_, expert=None, groups=1, first=0, last=out)]


def is_transposed(tensor: str, weights: Weights, config: Mapping[str, Any] | None = None) -> bool:
    """Whether the tensor is stored (in, out), as the config's model_type says.

    GPT-2 and its kin use Conv1D, GPT-OSS and Llama 4 store their experts so.
    """
    module = module_of(tensor)
    model_type = (weights.config if config is None else config).get("model_type")
    axes = len(weights.shape(tensor))
    if axes == 3:
        return _holds_experts(module) and model_type in _EXPERTS_IN_OUT
    leaf = module.rpartition(".")[2]
    return axes == 2 and model_type in _CONV1D_MODELS and leaf in _CONV1D_NAMES


def _holds_experts(module: str) -> bool:
    """Whether a tensor of three axes is a stack of experts rather than a convolution."""
    return any(word in module for word in ("experts", "_exps", "moe"))


def _pieces(
    leaf: str, module: str, out: int, config: Mapping[str, Any]
) -> tuple[int, list[tuple[str, int, int]]] | None:
    """Return (groups, [(part, first row, last row in each group)]), or None if not known.

    The layouts are those of the models' own code in transformers.
    """

    def size(key: str) -> int:
        value = config.get(key)
        return value if type(value) is int and value > 0 else 0

    model_type = config.get("model_type")
    heads = size("num_attention_heads") or size("n_head")
    if leaf == "gate_up_proj":
        names: tuple[str, ...] = ("gate", "up")
        groups, sizes = 1, [out // 2, out // 2]
    elif leaf == "in_proj_weight" or (leaf == "c_attn" and model_type in _CONV1D_MODELS):
        names = _QKV[1:] if "crossattention" in module.split(".") else _QKV
        groups, sizes = 1, [out // len(names)] * len(names)
    elif leaf == "query_key_value" and model_type in ("gpt_neox", "bloom") and heads:
        names, groups = _QKV, heads
        sizes = [out // heads // 3] * 3
    elif leaf == "query_key_value" and model_type == "falcon" and heads:
        names = _QKV
        head = size("hidden_size") // heads
        if config.get("new_decoder_architecture"):
            groups = size("num_kv_heads")
            if not groups:
                return None
            sizes = [heads // groups * head, head, head]
        elif config.get("multi_query", True):
            groups, sizes = 1, [heads * head, head, head]
        else:
            groups, sizes = heads, [head] * 3
    elif leaf == "qkv_proj" and model_type == "phi3" and heads:
        names, groups = _QKV, 1
        head = size("head_dim") or size("hidden_size") // heads
        keys = (size("num_key_value_heads") or heads) * head
        sizes = [heads * head, keys, keys]
    else:
        return None
    if groups * sum(sizes) != out or 0 in sizes:
        return None
    ends = np.cumsum(sizes).tolist()
    return groups, [
        (name, end - width, end) for name, width, end in zip(names, sizes, ends, strict=True)
    ]
