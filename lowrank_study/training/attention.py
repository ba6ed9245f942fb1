"""Attention within each text of a row of concatenated texts.

The models of transformers look up an attention function by name. This one returns for each text
what theirs returns for that text alone. It applies or refuses every argument that a model passes.

    >>> name = register()
    >>> model.set_attn_implementation(name)
    >>> with texts_of(lengths=(5, 9, 3), runs=1):
    ...     model(input_ids=row_of_17_tokens)

transformers makes the mask (causal, sliding window, chunks) for the longest text. The tokens that a
token sees depend on its position in its own text, so a shorter text uses a corner of that mask.

Letters: R runs, N texts, T tokens of all texts, L tokens of one text, H heads, K features of a
head.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import cast_once
from lowrank_study.training import kernels

_NAME = "text_by_text"
_WITHOUT_EFFECT = {"sliding_window", "position_ids", "deterministic", "output_attentions"}
"""Arguments that transformers' own functions ignore too; the mask contains the window."""

_texts: ContextVar[tuple[tuple[int, ...], int]] = ContextVar("texts")


def register() -> str:
    """Register the functions with transformers, and return their name."""
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, _mask_of_the_longest)
    return _NAME


@contextmanager
def texts_of(lengths: tuple[int, ...], runs: int) -> Iterator[None]:
    """Set the lengths of the texts in the row, and the number of runs that the model computes.

    Dropout drops the same entries in every run, so a run has the masks that it would have alone.
    """
    token = _texts.set((lengths, runs))
    try:
        with _SharedDropout() if runs > 1 else nullcontext():
            yield
    finally:
        _texts.reset(token)


@contextmanager
def one_run() -> Iterator[None]:
    """Let dropout inside treat its input as that of a single run."""
    lengths, _ = _texts.get()
    token = _texts.set((lengths, 1))
    try:
        yield
    finally:
        _texts.reset(token)


class _SharedDropout(TorchFunctionMode):
    """Use one dropout mask for all runs, in modules and in functions."""

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is functional.dropout:
            return _dropped(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _dropped(input: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
    """Apply dropout to an input of shape (R, ...) or (R N, ...)."""
    _, runs = _texts.get()
    if runs == 1 or p == 0.0 or not training:
        return functional.dropout(input, p, training)
    of_runs = input.reshape(runs, -1)
    mask = functional.dropout(torch.ones_like(of_runs[0]), p)
    return (of_runs * mask).view_as(input)


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
    """Attend within each text, and return (R, T, H, K).

    A narrowed layer (`unpadded.py`) has one query for each text.

    Args:
        key_RHTK: Keys; in grouped-query attention, with fewer heads than the queries.
        attention_mask: From `_mask_of_the_longest`, (1, 1, L, L); true where a token is seen.
        scaling: Factor of the attention scores; None is 1/√K.
        is_causal: Whether a token sees no later ones; None asks the module.
        softcap: Bound of the attention scores (Gemma 2): s → softcap · tanh(s / softcap).
        s_aux: One score for each head that only enters the softmax (the sinks of GPT-OSS).
        others: Further arguments; one that would have an effect is refused.

    Raises:
        InputError: The model passes an argument that can't be applied to concatenated texts.
    """
    for name, value in others.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            raise _refusal(module, repr(name))
    lengths, _ = _texts.get()
    narrowed = query_RHTK.shape[2] != key_RHTK.shape[2]
    if attention_mask is not None:
        longest = max(lengths)
        if attention_mask.dtype != torch.bool or attention_mask.shape[-2:] != (longest, longest):
            raise _refusal(module, "a mask of its own")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    common: dict[str, Any] = {
        "lengths": lengths,
        "mask": attention_mask,
        "causal": bool(causal) and not narrowed,
        "scaling": query_RHTK.shape[-1] ** -0.5 if scaling is None else scaling,
    }
    # Rotary embeddings give fp32 queries and keys beside bf16 values.
    inputs = [cast_once(x) for x in (query_RHTK, key_RHTK, value_RHTK)]
    if dropout == 0.0 and softcap is None and s_aux is None:
        faster = _attend_padded if query_RHTK.is_cuda else kernels.attention
        attended = faster(*inputs, **common)
        if attended is not None:
            return attended, None
    arguments = {**common, "dropout": dropout, "softcap": softcap, "sinks": s_aux}
    if query_RHTK.is_cpu and inputs[0].dtype == torch.bfloat16:
        # torch's CPU kernel takes three to five times as long in bf16, above all backward.
        with torch.autocast("cpu", enabled=False):
            attended = _attend_texts(*(x.float() for x in inputs), **arguments)
            return attended.to(torch.bfloat16), None
    return _attend_texts(*inputs, **arguments), None


def _refusal(module: nn.Module, what: str) -> InputError:
    return InputError(
        f"{type(module).__name__} passes {what} to its attention function, which can't be applied "
        "to concatenated texts: train it with trainer=reference, which pads texts"
    )


def _attend_texts(
    query_RHTK: Tensor,
    key_RHTK: Tensor,
    value_RHTK: Tensor,
    *,
    lengths: tuple[int, ...],
    mask: Tensor | None,
    **arguments: Any,
) -> Tensor:
    """Attend within each text of the row, and return (R, T, H, K)."""
    narrowed = query_RHTK.shape[2] != key_RHTK.shape[2]
    texts = zip(
        lengths,
        torch.split(query_RHTK, [1] * len(lengths) if narrowed else list(lengths), dim=2),
        torch.split(key_RHTK, list(lengths), dim=2),
        torch.split(value_RHTK, list(lengths), dim=2),
        strict=True,
    )
    attended = [
        _attend_one(
            query, key, value, mask=None if mask is None else mask[..., :n, :n], **arguments
        )
        for n, query, key, value in texts
    ]
    return torch.cat([text.transpose(1, 2) for text in attended], dim=1)


def _attend_padded(
    query_RHTK: Tensor,
    key_RHTK: Tensor,
    value_RHTK: Tensor,
    *,
    lengths: tuple[int, ...],
    mask: Tensor | None,
    causal: bool,
    scaling: float,
) -> Tensor:
    """Attend within texts that are padded to the longest, and return (R, T, H, K).

    One call for all texts suits a GPU, which would wait for the launch of each text's.
    """
    places_T, is_token_NL = _places(lengths, query_RHTK.device)
    runs, heads, queries, _ = query_RHTK.shape
    texts, longest = is_token_NL.shape
    narrowed = queries != key_RHTK.shape[2]

    def by_text(x_RHTK: Tensor) -> Tensor:
        """Return (N, R H, L, K), with zeros for padding."""
        *outer, _, features = x_RHTK.shape
        padded = x_RHTK.new_zeros(*outer, texts * longest, features)
        padded = padded.index_copy(2, places_T, x_RHTK)
        by_place = padded.view(*outer, texts, longest, features)
        return by_place.permute(2, 0, 1, 3, 4).flatten(1, 2)

    seen = is_token_NL[:, None, None, :]
    if mask is not None or causal:
        square = (longest, longest)
        if mask is None:
            mask = torch.ones(square, dtype=torch.bool, device=query_RHTK.device).tril()
        # A padded query sees all tokens, because a softmax over none would be NaN.
        seen = seen & mask.expand(1, 1, *square) | ~is_token_NL[:, None, :, None]
    attended = functional.scaled_dot_product_attention(
        query_RHTK.permute(2, 0, 1, 3).flatten(1, 2)[:, :, None]
        if narrowed
        else by_text(query_RHTK),
        by_text(key_RHTK),
        by_text(value_RHTK),
        attn_mask=seen,
        scale=scaling,
        enable_gqa=heads > key_RHTK.shape[1],
    )
    of_runs = attended.reshape(texts, runs, heads, -1, attended.shape[-1])
    rows = of_runs.permute(1, 0, 3, 2, 4).flatten(1, 2)
    return rows if narrowed else rows.index_select(1, places_T)


@functools.lru_cache(maxsize=8)
def _places(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tokens' places among padded texts, (T,), and which places are tokens, (N, L)."""
    with torch.inference_mode(False):  # training may use the places of an evaluation
        is_token_NL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        places_T = is_token_NL.flatten().nonzero()[:, 0]
        return places_T.to(device, non_blocking=True), is_token_NL.to(device, non_blocking=True)


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
    """Attend within one text, by torch's fused kernel where it supports the arguments."""
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
    return functional.dropout(weights, dropout) @ value


def _mask_of_the_longest(**asked: Any) -> Tensor | None:
    """Return the mask of the longest text in the row; None if no mask is needed.

    transformers asks for a mask of the whole row. Only the pattern of that request is used.
    """
    lengths, _ = _texts.get()
    longest = max(lengths)
    alone = {"batch_size": 1, "q_length": longest, "kv_length": longest, "attention_mask": None}
    mask: Tensor | None = sdpa_mask(**{**asked, **alone})
    return mask
