"""Native norms give PyTorch's numbers, and replace only layers with their formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import BertConfig, LlamaConfig
from transformers.models.bert.modeling_bert import BertSelfOutput
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from lowrank_study.methods.layers.linear import cast_once
from lowrank_study.training import norms
from lowrank_study.training.norms import use_native_norms
from tests.training.exactness import DTYPES, assert_as_exact, with_gradients

pytestmark = pytest.mark.skipif(norms.library() is None, reason="no C compiler")
ROWS = pytest.mark.parametrize("rows", [1, 32, 77])
AUTOCAST = torch.autocast("cpu", dtype=torch.bfloat16)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rms_norm(width: int, kind: type[nn.Module] = LlamaRMSNorm) -> Any:
    norm: Any = kind(width, eps=1e-3)
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


def post_norm(width: int = 96, dropout: float = 0.0) -> Any:
    """Return BERT's layer without its product."""
    layer: Any = BertSelfOutput(BertConfig(hidden_size=width, hidden_dropout_prob=dropout))
    layer.dense = nn.Identity()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, generator=torch.Generator().manual_seed(1))
    return layer


class Attention(nn.Module):
    """Stands for a layer's attention."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return 0.5 * hidden_states, None


def decoder_layer(width: int = 64) -> Any:
    config = LlamaConfig(hidden_size=width, num_attention_heads=4, num_key_value_heads=2)
    layer: Any = LlamaDecoderLayer(config, 0)
    layer.self_attn, layer.mlp = Attention(), nn.Tanh()
    return layer


@ROWS
def test_rms_norm_is_as_exact_as_torchs(rows: int) -> None:
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return weight * (x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt())

    def native(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(norm, {"weight": weight}, x)

    norm = rms_norm(96)
    use_native_norms(norm)
    assert "forward" in vars(norm)
    x, gradient = numbers(2, rows, 96), numbers(2, rows, 96, seed=1)
    assert_as_exact(native, plain, [x, norm.weight.detach()], gradient)


@DTYPES
@ROWS
def test_post_norm_is_as_exact_as_torchs(dtype: torch.dtype, rows: int) -> None:
    layer = post_norm()
    epsilon = layer.LayerNorm.eps
    use_native_norms(layer)
    assert "forward" in vars(layer)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(x + residual, (96,), weight, bias, epsilon)

    def native(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        named = {"LayerNorm.weight": weight, "LayerNorm.bias": bias}
        return functional_call(layer, named, (x.to(dtype), residual))

    weights = [p.detach() for p in layer.LayerNorm.parameters()]
    # Numbers that bf16 represents, so that only the gradient of x is rounded.
    inputs = [numbers(2, rows, 96).to(dtype).float(), numbers(2, rows, 96, seed=1)]
    gradient = numbers(2, rows, 96, seed=2)
    if dtype == torch.float32:
        assert_as_exact(native, plain, [*inputs, *weights], gradient)
        return
    exact = with_gradients(plain, [*inputs, *weights], gradient)
    found = with_gradients(native, [*inputs, *weights], gradient)
    torch.testing.assert_close(found[1], exact[1].bfloat16().float(), rtol=8e-3, atol=1e-6)
    for one, other in zip([found[0], *found[2:]], [exact[0], *exact[2:]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_pre_norm_is_as_exact_as_torchs() -> None:
    layer, plain = decoder_layer(), decoder_layer()
    use_native_norms(layer)
    assert "forward" in vars(layer)

    def run(layer: Any) -> Callable[..., Tensor]:
        def function(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
            weights = {"input_layernorm.weight": first, "post_attention_layernorm.weight": second}
            return functional_call(layer, weights, x)

        return function

    inputs = [numbers(2, 45, 64), 1.0 + numbers(64, seed=1), 1.0 + numbers(64, seed=2)]
    gradient = numbers(2, 45, 64, seed=3)
    found = with_gradients(run(layer), inputs, gradient)
    for one, other in zip(found, with_gradients(run(plain), inputs, gradient), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_maps_read_the_same_numbers_in_bf16() -> None:
    """Under autocast, readers get the rounded result, and both gradients count."""
    norm, plain = rms_norm(64), rms_norm(64)
    use_native_norms(norm)
    x, gradient = numbers(3, 64), numbers(3, 64, seed=1)

    def read(norm: Any) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            normed = norm(x)
            return cast_once(normed).float() + 2.0 * normed

        return function

    with AUTOCAST:
        normed = norm(x)
        assert torch.equal(cast_once(normed), normed.bfloat16())
        found, expected = (with_gradients(read(of), [x], gradient) for of in (norm, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


KINDS: dict[str, Callable[[int], Any]] = {"rms": rms_norm, "post": post_norm, "pre": decoder_layer}


@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_a_run_are_equal_in_any_pack_and_on_any_threads(kind: str) -> None:
    layer = KINDS[kind](64)
    use_native_norms(layer)
    inputs = [numbers(3, 45, 64, seed=seed) for seed in range(2 if kind == "post" else 1)]
    gradient = numbers(3, 45, 64, seed=4)
    packed = with_gradients(layer, inputs, gradient)
    alone = with_gradients(layer, [x[1:2] for x in inputs], gradient[1:2])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = with_gradients(layer, inputs, gradient)
    finally:
        torch.set_num_threads(before)
    for together, single, other in zip(packed, alone, threaded, strict=True):
        assert torch.equal(together[1:2], single)
        assert torch.equal(together, other)


def test_only_layers_with_that_formula_use_native_rms_norm() -> None:
    class OtherRMSNorm(LlamaRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            other: Tensor = (1.0 + self.weight) * x
            return other

    for norm, width in ((rms_norm(65), 65), (rms_norm(64, OtherRMSNorm), 64)):
        x = numbers(4, width)
        expected = norm(x)
        use_native_norms(norm)
        assert torch.equal(norm(x), expected)


def test_dropout_is_left_to_torch() -> None:
    layer = post_norm(dropout=0.5)
    use_native_norms(layer)
    x, residual = numbers(1, 4, 96), numbers(1, 4, 96, seed=1)
    results = []
    for forward in (layer.forward, type(layer).forward.__get__(layer)):
        torch.manual_seed(0)
        results.append(forward(x, residual))
    assert torch.equal(*results)


def test_other_layers_stay() -> None:
    class Scaled(LlamaDecoderLayer):
        def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:
            scaled: Tensor = 0.5 * super().forward(hidden_states, **named)
            return scaled

    class Other(BertSelfOutput):
        def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
            other: Tensor = self.LayerNorm(self.dense(hidden_states)) + input_tensor
            return other

    scaled = Scaled(LlamaConfig(hidden_size=64, num_attention_heads=4), 0)
    other = Other(BertConfig(hidden_size=96))
    for layer in (scaled, other):
        use_native_norms(layer)
        assert "forward" not in vars(layer)
