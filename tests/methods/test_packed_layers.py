"""The packed LoRA layer and the shared casts give what their plain forms give."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank_study.config.run import compose
from lowrank_study.methods.layers.linear import cast_once, share_casts
from lowrank_study.methods.layers.lora import LoraLinear, PackedLora
from lowrank_study.methods.lora import Lora


def layers_of(*ranks: int) -> list[LoraLinear]:
    torch.manual_seed(0)
    made = []
    for rank in ranks:
        lora = compose(f"method.rank={rank}", "method.alpha=4").method
        assert isinstance(lora, Lora)
        layer = LoraLinear(nn.Linear(12, 20), lora, "map").double()
        nn.init.normal_(layer.B_OR)
        made.append(layer)
    for layer in made[1:]:
        layer.base = made[0].base
    return made


@pytest.mark.parametrize("active", [[0, 2], [0, 1, 2, 3], [3]])
def test_a_packed_layer_has_the_gradients_of_its_layers(active: list[int]) -> None:
    layers = layers_of(2, 5, 3, 3)
    packed = PackedLora(layers, active)
    runs = len(active)
    x = torch.randn(runs, 7, 12, dtype=torch.float64, requires_grad=True)
    weights = [p for number in active for p in (layers[number].A_RI, layers[number].B_OR)]
    seed = torch.randn(runs, 7, 20, dtype=torch.float64)
    alone = torch.stack([layers[number](of_run) for number, of_run in zip(active, x, strict=True)])
    together = packed(x)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(alone, [x, *weights], seed)
    found = torch.autograd.grad(together, [x, *weights], seed)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_layer_is_evaluated_in_bf16_as_in_a_pack() -> None:
    [layer] = (layer.float() for layer in layers_of(3))
    x = torch.randn(1, 7, 12)
    exact = layer(x).detach()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, packed = layer(x), PackedLora([layer], [0])(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, packed)
    torch.testing.assert_close(
        found.float(), exact, rtol=2e-2, atol=2e-2 * float(exact.abs().max())
    )


def test_maps_that_read_one_activation_share_its_cast() -> None:
    torch.manual_seed(0)
    maps = nn.ModuleList([nn.Linear(12, 20), nn.Linear(12, 20)])
    x = torch.randn(5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = [each(x) for each in maps]
        share_casts(maps)
        found = [each(x) for each in maps]
        assert cast_once(x) is cast_once(x)
    assert cast_once(x) is x, "without autocast there is nothing to cast"
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_an_activation_changed_in_place_is_cast_again() -> None:
    x = torch.ones(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_once(x)
        x.mul_(2.0)
        assert torch.equal(cast_once(x), torch.full((3, 4), 2.0, dtype=torch.bfloat16))
        assert functional.linear(cast_once(x), torch.ones(1, 4)).tolist() == [[8.0]] * 3
