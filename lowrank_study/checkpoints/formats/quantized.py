"""Read float8 weights with their scales, and refuse other quantised weights by name.

A float8 checkpoint keeps a scale beside each weight. The weight is `stored * scale`, where the
scale is one number, one per output row, or one per block (DeepSeek's 128 x 128):

    layers.0.mlp.down_proj.weight             float8_e4m3fn [7168, 2048]
    layers.0.mlp.down_proj.weight_scale_inv   float32       [56, 16]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.checkpoints.formats.tensors import FLOATS, Array, TensorInfo, is_readable
from lowrank_study.errors import InputError

_PACKED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".SCB": "bitsandbytes int8",
    ".absmax": "bitsandbytes 4-bit",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes 4-bit",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes 4-bit",
    ".weight_global_scale": "NVFP4",
    ".weight_scale_2": "NVFP4",
    ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ",
    ".Qidxs": "QuIP#",
    ".codebooks": "AQLM",
    ".weight._data": "Quanto",
    "_proj_blocks": "MXFP4",
    ".weight_zero_point": "integer",
}
"""Suffixes of tensor names that only packed formats use; the first match decides."""

PACKED = "integers, perhaps weights packed in an unknown way"

_PACKED_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
"""Dtypes that a vector of packed weights may have."""

_COUNTERS = ("_index", "_indices", "_idx", "_idxs", "_ids", "_mask")
"""Ends of names of tables and positions."""

_SCALE_ENDS = ("_scale_inv", "_scale")
_OTHER_ENDS = (".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".output_scale")
_METHODS_READ = ("fp8", "fbgemm_fp8", "compressed-tensors")
_SAVE_WIDER = "save the model in bfloat16 or float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a float8 weight is scaled."""

    name: str
    """The tensor with the scales, as named in the file."""
    rows: int
    """Rows of the weight that share one scale."""
    columns: int
    """Columns of the weight that share one scale."""


def refuse_packed(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str) -> None:
    """Refuse packed formats."""
    remedy = (
        "which can't be read exactly; give the checkpoint it was quantised from, or dequantise it "
        "in the library that wrote it and save it in bfloat16 or float32"
    )
    for end, scheme in _PACKED.items():
        found = next((name for name in tensors if name.endswith(end)), None)
        if found is not None:
            raise InputError(f"{where}: tensor {shown(found)} is {scheme} quantised, {remedy}")
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if tensor.dtype == "uint32" and {f"{module}.scales", f"{module}.biases"} <= tensors.keys():
            raise InputError(
                f"{where}: tensor {shown(name)} is MLX quantised, which can't be read exactly; "
                "give the checkpoint it was quantised from, or save one by "
                "`mlx_lm.convert --dequantize`"
            )
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    floats8 = any(tensor.dtype.startswith("float8") for tensor in tensors.values())
    if method not in _METHODS_READ and not floats8 and any(map(_is_packed, tensors.values())):
        raise InputError(f"{where}: config.json says it is quantised by {shown(method)}, {remedy}")


def _is_packed(tensor: TensorInfo) -> bool:
    return not is_readable(tensor.dtype) and len(tensor.shape) == 2 and "weight" in tensor.name


def find_scales(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> dict[str, Scale]:
    """Return the scale of every float8 tensor."""
    scales: dict[str, Scale] = {}
    for name, tensor in tensors.items():
        if not tensor.dtype.startswith("float8") or 0 in tensor.shape:
            continue
        candidates = [name + end for end in _SCALE_ENDS]
        if name.endswith(".weight"):
            candidates.append(name.removesuffix("weight") + "scale_weight")
        found = [candidate for candidate in candidates if candidate in tensors]
        if len(found) != 1:
            raise InputError(
                f"{where}: tensor {shown(name)} is {tensor.dtype} with {len(found)} scale tensors "
                f"(looked for {shown(', '.join(candidates), 300)}); without exactly one its values "
                f"are unknown: {_SAVE_WIDER}"
            )
        scales[name] = _scale(tensor, tensors[found[0]], config, where)
    return scales


def _scale(tensor: TensorInfo, scale: TensorInfo, config: Mapping[str, Any], where: str) -> Scale:
    shape = tensor.shape
    if scale.dtype in FLOATS and not scale.dtype.startswith("float8"):
        if prod(scale.shape) == 1:
            return Scale(name=scale.name, rows=max(shape[:1], default=1), columns=prod(shape[1:]))
        if scale.shape in ((shape[0],), (shape[0], 1)) and len(shape) == 2:
            return Scale(name=scale.name, rows=1, columns=shape[1])
        quantization = config.get("quantization_config")
        block = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
        if (
            isinstance(block, list)
            and len(block) == len(shape) == len(scale.shape) == 2
            and all(type(size) is int and size > 0 for size in block)
            and all(-(-n // b) == s for n, b, s in zip(shape, block, scale.shape, strict=True))
        ):
            return Scale(name=scale.name, rows=block[0], columns=block[1])
    raise InputError(
        f"{where}: tensor {shown(tensor.name)} of shape {list(shape)} has scales "
        f"{shown(scale.name)} of dtype {scale.dtype} and shape {list(scale.shape)}, which is "
        "neither one, one per row, nor blocks of the config's weight_block_size; " + _SAVE_WIDER
    )


def scale_factors(
    shape: tuple[int, ...], first_row: int, scale: Scale, read_scales: Callable[[str], Array]
) -> Array:
    """Return the scale of each stored number of some rows, from `first_row` on, in float64."""
    factors = read_scales(scale.name).astype(np.float64)
    if factors.size == 1:
        return np.broadcast_to(factors.reshape(()), shape)
    factors = factors.reshape(factors.shape[0], -1)
    rows = (first_row + np.arange(shape[0])) // scale.rows
    columns = np.arange(shape[1]) // scale.columns
    return factors[rows][:, columns]


def skip_reasons(
    tensors: Mapping[str, TensorInfo], scales: Mapping[str, Scale], where: str
) -> dict[str, str]:
    """Return why each tensor that isn't a weight is left out: counters, masks, scales."""
    used = {scale.name for scale in scales.values()}
    reasons: dict[str, str] = {}
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            reasons[name] = f"empty, shape {shown(list(tensor.shape))}"
        elif name in used or (scales and name.endswith(_OTHER_ENDS)):
            reasons[name] = "a scale of float8 values"
        elif not is_readable(tensor.dtype):
            if _is_packed(tensor):
                raise InputError(
                    f"{where}: tensor {shown(name)} holds weights as {tensor.dtype} without known "
                    f"scales; {_SAVE_WIDER}"
                )
            counter = f"{tensor.dtype}, a counter or mask, not weights"
            reasons[name] = counter if _is_counter(tensor) else PACKED
    return reasons


def _is_counter(tensor: TensorInfo) -> bool:
    """Whether integers hold no weights, judged by shape, dtype and name."""
    return (
        tensor.dtype == "bool"
        or tensor.shape[:1] in ((), (1,))
        or tensor.name.endswith(_COUNTERS)
        or (len(tensor.shape) == 1 and tensor.dtype not in _PACKED_DTYPES)
    )
