"""GELU, SwiGLU and rotary positions in C, where PyTorch takes several passes over memory.

    >>> use_native_functions(model)

A function is replaced where a sample shows that the model's own gives the same numbers.
`native/elementwise.c` computes in fp32 and rounds once, to the dtype of its input.

Letters: R runs, H heads, T tokens, K features of a head.
"""

import ctypes
import functools
import inspect
import types
from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowrank_study import native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_ROTATE = "apply_rotary_pos_emb"
"""Function of a model's module that rotates queries and keys in transformers."""
_ARGUMENTS = {
    "gelu": [c_void_p] * 3 + [c_int64, c_int, c_int],
    "swiglu": [c_void_p] * 5 + [c_int64, c_int, c_int],
    "rotate": [c_void_p] * 4 + [c_int64] * 3 + [c_int] * 3,
}


def library() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is no compiler or native code is switched off."""
    code = native.library("elementwise.c")
    for name, kinds in _ARGUMENTS.items() if code is not None else ():
        getattr(code, name).argtypes = kinds
    return code


def use_native_functions(model: nn.Module) -> None:
    """Let GELU, SwiGLU and rotary positions use native code, where it gives a model's numbers."""
    for module in model.modules() if library() is not None else ():
        forward = _native_forward(module)
        if forward is not None:
            module.forward = types.MethodType(forward, module)


def _native_forward(module: nn.Module) -> Callable[..., Any] | None:
    if _is_gelu(module):
        return _gelu
    return _swiglu if _is_swiglu(module) else _with_native_rotation(module)


def _covered(*tensors: Tensor) -> ctypes.CDLL | None:
    """Return the compiled code if it supports the tensors."""
    first = tensors[0]
    alike = all(x.is_cpu and x.dtype == first.dtype and x.shape == first.shape for x in tensors)
    return library() if alike and first.dtype in _DTYPES else None


def _sample(*shape: int) -> Tensor:
    return torch.linspace(-20.0, 15.0, torch.Size(shape).numel()).view(shape)


def _tried(compute: Callable[[], Any]) -> Any:
    """Return a result, or None if a model's own code doesn't take the sample."""
    try:
        with torch.no_grad():
            return compute()
    except Exception:
        return None


# ---- GELU -------------------------------------------------------------------------------------


def _is_gelu(module: nn.Module) -> bool:
    if "GELU" not in type(module).__name__:
        return False
    sample = _sample(64)
    found = _tried(lambda: type(module).forward(module, sample))
    return found is not None and torch.allclose(found, functional.gelu(sample), atol=1e-6)


def _gelu(self: Any, x: Tensor) -> Tensor:
    code = _covered(x)
    if code is None:
        plain: Tensor = type(self).forward(self, x)
        return plain
    out: Tensor = _Gelu.apply(x, code)  # type: ignore[no-untyped-call]
    return out


class _Gelu(torch.autograd.Function):
    """x Φ(x); the backward pass computes it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, code: ctypes.CDLL) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.code = code
        out = torch.empty_like(x)
        _call(code.gelu, x, None, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor, None]:
        [x] = ctx.saved_tensors
        of_x = torch.empty_like(x)
        _call(ctx.code.gelu, x, out_gradient.contiguous(), of_x)
        return of_x, None


def _call(function: Any, *tensors: Tensor | None) -> None:
    """Call a function of entries with contiguous tensors; None is a null pointer."""
    pointers = [None if x is None else x.data_ptr() for x in tensors]
    first = tensors[0]
    assert first is not None
    function(*pointers, first.numel(), _DTYPES[first.dtype], torch.get_num_threads())


# ---- SwiGLU -----------------------------------------------------------------------------------


def _is_swiglu(module: nn.Module) -> bool:
    """Return whether forward gives down_proj(silu(gate_proj(x)) · up_proj(x)), by stubs of them."""
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    stub = types.SimpleNamespace(
        gate_proj=lambda x: x,
        up_proj=lambda x: x + 1.0,
        down_proj=lambda x: 3.0 * x,
        act_fn=module.act_fn,
    )
    sample = _sample(64)
    found = _tried(lambda: type(module).forward(stub, sample))
    exact = 3.0 * functional.silu(sample) * (sample + 1.0)
    return found is not None and torch.allclose(found, exact, atol=1e-6)


def _swiglu(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    code = _covered(gate, up)
    apply: Any = _SwiGlu.apply
    out: Tensor = self.down_proj(self.act_fn(gate) * up if code is None else apply(gate, up, code))
    return out


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up; the backward pass computes silu again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, code: ctypes.CDLL) -> Tensor:
        inputs = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(*inputs)
        ctx.code = code
        out = torch.empty_like(inputs[0])
        _call(code.swiglu, *inputs, None, out, None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        _call(ctx.code.swiglu, gate, up, out_gradient.contiguous(), of_gate, of_up)
        return of_gate, of_up, None


# ---- rotary positions -------------------------------------------------------------------------


def _with_native_rotation(module: nn.Module) -> Callable[..., Any] | None:
    """Return a module's forward with native rotary positions, or None if it has others or none."""
    forward: Any = inspect.unwrap(type(module).forward)
    rotate = forward.__globals__.get(_ROTATE)
    if _ROTATE not in forward.__code__.co_names or not _is_rotation(rotate):
        return None

    native = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, _ROTATE: functools.partial(_rotate, rotate)},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    native.__kwdefaults__ = forward.__kwdefaults__
    return native


def _is_rotation(rotate: Callable[..., Any] | None) -> bool:
    """Return whether a model's function rotates the halves of a head's features, as in Llama."""
    inputs = [_sample(2, heads, 3, 8) for heads in (2, 1)] + [_sample(2, 3, 8), -_sample(2, 3, 8)]
    found = _tried(lambda: rotate(*inputs)) if rotate is not None else None
    code = library()
    if found is None or code is None:
        return False
    exact = _Rotation.apply(*inputs, code)  # type: ignore[no-untyped-call]
    return all(
        x.shape == of.shape and torch.allclose(x, of, atol=1e-6)
        for x, of in zip(found, exact, strict=True)
    )


def _rotate(
    plain: Callable[..., Any],
    query_RHTK: Tensor,
    key_RHTK: Tensor,
    cosine_RTK: Tensor,
    sine_RTK: Tensor,
    *others: Any,
    **named: Any,
) -> Any:
    """Return rotated queries and keys, of their dtype, or what the model's own function returns."""
    runs, _, tokens, features = query_RHTK.shape
    rows = torch.Size([runs, tokens, features])
    same = key_RHTK[:, :1].shape == query_RHTK[:, :1].shape and key_RHTK.dtype == query_RHTK.dtype
    known = all(x.shape == rows and x.dtype == torch.float32 for x in (cosine_RTK, sine_RTK))
    code = _covered(query_RHTK) if same and known and not others and not named else None
    if code is None:
        return plain(query_RHTK, key_RHTK, cosine_RTK, sine_RTK, *others, **named)
    return _Rotation.apply(query_RHTK, key_RHTK, cosine_RTK, sine_RTK, code)  # type: ignore[no-untyped-call]


class _Rotation(torch.autograd.Function):
    """x · cosine + (-x2, x1) · sine for the halves x1 and x2 of each row of queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor, code: ctypes.CDLL
    ) -> tuple[Tensor, Tensor]:
        ctx.tables, ctx.code = (cosine.contiguous(), sine.contiguous()), code
        return _rotated(query, ctx, backward=False), _rotated(key, ctx, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
        rotated = _rotated(of_query, ctx, backward=True), _rotated(of_key, ctx, backward=True)
        return *rotated, None, None, None


def _rotated(x_RHTK: Tensor, ctx: Any, *, backward: bool) -> Tensor:
    x_RTHK = x_RHTK.transpose(1, 2).contiguous()
    out_RTHK = torch.empty_like(x_RTHK)
    runs, tokens, heads, features = x_RTHK.shape
    ctx.code.rotate(
        *(x.data_ptr() for x in (x_RTHK, *ctx.tables, out_RTHK)),
        runs * tokens,
        heads,
        features // 2,
        _DTYPES[x_RTHK.dtype],
        int(backward),
        torch.get_num_threads(),
    )
    return out_RTHK.transpose(1, 2)
