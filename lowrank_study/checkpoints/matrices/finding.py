"""Find every linear map of a checkpoint, each as one (out, in) matrix.

A stored tensor isn't always such a matrix. GPT-2 stores (in, out); attention often stores
query, key and value fused in one tensor; a mixture of experts stores all experts in one; a
convolution has more than two axes. `find_matrices` returns which rows of which tensor make up
each matrix, without reading any:

    matrices, skipped = find_matrices(weights)
    matrices["h.0.attn.c_attn.query"].read()        # (768, 768), of the stored (768, 2304)

Convolutions (out, in, *kernel) become (out, in * prod(kernel)). A fused tensor that can't be split
exactly is one matrix, and its `note` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from lowrank_study.checkpoints.matrices.experts import STACKS, gate_and_up, holds_experts, is_in_out
from lowrank_study.checkpoints.matrices.fused import (
    CONV1D_MODELS,
    Models,
    any_is,
    is_fused,
    models_within,
    split,
    unknown_layout,
)
from lowrank_study.checkpoints.matrices.matrix import Matrix
from lowrank_study.checkpoints.names import last_part, module_of
from lowrank_study.checkpoints.weights import Weights

_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")


def find_matrices(
    weights: Weights, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Matrix], dict[str, str]]:
    """Return all matrices by name, and the reason for each other tensor of two or more axes.

    `config` replaces the config.json beside the weights.
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


def _matrices_of(tensor: str, weights: Weights, models: Models) -> list[Matrix] | str:
    """Return the matrices that a stored tensor holds, or why it is left out."""
    shape = weights.shape(tensor)
    module = module_of(tensor)
    leaf = last_part(module)
    if leaf.endswith("bias"):
        return f"{len(shape)} axes, shape {list(shape)}: stacked biases rather than a matrix"
    if len(shape) == 3 and holds_experts(module):
        whole = _whole(tensor, weights, shape[1:], models, note="")
        return [replace(whole, name=f"{module}.{index}", expert=index) for index in range(shape[0])]
    if f"{tensor}.weight" in weights:
        return f"shape {list(shape)}, beside a module of the same name"
    if len(shape) > 2 and (shape[0] == 1 or module == tensor):
        return f"{len(shape)} axes, shape {list(shape)}: neither a matrix nor a convolution"
    whole = _whole(tensor, weights, shape, models, note=_note(module, shape, models))
    if not is_fused(leaf, models):
        return [whole]
    found = split(module, whole.shape[0], models)
    if found is None:
        return [replace(whole, note=unknown_layout(models))]
    groups, parts = found
    return [_piece(whole, f"{module}.{part}", groups, rows) for part, *rows in parts]


def _whole(
    tensor: str, weights: Weights, shape: tuple[int, ...], models: Models, *, note: str
) -> Matrix:
    """Return a stored tensor, or one expert of it (of this shape), as one matrix."""
    transposed = is_transposed(tensor, weights, models)
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
    shape = groups * (last - first), whole.shape[1]
    return replace(whole, name=name, shape=shape, groups=groups, first=first, last=last)


def split_expert(matrix: Matrix, models: Models) -> list[Matrix]:
    """Return one expert of a stack as the matrices that other files store separately.

    `experts.gate_up_proj.3` becomes `experts.3.gate_proj` and `experts.3.up_proj`.
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


def is_transposed(tensor: str, weights: Weights, models: Models) -> bool:
    """Whether the config of one of the models says that the tensor is stored (in, out).

    GPT-2 and related models use Conv1D; GPT-OSS, Llama 4 and others store experts this way.
    """
    module = module_of(tensor)
    shape = weights.shape(tensor)
    if len(shape) == 3:
        parent = module.rpartition(".")[0]
        return holds_experts(module) and is_in_out(module, _stacks(parent, weights), models)
    return len(shape) == 2 and last_part(module) in _CONV1D_NAMES and any_is(models, CONV1D_MODELS)


def _stacks(parent: str, weights: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all stacks of some experts, by the last part of their names."""
    names = {
        leaf: name
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
    if shape[1] == 1:  # a depthwise convolution and one input channel have the same shape
        return "a convolution in groups, or of one input channel, measured as one matrix"
    return ""
