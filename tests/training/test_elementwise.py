"""Native functions of entries give PyTorch's numbers, and replace only functions like them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    apply_rotary_pos_emb,
)

from lowrank_study import native
from lowrank_study.training import elementwise
from lowrank_study.training.elementwise import use_native_functions
from tests.training.exactness import DTYPES, assert_as_exact, with_gradients

pytestmark = pytest.mark.skipif(elementwise.library() is None, reason="no C compiler")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def native_gelu(x: Tensor) -> Tensor:
    module = ACT2FN["gelu"]
    use_native_functions(module)
    found: Tensor = module(x)
    return found


class Gated(nn.Module):
    """The gated part of Llama's feed-forward layer, with its forward."""

    def __init__(self, inputs: tuple[Tensor, Tensor], act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (lambda _: inputs[0]), (lambda _: inputs[1])
        self.down_proj, self.act_fn = nn.Identity(), act_fn

    forward = LlamaMLP.forward


def native_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    module = Gated((gate, up), ACT2FN["silu"])
    use_native_functions(module)
    assert "forward" in vars(module)
    found: Tensor = module(gate)
    return found


def attention(kind: type[nn.Module] = LlamaAttention) -> Any:
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config.use_qk_norm = False  # Cohere's
    module = kind(config, 0)
    use_native_functions(module)
    return module


def native_rotation(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> Any:
    rotate = attention().forward.__func__.__globals__["apply_rotary_pos_emb"]
    return rotate(query, key, cosine, sine)


def rotated(
    rotate: Callable[..., Any], cosine: Tensor, sine: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of queries and keys in the layout of a model, (R, H, T, K)."""

    def function(query: Tensor, key: Tensor) -> Tensor:
        tables = [x.to(torch.promote_types(x.dtype, query.dtype)) for x in (cosine, sine)]
        found = rotate(query.transpose(1, 2), key.transpose(1, 2), *tables)
        return torch.cat([x.transpose(1, 2) for x in found], 2)

    return function


@DTYPES
def test_gelu_is_as_exact_as_torchs(dtype: torch.dtype) -> None:
    x, gradient = numbers(40_001).to(dtype), numbers(40_001, seed=1).to(dtype)
    assert_as_exact(native_gelu, functional.gelu, [x], gradient)


@DTYPES
def test_gelu_of_large_and_of_missing_numbers(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1e30, -1e30, torch.inf, torch.nan], dtype=dtype)
    expected = torch.tensor([0.0, 1e30, 0.0, torch.inf, torch.nan], dtype=dtype)
    torch.testing.assert_close(native_gelu(x), expected, atol=1e-5, rtol=0.0, equal_nan=True)


@DTYPES
def test_swiglu_is_as_exact_as_torchs(dtype: torch.dtype) -> None:
    inputs = [numbers(40_001, seed=seed).to(dtype) for seed in (0, 1)]
    gradient = numbers(40_001, seed=2).to(dtype)

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    assert_as_exact(native_swiglu, plain, inputs, gradient)


@DTYPES
def test_swiglu_of_large_numbers_is_finite(dtype: torch.dtype) -> None:
    gate = torch.tensor([-200.0, 200.0], dtype=dtype)
    found = with_gradients(native_swiglu, [gate, torch.ones_like(gate)], torch.ones(2))
    assert all(bool(each.isfinite().all()) for each in found)


@DTYPES
@pytest.mark.parametrize("features", [6, 32, 64, 70])
def test_rotation_is_as_exact_as_torchs(dtype: torch.dtype, features: int) -> None:
    tables = [numbers(2, 67, features, seed=seed) for seed in (0, 1)]
    inputs = [numbers(2, 67, heads, features, seed=heads).to(dtype) for heads in (4, 2)]
    gradient = numbers(2, 67, 6, features, seed=3)
    assert_as_exact(
        rotated(native_rotation, *tables), rotated(apply_rotary_pos_emb, *tables), inputs, gradient
    )


@DTYPES
@pytest.mark.parametrize("size", [1, 15, 64, 100])
@pytest.mark.parametrize("function", [native_gelu, lambda x: native_swiglu(x, 2.0 * x)])
def test_entries_are_equal_in_tensors_of_any_size(
    dtype: torch.dtype, size: int, function: Callable[[Tensor], Tensor]
) -> None:
    x, gradient = numbers(300).to(dtype), numbers(300, seed=1)
    some = with_gradients(function, [x[:size]], gradient[:size])
    for part, whole in zip(some, with_gradients(function, [x], gradient), strict=True):
        assert torch.equal(part, whole[:size])


@DTYPES
@pytest.mark.parametrize("function", [native_gelu, lambda x: native_swiglu(x, 2.0 * x)])
def test_a_run_is_equal_in_any_pack_and_on_any_threads(
    dtype: torch.dtype, function: Callable[[Tensor], Tensor]
) -> None:
    x, gradient = numbers(3, 123, 257).to(dtype), numbers(3, 123, 257, seed=1)
    packed = with_gradients(function, [x], gradient)
    alone = with_gradients(function, [x[1:2]], gradient[1:2])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = with_gradients(function, [x], gradient)
    finally:
        torch.set_num_threads(before)
    for together, single, other in zip(packed, alone, threaded, strict=True):
        assert torch.equal(together[1:2], single)
        assert torch.equal(together, other)


@pytest.mark.parametrize("name", ["gelu_new", "quick_gelu", "gelu_pytorch_tanh", "gelu_10"])
def test_other_kinds_of_gelu_stay(name: str) -> None:
    x = numbers(100)
    module = ACT2FN[name]
    expected = module(x)
    use_native_functions(module)
    assert torch.equal(module(x), expected)


def test_other_gates_stay() -> None:
    module = Gated((numbers(10), numbers(10, seed=1)), ACT2FN["gelu"])
    use_native_functions(module)
    assert "forward" not in vars(module)


def test_other_rotations_stay() -> None:
    """Cohere rotates neighbours instead of halves."""
    assert "forward" not in vars(attention(CohereAttention))


def test_other_inputs_take_the_models_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles = numbers(10).double()
    assert torch.equal(native_gelu(doubles), functional.gelu(doubles))
    assert torch.equal(native_swiglu(doubles, doubles), functional.silu(doubles) * doubles)
    table = numbers(1, 5, 8)
    query, key = numbers(1, 2, 5, 8).double(), numbers(1, 2, 5, 8)
    for one, other in zip(
        native_rotation(query, key, table, table),
        apply_rotary_pos_emb(query, key, table, table),
        strict=True,
    ):
        assert torch.equal(one, other)
    monkeypatch.setattr(native, "wanted", False)
    module = ACT2FN["gelu"]
    use_native_functions(module)
    assert "forward" not in vars(module)


@DTYPES
def test_rotation_of_a_run_is_equal_in_any_pack_and_on_any_threads(dtype: torch.dtype) -> None:
    tables = [numbers(3, 67, 32, seed=seed) for seed in (0, 1)]
    inputs = [numbers(3, 67, heads, 32, seed=heads).to(dtype) for heads in (4, 2)]
    gradient = numbers(3, 67, 6, 32, seed=3)
    packed = with_gradients(rotated(native_rotation, *tables), inputs, gradient)
    alone = with_gradients(
        rotated(native_rotation, *(x[1:2] for x in tables)), [x[1:2] for x in inputs], gradient[1:2]
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = with_gradients(rotated(native_rotation, *tables), inputs, gradient)
    finally:
        torch.set_num_threads(before)
    for together, single, other in zip(packed, alone, threaded, strict=True):
        assert torch.equal(together[1:2], single)
        assert torch.equal(together, other)
