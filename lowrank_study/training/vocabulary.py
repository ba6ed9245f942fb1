"""The loss of tokens under a language model, without keeping logits.

The logits of 1,500 tokens over 49,152 words take 295 MB in fp32, and autograd would keep several
tensors of that size. Here the logits of a few tokens at a time become losses and gradients of the
hidden states, and are dropped.

    >>> losses_RS = token_losses(hidden_RSD, targets_S, logits_of=head, trained=[])
    >>> losses_RS.sum().backward()

`native/cross_entropy.c` computes the softmax in fp32.

Letters: R runs, S scored tokens, s of them at a time, D features, V words of the vocabulary.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank_study import native

_LOGITS = 12_000_000
"""Logits that are computed at once, unless those of one token are more."""
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

Head = Callable[[Tensor], Tensor]
"""A function from hidden states, (R, s, D), to logits, (R, s, V)."""


def token_losses(
    hidden_RSD: Tensor,
    targets_S: Tensor,
    *,
    logits_of: Head,
    words: int,
    trained: Sequence[nn.Parameter],
) -> Tensor:
    """Return the loss of each token, -log p(target | hidden), in nats, (R, S), in fp32.

    Gradients are computed with the losses. Those of trained parameters are sums over tokens, so a
    loss that is made from these losses must give all tokens the same weight.

    Args:
        logits_of: Maps hidden states to logits.
        words: Size V of the vocabulary.
        trained: The trained parameters that `logits_of` reads.
    """
    if torch.is_grad_enabled() and (hidden_RSD.requires_grad or trained):
        losses: Tensor = _TokenLosses.apply(hidden_RSD, targets_S, logits_of, words, *trained)  # type: ignore[no-untyped-call]
        return losses
    losses = hidden_RSD.new_empty(hidden_RSD.shape[:2], dtype=torch.float32)
    for some in _slices(hidden_RSD, words):
        logits_RsV = logits_of(hidden_RSD[:, some])
        losses[:, some], _ = cross_entropy(logits_RsV, targets_S[some], with_gradient=False)
    return losses


def logits_bytes(words: int, precision: str) -> int:
    """Return the memory of the logits that are computed at once, and of their gradient."""
    return 2 * max(_LOGITS, words) * {"fp32": 4, "bf16": 2}[precision]


def _slices(hidden_RSD: Tensor, words: int) -> list[slice]:
    runs, tokens, _ = hidden_RSD.shape
    step = max(1, _LOGITS // (runs * words))
    return [slice(start, start + step) for start in range(0, tokens, step)]


class _TokenLosses(torch.autograd.Function):
    """Losses of tokens; the forward pass also computes the gradients of their sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RSD: Tensor,
        targets_S: Tensor,
        logits_of: Head,
        words: int,
        *trained: nn.Parameter,
    ) -> Tensor:
        """Return the losses, and keep the gradients of their sum."""
        losses_RS = hidden_RSD.new_empty(hidden_RSD.shape[:2], dtype=torch.float32)
        of_hidden = torch.empty_like(hidden_RSD) if ctx.needs_input_grad[0] else None
        of_trained: list[Tensor | None] = [None] * len(trained)
        for some in _slices(hidden_RSD, words):
            with torch.enable_grad():
                hidden = hidden_RSD[:, some].detach().requires_grad_(of_hidden is not None)
                logits_RsV = logits_of(hidden)
            losses_RS[:, some], of_logits = cross_entropy(
                logits_RsV.detach(), targets_S[some], with_gradient=True
            )
            inputs = [*trained] if of_hidden is None else [*trained, hidden]
            found = torch.autograd.grad(logits_RsV, inputs, of_logits, allow_unused=True)
            if of_hidden is not None:
                of_hidden[:, some] = found[-1]
            of_trained = [_sum(a, b) for a, b in zip(of_trained, found, strict=False)]
        ctx.save_for_backward(of_hidden, *of_trained)
        return losses_RS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights_RS: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, weighted as the losses are."""
        of_hidden, *of_trained = ctx.saved_tensors
        if of_hidden is not None:
            of_hidden = of_hidden * weights_RS[..., None]
        weight = weights_RS[0, 0]
        assert not of_trained or bool((weights_RS == weight).all())
        for gradient in of_trained:
            if gradient is not None:
                gradient.mul_(weight)  # in place, because that of a head is as large as the head
        return of_hidden, None, None, None, *of_trained


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total.add_(more)


class _CrossEntropy(ctypes.Structure):
    """`struct cross_entropy` of `native/cross_entropy.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "losses", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "type")),
    )


def cross_entropy(
    logits_RsV: Tensor, targets_s: Tensor, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the losses of tokens, (R, s), in fp32, and the gradient of their sum, (R, s, V)."""
    targets = targets_s.expand(logits_RsV.shape[:2])
    code = _code(logits_RsV)
    if code is None:
        return _plain_cross_entropy(logits_RsV, targets, with_gradient=with_gradient)
    logits, targets = logits_RsV.contiguous(), targets.contiguous()
    losses = logits.new_empty(targets.shape, dtype=torch.float32)
    gradient = torch.empty_like(logits) if with_gradient else None
    work = _CrossEntropy(
        logits.data_ptr(),
        targets.data_ptr(),
        losses.data_ptr(),
        None if gradient is None else gradient.data_ptr(),
        targets.numel(),
        logits.shape[-1],
        _DTYPES[logits.dtype],
    )
    code.cross_entropy(ctypes.byref(work), torch.get_num_threads())
    return losses, gradient


def _code(logits: Tensor) -> ctypes.CDLL | None:
    """Return the compiled code if it supports the logits."""
    is_covered = logits.is_cpu and logits.dtype in _DTYPES
    return native.library("cross_entropy.c") if is_covered else None


def plain_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of tokens, (..., s), and the normalizers, log Σ exp(logits), in fp32.

    `log_softmax` adds up a large vocabulary in a long chain. On AVX2 it is off by up to 4e-5.
    """
    logits = logits.float()
    normalizers = logits.logsumexp(-1)
    return normalizers - logits.gather(-1, targets[..., None])[..., 0], normalizers


def _plain_cross_entropy(
    logits: Tensor, targets: Tensor, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    losses, normalizers = plain_losses(logits, targets)
    if not with_gradient:
        return losses, None
    softmax = (logits - normalizers[..., None]).exp_()
    softmax.scatter_add_(-1, targets[..., None], -torch.ones_like(losses)[..., None])
    return losses, softmax.to(logits.dtype)
