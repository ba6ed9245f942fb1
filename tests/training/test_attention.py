"""Every argument that a model passes to its attention function is applied or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_study.errors import InputError
from lowrank_study.training.attention import _attend_padded, _attend_texts, attend, texts_of
from lowrank_study.training.probe import _WithoutDropout

LENGTHS = (5, 1, 7)


def handed(heads: int = 4, key_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(2, count, total, 3) for count in (heads, key_heads, key_heads)]
    query, key, value = (torch.randn(s, generator=generator).double() for s in shapes)
    return query, key, value


def by_the_formula(
    *, causal: bool, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Compute attention within each text, written out."""
    query, key, value = handed()
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    attended = []
    for q, k, v in zip(*(x.split(LENGTHS, 2) for x in (query, key, value)), strict=True):
        scores = torch.einsum("rhqd,rhkd->rhqk", q, k) * 0.7
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        places = torch.arange(scores.shape[-1])
        if causal:
            scores[..., places[None, :] > places[:, None]] = -torch.inf
        if window is not None:
            scores[..., places[None, :] <= places[:, None] - window] = -torch.inf
        weights = scores.exp()
        below = weights.sum(-1, keepdim=True)
        if sinks is not None:
            below = below + sinks.exp().view(1, -1, 1, 1)
        attended.append(torch.einsum("rhqk,rhkd->rqhd", weights / below, v))
    return torch.cat(attended, 1)


def mask_of(window: int | None) -> Tensor | None:
    if window is None:
        return None
    places = torch.arange(max(LENGTHS))
    ahead = places[:, None] - places[None, :]
    return ((ahead >= 0) & (ahead < window))[None, None]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"window": 3},
        {"softcap": 0.8},
        {"softcap": 0.8, "window": 2},
        {"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0]).double()},
    ],
    ids=str,
)
def test_attention_follows_the_formula_within_each_text(
    options: dict[str, Any], dropout: float
) -> None:
    asked = {"causal": True, "window": None, "softcap": None, "sinks": None, **options}
    with texts_of(LENGTHS, 2), _WithoutDropout():
        found, _ = attend(
            nn.Identity(),
            *handed(),
            mask_of(asked["window"]),
            scaling=0.7,
            dropout=dropout,
            is_causal=asked["causal"],
            softcap=asked["softcap"],
            s_aux=asked["sinks"],
        )
    torch.testing.assert_close(found, by_the_formula(**asked), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("causal", "window", "narrowed"),
    [(False, None, False), (False, None, True), (True, None, False), (False, 2, False)],
    ids=["all", "narrowed", "causal", "window"],
)
def test_padded_attention_of_a_gpu_equals_that_of_each_text(
    causal: bool, window: int | None, narrowed: bool
) -> None:
    def found(attend_texts: Callable[..., Tensor]) -> list[Tensor]:
        query, key, value = (x.requires_grad_() for x in handed())
        queries = query[:, :, : len(LENGTHS)] if narrowed else query
        attended = attend_texts(
            *(queries, key, value),
            lengths=LENGTHS,
            mask=mask_of(window),
            causal=causal,
            scaling=0.7,
        )
        attended.pow(3).sum().backward()
        return [attended, *(x.grad for x in (query, key, value) if x.grad is not None)]

    by_text = partial(_attend_texts, dropout=0.0, softcap=None, sinks=None)
    for mine, other in zip(found(_attend_padded), found(by_text), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"position_bias": torch.zeros(1)}, "'position_bias'"),
        ({"indices": torch.zeros(1)}, "'indices'"),
        ({"attention_mask": torch.zeros(1, 1, 13, 13)}, "a mask of its own"),
    ],
)
def test_an_unsupported_argument_is_refused_by_name(more: dict[str, Any], named: str) -> None:
    arguments = {"attention_mask": None, **more}
    with (
        texts_of(LENGTHS, 2),
        pytest.raises(InputError, match=rf"Identity passes {named} to .*trainer=reference"),
    ):
        attend(nn.Identity(), *handed(), **arguments)


def test_arguments_that_stock_functions_ignore_are_accepted() -> None:
    with texts_of(LENGTHS, 2):
        plain, _ = attend(nn.Identity(), *handed(), None)
        more, _ = attend(
            nn.Identity(), *handed(), None, sliding_window=2, position_ids=plain, indices=None
        )
    assert torch.equal(plain, more)


def test_autocast_casts_what_rotary_embeddings_leave_in_fp32() -> None:
    query, key, value = (x.float() for x in handed())
    rounded = [x.bfloat16() for x in (query, key, value)]
    with texts_of(LENGTHS, 2), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = attend(nn.Identity(), query, key, rounded[2], None)
        alike, _ = attend(nn.Identity(), *rounded, None)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, alike)
