"""Attention on processors in C, where PyTorch's own is slow.

    attended = kernels.attention(query, key, value, lengths=(5, 9, 3), ...)
    if attended is None:
        ...  # the same in PyTorch

`native/training.c` sums in fp32. Like PyTorch's, it rounds attention weights to bf16 if its input
is bf16 and the processor multiplies bf16. A run's numbers depend neither on the pack nor on the
number of threads.

Letters: R runs, T tokens of all texts, H heads, K features of a head.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank_study import native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_Strides = ctypes.c_int64 * 3
_SOURCES = ["adamw.c", "cross_entropy.c", "elementwise.c", "norms.c", "products.c", "training.c"]
"""The native sources that training uses."""


def library() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is no compiler or native code is switched off."""
    return native.library("training.c")


def in_use(device: torch.device) -> str:
    """Return whose kernels train on a device, as `native.in_words` does, or `torch` on a GPU."""
    return native.in_words(_SOURCES) if device.type == "cpu" else "torch"


def attention(
    query_RHTK: Tensor,
    key_RHTK: Tensor,
    value_RHTK: Tensor,
    *,
    lengths: tuple[int, ...],
    mask: Tensor | None,
    causal: bool,
    scaling: float,
) -> Tensor | None:
    """Return attention within each text, (R, T, H, K), or None if there is no native code for it.

    Args:
        query_RHTK: Queries; if there are fewer tokens than keys, one query for each text.
        key_RHTK: Keys; in grouped-query attention, with fewer heads than the queries.
        mask: (1, 1, L, L) of the longest text; true where a query sees a key.
    """
    tensors = (query_RHTK, key_RHTK, value_RHTK)
    is_covered = (
        all(tensor.is_cpu and tensor.dtype == query_RHTK.dtype for tensor in tensors)
        and query_RHTK.dtype in _DTYPES
        and key_RHTK.shape == value_RHTK.shape
        and (mask is None or mask.shape[:2] == (1, 1))
    )
    code = library() if is_covered else None
    if code is None:
        return None
    # The code reads the mask of a key.
    mask_LL = None if mask is None else mask[0, 0].T.contiguous()
    attended: Tensor = _AttentionFunction.apply(  # type: ignore[no-untyped-call]
        *tensors, mask_LL, lengths, causal and mask is None, scaling, code
    )
    return attended


class _Attention(ctypes.Structure):
    """`struct attention` of `native/training.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v")),
        *((name, _Strides) for name in ("q_by", "k_by", "v_by")),
        *((name, ctypes.c_void_p) for name in ("out", "out_gradient")),
        *((f"{name}_gradient", ctypes.c_void_p) for name in ("q", "k", "v")),
        *((n, ctypes.c_int64) for n in ("type", "runs", "heads", "key_heads", "features", "texts")),
        ("lengths", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("tokens", "longest", "one_query", "causal")),
        ("mask", ctypes.c_void_p),
        ("scaling", ctypes.c_double),
    )


class _AttentionFunction(torch.autograd.Function):
    """Attention within each text; the backward pass computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *arguments: Any,
    ) -> Tensor:
        tensors: Any = (*(_with_whole_rows(tensor) for tensor in (query, key, value)), mask)
        ctx.save_for_backward(*tensors)
        ctx.arguments = arguments
        [attended] = _attend(*tensors, *arguments, out_gradient=None)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _attend(
            *ctx.saved_tensors, *ctx.arguments, out_gradient=out_gradient.contiguous()
        )
        return *(of.transpose(1, 2) for of in gradients), None, *[None] * len(ctx.arguments)


def _with_whole_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    lengths: tuple[int, ...],
    causal: bool,
    scaling: float,
    code: ctypes.CDLL,
    *,
    out_gradient: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the result; with its gradient, return those of query, key and value instead."""
    runs, heads, queries, features = query.shape
    _, key_heads, tokens, _ = key.shape
    of_queries = query.new_empty(runs, queries, heads, features)
    of_keys = [key.new_empty(runs, tokens, key_heads, features) for _ in range(2)]
    counts = (ctypes.c_int64 * len(lengths))(*lengths)
    work = _Attention(
        q=query.data_ptr(),
        k=key.data_ptr(),
        v=value.data_ptr(),
        q_by=_Strides(*query.stride()[:3]),
        k_by=_Strides(*key.stride()[:3]),
        v_by=_Strides(*value.stride()[:3]),
        out=of_queries.data_ptr(),
        out_gradient=None if out_gradient is None else out_gradient.data_ptr(),
        q_gradient=of_queries.data_ptr(),
        k_gradient=of_keys[0].data_ptr(),
        v_gradient=of_keys[1].data_ptr(),
        type=_DTYPES[query.dtype],
        runs=runs,
        heads=heads,
        key_heads=key_heads,
        features=features,
        texts=len(lengths),
        lengths=ctypes.addressof(counts),
        tokens=tokens,
        longest=max(lengths),
        one_query=queries != tokens,
        causal=causal,
        mask=None if mask is None else mask.data_ptr(),
        scaling=scaling,
    )
    backward = out_gradient is not None
    if code.attend(ctypes.byref(work), int(backward), torch.get_num_threads()) != 0:
        raise MemoryError(f"no memory for the attention of texts of {max(lengths)} tokens")
    return (of_queries, *of_keys) if backward else (of_queries,)
