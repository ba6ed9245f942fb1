"""Attention within each text of a row of texts: what transformers calls in place of its own.

transformers' models take any attention function by name. Ours computes what theirs would compute
for each text alone: everything that a model hands over is applied, or refused by its name.

    >>> name = register()
    >>> model.set_attn_implementation(name)
    >>> with texts_of(lengths=(5, 9, 3), runs=1):
    ...     model(input_ids=row_of_17_tokens)

Masks (causal, sliding window, chunks) are made by transformers, for the longest text alone: a
token's place in its text decides what it sees, so that a shorter text needs a corner of it.

Letters: R runs, T tokens of all texts, L tokens of one, H heads, K features of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lowrank_study.errors import InputError

_NAME = "text_by_text"
_WITHOUT_EFFECT = {"sliding_window", "position_ids", "deterministic", "output_attentions"}
"""Arguments that the stock functions don't read either: a window is part of the mask."""

_texts: ContextVar[tuple[tuple[int, ...], int]] = ContextVar("texts")


def register() -> str:
    """Make the functions known to transformers, and return their name."""
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, _mask_of_the_longest)
    return _NAME


@contextmanager
def texts_of(lengths: tuple[int, ...], runs: int) -> Iterator[None]:
    """Say which texts lie in the row that is computed inside, and for how many runs."""
    token = _texts.set((lengths, runs))
    try:
        yield
    finally:
        _texts.reset(token)


def attend(
    module: nn.Module,
    query_RHTK: Tensor,
    key_RHTK: Tensor,
    value_RHTK: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each text; (R, T, H, K). One query a text where the layer is narrowed.

    Parameters
    ----------
    module, query_RHTK, key_RHTK, value_RHTK, scaling, dropout, is_causal
        As transformers calls its own attention functions.
    attention_mask
        Made by `_mask_of_the_longest`, (1, 1, L, L), true where a token is seen.
    softcap
        Bound of the attention scores (Gemma 2): s → softcap · tanh(s / softcap).
    s_aux
        A score of each head that takes part in the softmax alone (the sinks of GPT-OSS).
    others
        What else there is: refused unless it has no effect.

    Raises
    ------
    InputError
        The model hands over something else.
    """
    _refuse(module, others)
    lengths, _ = _texts.get()
    narrowed = query_RHTK.shape[2] != key_RHTK.shape[2]
    if attention_mask is not None and not _is_ours(attention_mask, max(lengths)):
        raise _refusal(module, "a mask of its own making")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    attended = [
        _attend_one(
            query,
            key,
            value,
            mask=None if attention_mask is None else attention_mask[..., :length, :length],
            causal=bool(causal) and not narrowed,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            dropout=dropout,
            softcap=softcap,
            sinks=s_aux,
        )
        for length, query, key, value in zip(
            lengths,
            torch.split(query_RHTK, [1] * len(lengths) if narrowed else list(lengths), dim=2),
            torch.split(key_RHTK, list(lengths), dim=2),
            torch.split(value_RHTK, list(lengths), dim=2),
            strict=True,
        )
    ]
    return torch.cat([text.transpose(1, 2) for text in attended], dim=1), None


def _is_ours(mask: Tensor, longest: int) -> bool:
    return mask.dtype == torch.bool and mask.shape[-2:] == (longest, longest)


def _refuse(module: nn.Module, arguments: dict[str, Any]) -> None:
    """Refuse arguments that are neither applied here nor left unread by the stock functions."""
    for name, value in arguments.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            raise _refusal(module, repr(name))


def _refusal(module: nn.Module, what: str) -> InputError:
    return InputError(
        f"{type(module).__name__} hands {what} to its attention function, which can't be applied "
        "to texts that are laid end to end: train it with trainer=reference, which pads them"
    )


def _attend_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scaling: float,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend within one text, by torch's kernel where it can."""
    groups = query.shape[1] // key.shape[1]
    if dropout == 0.0 and softcap is None and sinks is None:
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=groups > 1,
        )
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        of_heads = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, of_heads], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return shared_dropout(weights, dropout, training=True) @ value


def _mask_of_the_longest(**asked: Any) -> Tensor | None:
    """Return the mask of the longest text of the row alone, None where none is needed.

    What transformers asks for is the mask of the whole row: its pattern counts, not its size.
    """
    lengths, _ = _texts.get()
    longest = max(lengths)
    alone = {"batch_size": 1, "q_length": longest, "kv_length": longest, "attention_mask": None}
    mask: Tensor | None = sdpa_mask(**{**asked, **alone})
    return mask


def shared_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Drop the same entries in every run: x is (R, ...), or has R times as many rows.

    A run then meets the masks that it would meet alone, and runs differ by nothing else.
    """
    if probability == 0.0 or not training:
        return x
    _, runs = _texts.get()
    of_runs = x.reshape(runs, -1)
    mask = functional.dropout(torch.ones_like(of_runs[0]), probability)
    return (of_runs * mask).view_as(x)
