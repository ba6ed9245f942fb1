"""Products with the weights of linear maps, by the code that is fastest on this processor.

In order:

1. `native/products.c` on processors with AVX512 or AVX512-BF16.
2. oneDNN. PyTorch uses it in bf16, but writes the bias in a pass of its own.
3. PyTorch, on processors without such instructions, and in fp32 on Intel's, where MKL is fast. On
   others' processors MKL uses no AVX512, and takes more than twice the time.

    >>> y_TO = linear(x_TI, weight_OI, bias_O)

Letters: O out_features, I in_features, T tokens.
"""

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowrank_study import native
from lowrank_study.machine import processor

_WIDTH = 32
"""The C code needs sizes that are multiples of this."""
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The types of `native/products.c`."""


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x Wᵀ + b for x of shape (..., I), as `torch.nn.functional.linear` does.

    The weight may be fp32 if x is bf16. It is rounded, and its gradient is fp32.
    """
    if not (x.is_cpu and x.dtype in _faster_dtypes()):
        return functional.linear(x, weight_OI, bias_O)
    bias = None if bias_O is None else bias_O.to(x.dtype)
    y: Tensor = _Linear.apply(x, weight_OI, bias)  # type: ignore[no-untyped-call]
    return y


def uses_onednn(*dtypes: torch.dtype) -> bool:
    """Return whether `linear` uses oneDNN on this processor for any of some dtypes.

    oneDNN generates code for every shape and keeps it with its buffers: the first product of a
    shape takes 0.5 to 1 ms longer, and leaves a few megabytes.
    """
    return any(dtype in _faster_dtypes() and _code(dtype) is None for dtype in dtypes)


def uses_c(dtype: torch.dtype) -> bool:
    """Return whether `linear` uses the C code in a dtype, where the sizes of a map allow it."""
    return _code(dtype) is not None


def _faster_dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes in which `torch.nn.functional.linear` is not the fastest."""
    return _faster_here() if native.wanted else frozenset()


@functools.cache
def _faster_here() -> frozenset[torch.dtype]:
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return frozenset()
    name, sets = processor()
    faster = {torch.bfloat16} if "avx512_bf16" in sets or "amx_bf16" in sets else set()
    if "avx512f" in sets and "Intel" not in name and torch._C.has_mkl:
        faster.add(torch.float32)
    return frozenset(faster)


def _code(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the C code for products in a dtype, if there is any; AMX is left to oneDNN."""
    return _code_here(dtype) if dtype in _faster_dtypes() else None


@functools.cache
def _code_here(dtype: torch.dtype) -> ctypes.CDLL | None:
    code = native.library("products.c")
    has_amx = dtype == torch.bfloat16 and "amx_bf16" in processor()[1]
    return code if code is not None and not has_amx and code.multiplies(_TYPES[dtype]) else None


class _Product(ctypes.Structure):
    """`struct product` of `native/products.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "bias", "y")),
        *((name, ctypes.c_int64) for name in ("a_type", "b_type", "y_type")),
        *((name, ctypes.c_int64) for name in ("a_is_transposed", "b_is_transposed", "adds")),
        *((name, ctypes.c_int64) for name in ("runs", "rows", "columns", "depth")),
    )


def multiply(
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
    onto: Tensor | None = None,
) -> Tensor:
    """Return a b + bias of two matrices, or of two of each run; or add a b to `onto`, in place.

    Args:
        a: Matrix (rows, depth) or (R, rows, depth).
        b: Matrix (depth, columns) or (R, depth, columns), rounded to the dtype of `a`.
        bias: (columns,), of the dtype of `a`.
        dtype: Dtype of the result; None is that of `a`.
        onto: Result to add the product to.
    """
    *runs, rows, depth = a.shape
    columns = b.shape[-1]
    turned_a, turned_b = not a.is_contiguous(), not b.is_contiguous()
    code = _code(a.dtype) if a.is_cpu else None
    is_covered = (
        code is not None
        and _is_dense(a)
        and _is_dense(b)
        and b.dtype in (a.dtype, torch.float32)
        and (a.dtype == torch.float32 or turned_a or depth % 2 == 0)
        and (depth % _WIDTH == 0 if turned_b else columns % _WIDTH == 0)
        and (onto is None or onto.is_contiguous())
        and (bias is None or (columns % _WIDTH == 0 and bias.is_contiguous()))
    )
    if not is_covered:
        return _plain_product(a, b.to(a.dtype), bias, dtype or a.dtype, onto)
    assert code is not None
    y = a.new_empty(*runs, rows, columns, dtype=dtype) if onto is None else onto
    work = _Product(
        a.data_ptr(),
        b.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        _TYPES[a.dtype],
        _TYPES[b.dtype],
        _TYPES[y.dtype],
        turned_a,
        turned_b,
        onto is not None,
        math.prod(runs),
        rows,
        columns,
        depth,
    )
    if code.multiply(ctypes.byref(work), torch.get_num_threads()) != 0:
        raise MemoryError(f"no memory for a product of {rows}, {depth} and {columns} numbers")
    return y


def _is_dense(matrix: Tensor) -> bool:
    """Return whether a matrix or its transpose is contiguous; the C code knows no other strides."""
    return matrix.is_contiguous() or matrix.mT.is_contiguous()


def _plain_product(
    a: Tensor, b: Tensor, bias: Tensor | None, dtype: torch.dtype, onto: Tensor | None
) -> Tensor:
    if onto is not None:
        return onto.baddbmm_(a, b) if a.ndim == 3 else onto.addmm_(a, b)
    if a.ndim == 2 and a.is_cpu and a.dtype in _faster_dtypes():
        y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
    else:
        y = a @ b if bias is None else a @ b + bias
    return y.to(dtype)


def _shaped(y_TO: Tensor, like: Tensor) -> Tensor:
    """Return a matrix in the shape of what was multiplied; a view could not be changed in place."""
    return y_TO if like.ndim == 2 else y_TO.view(*like.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return the product."""
        x_TI = x.flatten(0, -2).contiguous()
        ctx.save_for_backward(x_TI if ctx.needs_input_grad[1] else None, weight_OI)
        return _shaped(multiply(x_TI, weight_OI.T, bias=bias_O), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, W and b."""
        x_TI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_TO = grad_y.flatten(0, -2).contiguous()
        of_x = of_weight = None
        if needs_x:
            of_x = _shaped(multiply(grad_TO, weight_OI), grad_y)
        if needs_weight:
            of_weight = multiply(grad_TO.T, x_TI, dtype=weight_OI.dtype)
        return of_x, of_weight, grad_TO.sum(0) if needs_bias else None
