"""DoRA, against PEFT's and against the live model."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank_study.checkpoints import open_weights
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.dora import Dora
from lowrank_study.methods.layers.dora import DoraLinear, PackedDora
from lowrank_study.methods.layers.linear import adapted_modules, merged
from lowrank_study.methods.layers.lora import lora_modules
from lowrank_study.spec import RunSpec
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.models import build_model, load_model

LABELS = torch.tensor([0, 2, 1])


def spec_of(family: str = "bert", *overrides: str) -> RunSpec:
    small = ("model.dropout=0.0", "method.rank=3", "method.target=all_linear")
    return compose("method=dora", f"model={family}", *small, *overrides)


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def model_of(spec: RunSpec, folder: Path) -> nn.Module:
    return build_model(spec, folder, number_of_labels=3).eval()


def peft_of(spec: RunSpec, folder: Path) -> nn.Module:
    """Return PEFT's model with the same head, which draws from the same seed."""
    torch.manual_seed(spec.seed)
    base = load_model(Classification, folder, number_of_labels=3, dropout=0.0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=16,
        use_dora=True,
        target_modules=[n for n, _ in lora_modules(model_of(spec, folder))],
        fan_in_fan_out=spec.model.name == "gpt2",
    )
    adapted: nn.Module = peft.get_peft_model(base, config)
    return adapted.eval()


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        functional.cross_entropy(model(**inputs()).logits, LABELS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def layer_of(base: nn.Module, rank: int = 3) -> DoraLinear:
    method = spec_of("bert", f"method.rank={rank}").method
    assert isinstance(method, Dora)
    layer = DoraLinear(base, method, "map").double()
    layer.B_OR.data += 0.1 * torch.randn_like(layer.B_OR)
    layer.magnitude_O.data *= 1.0 + 0.1 * torch.randn_like(layer.magnitude_O)
    return layer


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_logits_gradients_and_steps_are_pefts(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    spec = spec_of(family)
    ours, theirs = model_of(spec, tiny_model(family)), peft_of(spec, tiny_model(family))
    with torch.no_grad():
        for name, module in lora_modules(ours):
            adapted = theirs.get_submodule(f"base_model.model.{name}")
            module.A_RI.copy_(adapted.lora_A["default"].weight)  # type: ignore[index, union-attr]
    ours.double()
    theirs.double()
    before = ours(**inputs()).logits
    for steps in (0, 1, 3):
        train(ours, steps)
        train(theirs, steps)
        found = ours(**inputs()).logits
        torch.testing.assert_close(found, theirs(**inputs()).logits, rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 0.01
    for name, module in lora_modules(ours):
        assert isinstance(module, DoraLinear)
        adapted = theirs.get_submodule(f"base_model.model.{name}")
        vector = adapted.lora_magnitude_vector["default"].weight  # type: ignore[index, union-attr]
        torch.testing.assert_close(module.magnitude_O, vector, rtol=1e-5, atol=1e-5)
        assert not torch.equal(module.magnitude_O, module.norm_O)


def test_training_starts_exactly_at_the_pretrained_model(
    tiny_model: Callable[[str], Path],
) -> None:
    spec = spec_of()
    torch.manual_seed(spec.seed)
    base = load_model(Classification, tiny_model("bert"), number_of_labels=3, dropout=0.0).eval()
    model = model_of(spec, tiny_model("bert"))
    assert torch.equal(model(**inputs()).logits, base(**inputs()).logits)


def test_packed_runs_are_the_runs_alone() -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 20)
    layers = [layer_of(base, rank) for rank in (2, 3, 5)]
    x = torch.randn(3, 7, 12, dtype=torch.float64, requires_grad=True)
    weights = [p for each in layers for p in (each.A_RI, each.B_OR, each.magnitude_O)]
    alone = torch.stack([layer(of_run) for layer, of_run in zip(layers, x, strict=True)])
    together = PackedDora(layers, [0, 1, 2])(x)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(alone)
    expected = torch.autograd.grad(alone, [x, *weights], seed)
    found = torch.autograd.grad(together, [x, *weights], seed)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_saved_update_is_that_of_the_live_model_and_of_pefts(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    spec, folder = spec_of(), tiny_model("bert")
    model = model_of(spec, folder)
    train(model, 3)
    spec.method.save(model, tmp_path, spec=spec, base=folder)
    torch.manual_seed(5)  # another head: PEFT must bring ours back
    base = load_model(Classification, folder, number_of_labels=3, dropout=0.0)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(
        model(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-5, atol=1e-5
    )
    live = dict(lora_modules(copy.deepcopy(model).double()))
    with open_weights(folder) as weights:
        found = list(spec.method.updates(tmp_path, base=weights, roles={}))
    assert len(found) == len(live)
    for update in found:
        module = live[update.name.removesuffix(".weight")]
        identity = torch.eye(module.A_RI.shape[1], dtype=torch.float64)
        zero = torch.zeros_like(identity[:1])
        probed = (module(identity) - module(zero) - identity @ module.weight_OI.T).T.detach()
        error = np.linalg.norm(update.dense() - probed.numpy(), 2)
        # The norms of W0 are computed in fp32, so that training starts exactly at W0.
        assert error < 2e-7 * np.linalg.norm(module.weight_OI.numpy(), 2), update.name
        torch.testing.assert_close(module.delta_OI(), probed, rtol=0, atol=1e-12)


def test_merging_and_unmerging() -> None:
    torch.manual_seed(0)
    layer = layer_of(nn.Linear(12, 20))
    x, weight = torch.randn(7, 12, dtype=torch.float64), layer.weight.clone()
    expected, delta = layer(x), layer.delta_OI()
    layer.merge()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.delta_OI(), delta, rtol=1e-12, atol=1e-12)
    layer.unmerge()
    torch.testing.assert_close(layer.weight.data, weight, rtol=1e-12, atol=1e-12)
    with merged(layer):
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert dict(adapted_modules(layer))[""] is layer
    torch.testing.assert_close(layer.delta_OI(), delta, rtol=1e-12, atol=1e-12)


def test_the_gain_is_not_rounded_to_bf16() -> None:
    layer = layer_of(nn.Linear(12, 20, bias=False)).float()
    layer.B_OR.data.zero_()
    layer.magnitude_O.data = layer.norm_O * 1.0065  # which bf16 would round to 1.0078
    y = torch.full((1, 20), 1.5234375).bfloat16()
    found = layer.rescaled(y)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (y.float() * 1.0065).bfloat16())
    assert not torch.equal(found, (y.float() * 1.0078125).bfloat16())


def test_starts_that_subtract_a_product_are_refused() -> None:
    with pytest.raises(InputError, match=r"method\.init='pissa'"):
        spec_of("bert", "method.init=pissa")
