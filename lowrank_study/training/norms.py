"""LayerNorm and RMSNorm of a sum in C, where PyTorch takes several passes over memory.

    >>> use_native_norms(model)

Three kinds of layers are replaced where a sample shows that their own forward has the same formula:

1. RMSNorm: norm(x).
2. Post-norm, as in BERT: norm(dense(x) + residual).
3. Pre-norm, as in Llama: the sum of residual and attention, and its norm.

`native/norms.c` computes in fp32. Under autocast it also writes the result in bf16, which
`cast_once` hands to the maps that read it.
"""

import ctypes
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank_study import native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_NORM_ROWS = 32
"""Rows over which the C code sums the gradients of weight and bias."""


def library() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is no compiler or native code is switched off."""
    return native.library("norms.c")


@torch.no_grad()
def use_native_norms(model: nn.Module) -> None:
    """Let a model's norms use native code, where it gives their numbers."""
    for module in model.modules() if library() is not None else ():
        forward = _native_forward(module)
        if forward is not None:
            module.forward = types.MethodType(forward, module)


def _native_forward(module: nn.Module) -> Callable[..., Any] | None:
    if _is_rms_norm(module):
        return _rms_norm
    if _is_post_norm(module):
        return _post_norm
    return _pre_norm if _is_pre_norm(module) else None


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def _gives(module: nn.Module, stub: Any, *inputs: Tensor, exact: Tensor) -> bool:
    """Return whether a module's forward gives a result, with a stub in the place of the module."""
    try:
        found = inspect.unwrap(type(module).forward)(stub, *inputs)
    except Exception:
        return False
    return isinstance(found, Tensor) and torch.allclose(found, exact)


# ---- the three kinds of layers ----------------------------------------------------------------


def _is_rms_norm(module: nn.Module) -> bool:
    if not (type(module).__name__.endswith("RMSNorm") and _has(module, "variance_epsilon")):
        return False
    weight, epsilon = module.weight, module.variance_epsilon
    assert isinstance(weight, Tensor)
    assert isinstance(epsilon, float)
    if not weight.is_cpu:
        return False
    x = torch.linspace(-1.0, 2.0, weight.numel())
    exact = x * (x.square().mean() + epsilon).rsqrt() * weight
    return _gives(module, module, x, exact=exact)


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    normed = _normed(self, x, None)
    if normed is None:
        plain: Tensor = type(self).forward(self, x)
        return plain
    return normed[0]


def _is_post_norm(module: nn.Module) -> bool:
    if not (
        _has(module, "dense", "dropout", "LayerNorm") and type(module.LayerNorm) is nn.LayerNorm
    ):
        return False
    stub = types.SimpleNamespace(
        dense=lambda x: 2.0 * x, dropout=lambda x: x, LayerNorm=lambda x: 3.0 * x
    )
    x = torch.linspace(-1.0, 2.0, 8)
    return _gives(module, stub, x, x + 1.0, exact=3.0 * (2.0 * x + x + 1.0))


def _post_norm(self: Any, x: Tensor, residual: Tensor) -> Tensor:
    mapped = self.dense(x)
    drops = self.training and self.dropout.p > 0.0
    normed = None if drops else _normed(self.LayerNorm, mapped, residual)
    if normed is None:
        plain: Tensor = self.LayerNorm(self.dropout(mapped) + residual)
        return plain
    return normed[0]


def _is_pre_norm(module: nn.Module) -> bool:
    if not _has(module, "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"):
        return False
    stub = types.SimpleNamespace(
        input_layernorm=lambda x: 2.0 * x,
        self_attn=lambda hidden_states, **_: (3.0 * hidden_states, None),
        post_attention_layernorm=lambda x: 5.0 * x,
        mlp=lambda x: 7.0 * x,
    )
    x = torch.linspace(-1.0, 2.0, 8)
    is_rms = _is_rms_norm(module.post_attention_layernorm)  # type: ignore[arg-type]
    return is_rms and _gives(module, stub, x, exact=7.0 * x * 36.0)


def _pre_norm(self: Any, hidden_states: Tensor, *others: Any, **named: Any) -> Tensor:
    if others or self.gradient_checkpointing:
        plain: Tensor = type(self).forward(self, hidden_states, *others, **named)
        return plain
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
    norm = self.post_attention_layernorm
    found = _normed(norm, attended, hidden_states)
    if found is None:
        total = hidden_states + attended
        found = norm(total), total
    normed, total = found
    out: Tensor = total + self.mlp(normed)
    return out


# ---- native code ------------------------------------------------------------------------------


def _normed(norm: Any, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return the norm of x + residual, and this sum; None if there is no native code for it."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    fp32 = [tensor for tensor in (weight, bias, residual) if tensor is not None]
    is_covered = (
        x.is_cpu
        and x.dtype in (_DTYPES if residual is not None else (torch.float32,))
        and x.shape[-1:] == weight.shape
        and (residual is None or residual.shape == x.shape)
        and all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in fp32)
    )
    code = library() if is_covered else None
    if code is None or x.shape[-1] % code.lanes() != 0:
        return None
    is_layer_norm = isinstance(norm, nn.LayerNorm)
    rounds = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    out, rounded, total = _NormFunction.apply(  # type: ignore[no-untyped-call]
        x,
        residual,
        weight,
        bias,
        (is_layer_norm, float(norm.eps if is_layer_norm else norm.variance_epsilon)),
        rounds,
        code,
    )
    if rounded is not None:
        out.cast_at = (None if out.is_inference() else out._version), rounded  # for `cast_once`
    return out, (x if total is None else total)


class _Norm(ctypes.Structure):
    """`struct norm` of `native/norms.c`."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("x", "residual", "weight", "bias", "sum", "out")),
        *((n, ctypes.c_void_p) for n in ("rounded", "out_gradient", "added_gradient")),
        *((n, ctypes.c_void_p) for n in ("rounded_gradient", "sum_gradient", "x_gradient")),
        ("weight_gradient", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("type", "rows", "width", "centred")),
        ("epsilon", ctypes.c_double),
    )


class _NormFunction(torch.autograd.Function):
    """norm(x + residual), the same in bf16, and the sum if there is a residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        formula: tuple[bool, float],
        rounds: bool,
        code: ctypes.CDLL,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        total = x if residual is None else torch.empty_like(residual)
        out = torch.empty_like(total)
        rounded = torch.empty_like(out, dtype=torch.bfloat16) if rounds else None
        tensors = {"x": x, "residual": residual, "sum": total, "weight": weight, "bias": bias}
        _compute(code, formula, x.dtype, **tensors, out=out, rounded=rounded)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight)
        ctx.arguments = code, formula, x.dtype
        ctx.has = residual is not None, bias is not None
        return out, rounded, None if residual is None else total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_out: Tensor | None, of_rounded: Tensor | None, of_total: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        *_, dtype = ctx.arguments
        needs_weight = any(ctx.needs_input_grad[2:4])
        parts = -(-total.numel() // total.shape[-1] // _NORM_ROWS)
        of_weight = total.new_empty(parts, 2, total.shape[-1]) if needs_weight else None
        result = torch.empty_like(total)
        of_x = torch.empty_like(total, dtype=dtype) if dtype != torch.float32 else None
        _compute(
            *ctx.arguments,
            x=total,
            sum=total,
            weight=weight,
            out_gradient=of_out,
            rounded_gradient=of_rounded,
            added_gradient=of_total,
            sum_gradient=result,
            x_gradient=of_x,
            weight_gradient=of_weight,
        )
        sums = (None, None) if of_weight is None else of_weight.sum(0)
        has_residual, has_bias = ctx.has
        return (
            result if of_x is None else of_x,
            result if has_residual else None,
            sums[0],
            sums[1] if has_bias else None,
            *[None] * 3,
        )


def _compute(
    code: ctypes.CDLL, formula: tuple[bool, float], dtype: torch.dtype, **named: Tensor | None
) -> None:
    total = named["sum"]
    assert total is not None
    tensors = {name: x.contiguous() for name, x in named.items() if x is not None}
    work = _Norm(
        **{name: x.data_ptr() for name, x in tensors.items()},
        type=_DTYPES[dtype],
        rows=total.numel() // total.shape[-1],
        width=total.shape[-1],
        centred=formula[0],
        epsilon=formula[1],
    )
    code.norm(ctypes.byref(work), torch.get_num_threads())
