"""Native kernels give PyTorch's numbers, the same in any pack and on any number of threads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank_study import native
from lowrank_study.training import kernels
from tests.training.exactness import DTYPES, assert_as_exact, with_gradients

NEEDS_NATIVE = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")
LENGTHS = (5, 1, 70, 33)


def handed(
    dtype: torch.dtype,
    *,
    runs: int = 2,
    heads: int = 4,
    key_heads: int = 4,
    features: int = 32,
    one_query: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Return queries, keys and values as views of rows of tokens, and an output's gradient."""
    generator = torch.Generator().manual_seed(0)

    def rows(tokens: int, of: int) -> Tensor:
        return torch.randn(runs, tokens, of, features, generator=generator).to(dtype)

    queries = len(LENGTHS) if one_query else sum(LENGTHS)
    shapes = [(queries, heads), (sum(LENGTHS), key_heads), (sum(LENGTHS), key_heads)]
    return [rows(*shape).transpose(1, 2) for shape in shapes], rows(queries, heads)


def by_torch(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool, scaling: float
) -> Tensor:
    """Compute attention within each text with PyTorch's plain functions."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    queries = LENGTHS if query.shape[2] == key.shape[2] else [1] * len(LENGTHS)
    attended = []
    for q, k, v in zip(
        query.split(queries, 2), key.split(LENGTHS, 2), value.split(LENGTHS, 2), strict=True
    ):
        scores = q @ k.mT * scaling
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
        if mask is not None:
            seen = mask[0, 0, : seen.shape[0], : seen.shape[1]]
        elif causal:
            seen = seen.tril()
        attended.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2))
    return torch.cat(attended, 1)


def by_native(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    found = kernels.attention(query, key, value, lengths=LENGTHS, **arguments)
    assert found is not None
    return found


WINDOW = torch.ones(70, 70, dtype=torch.bool).tril().triu(-3)[None, None]
PLAIN = {"mask": None, "causal": False, "scaling": 0.2}


@NEEDS_NATIVE
@DTYPES
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ({}, {}),
        ({"features": 24}, {"causal": True}),
        ({"key_heads": 2, "features": 64}, {"causal": True}),
        ({"key_heads": 1, "features": 40}, {"mask": WINDOW, "causal": True}),
        ({"one_query": True}, {}),
    ],
    ids=["all", "causal", "grouped", "window", "one query"],
)
def test_attention_is_as_exact_as_torchs(
    dtype: torch.dtype, shape: dict[str, Any], arguments: dict[str, Any]
) -> None:
    inputs, gradient = handed(dtype, **shape)
    both = [
        lambda *of, by=by: by(*of, **{**PLAIN, **arguments})  # type: ignore[misc]
        for by in (by_native, by_torch)
    ]
    assert_as_exact(both[0], both[1], inputs, gradient)


@NEEDS_NATIVE
@DTYPES
def test_attention_of_a_run_is_equal_in_any_pack_and_on_any_threads(dtype: torch.dtype) -> None:
    def attended(inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
        return with_gradients(lambda *of: by_native(*of, **PLAIN), inputs, gradient)

    inputs, gradient = handed(dtype, runs=3, key_heads=2)
    packed = attended(inputs, gradient)
    alone = attended([x[1:2] for x in inputs], gradient[1:2])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = attended(inputs, gradient)
    finally:
        torch.set_num_threads(before)
    for together, single, other in zip(packed, alone, threaded, strict=True):
        assert torch.equal(together[1:2], single)
        assert torch.equal(together, other)


@NEEDS_NATIVE
@DTYPES
def test_attention_passes_nan_on(dtype: torch.dtype) -> None:
    """A run that diverged must be noticed."""
    inputs, _ = handed(dtype)
    inputs[0][1, 2, 3] = torch.nan
    found = by_native(*inputs, **PLAIN)
    assert found[1, 3, 2].isnan().all()
    assert not found[0].isnan().any()


@NEEDS_NATIVE
def test_a_query_that_sees_nothing_gets_zeros() -> None:
    inputs, gradient = handed(torch.float32)
    mask = torch.ones(70, 70, dtype=torch.bool)[None, None]
    mask[..., 4, :] = False
    out, *gradients = with_gradients(
        lambda *of: by_native(*of, **{**PLAIN, "mask": mask}), inputs, gradient
    )
    assert (out[:, 4] == 0).all()
    assert all(bool(each.isfinite().all()) for each in gradients)


def test_there_is_no_native_attention_for_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def attended(inputs: list[Tensor]) -> Tensor | None:
        return kernels.attention(*inputs, lengths=LENGTHS, **PLAIN)

    inputs, _ = handed(torch.float32)
    assert attended([x.double() for x in inputs]) is None
    assert attended([inputs[0].bfloat16(), *inputs[1:]]) is None
    assert attended([*inputs[:2], inputs[2][..., :8]]) is None
    monkeypatch.setattr(native, "wanted", False)
    assert attended(inputs) is None


@NEEDS_NATIVE
def test_provenance_names_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"training.c": True, "tridiagonal.c": False}  # training doesn't use the second
    monkeypatch.setattr(native, "_found", found)
    assert kernels.in_use(torch.device("cpu")) == "native"
    assert kernels.in_use(torch.device("cuda")) == "torch"
    found |= {"products.c": False, "norms.c": False}
    assert kernels.in_use(torch.device("cpu")) == "native without norms.c, products.c"
    found["training.c"] = False
    assert kernels.in_use(torch.device("cpu")) == "torch"
    found["training.c"] = True
    monkeypatch.setattr(native, "wanted", False)
    assert kernels.in_use(torch.device("cpu")) == "torch"


@NEEDS_NATIVE
def test_provenance_covers_every_source_that_training_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = {file.name for file in Path(native.__file__).parent.glob("*.c")}
    assert set(kernels._SOURCES) == sources - {"tridiagonal.c"}
    monkeypatch.setattr(native, "_found", {})
    assert kernels.in_use(torch.device("cpu")) == "torch"  # nothing has been used
    native._load.cache_clear()
    assert native.library("training.c") is not None
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    assert native.library("norms.c") is None
    assert kernels.in_use(torch.device("cpu")) == "native without norms.c"
    native._load.cache_clear()
