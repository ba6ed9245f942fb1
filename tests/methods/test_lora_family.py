"""rsLoRA, LoRA+, PiSSA, OLoRA, EVA and LoRA-GA, against PEFT's and against the live model."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from torch.nn import functional

from lowrank_study.checkpoints import open_weights
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.lora import LoraLinear, PackedLora, lora_modules
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import RunSpec, from_mapping, to_mapping
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.models import build_model, load_model, model_without_weights
from lowrank_study.training.optim import make_optimizer

VARIANTS = ("rslora", "loraplus", "pissa", "olora", "eva", "lora_ga")
MOVED = ("pissa", "olora", "lora_ga")
LABELS = torch.tensor([0, 2, 1])


def spec_of(method: str, *overrides: str, family: str = "bert") -> RunSpec:
    small = ("model.dropout=0.0", "method.rank=3", "method.target=all_linear")
    return compose(f"method={method}", f"model={family}", *small, *overrides)


def lora_of(spec: RunSpec) -> Lora:
    assert isinstance(spec.method, Lora)
    return spec.method


def inputs(texts: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(4, 40, (texts, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def losses_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield two batches with the losses of their texts: the same texts, in two parts."""
    for rows in ([0, 1], [2]):
        yield [
            functional.cross_entropy(
                model(input_ids=inputs()["input_ids"][[row], :length]).logits, LABELS[[row]]
            )
            / len(rows)
            for row in rows
            for length in [int(inputs()["attention_mask"][row].sum())]
        ]


def model_of(spec: RunSpec, folder: Path) -> nn.Module:
    model = build_model(spec, folder, number_of_labels=3).eval()
    spec.method.prepare(model, losses_of(model))
    return model


def peft_of(spec: RunSpec, folder: Path, init: Any, **settings: Any) -> nn.Module:
    """Return PEFT's model with the same head, which draws from the same seed."""
    lora = lora_of(spec)
    torch.manual_seed(spec.seed)
    base = load_model(Classification, folder, number_of_labels=3, dropout=0.0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=lora.rank,
        lora_alpha=int(lora.alpha),
        use_rslora=lora.uses_rslora,
        target_modules=[n for n, _ in lora_modules(build_model(spec, folder, number_of_labels=3))],
        init_lora_weights=init,
        fan_in_fan_out=spec.model.name == "gpt2",
        **settings,
    )
    if init == "lora_ga":
        preprocess_loraga(base, config, partial(backward, base))
    torch.manual_seed(spec.seed)
    adapted: nn.Module = peft.get_peft_model(base, config)
    return adapted


def backward(model: nn.Module) -> None:
    for losses in losses_of(model):
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def train(model: nn.Module, steps: int, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        functional.cross_entropy(model(**inputs()).logits, LABELS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("init", "family", "scaling"),
    [
        ("pissa", "bert", "alpha_over_rank"),
        ("pissa", "gpt2", "alpha_over_rank"),
        ("pissa", "llama", "alpha_over_sqrt_rank"),
        ("olora", "bert", "alpha_over_sqrt_rank"),
        ("olora", "llama", "alpha_over_rank"),
    ],
)
def test_a_start_at_the_weights_is_pefts(
    init: str, family: str, scaling: str, tiny_model: Callable[[str], Path]
) -> None:
    spec = spec_of(init, f"method.scaling={scaling}", family=family)
    ours, theirs = model_of(spec, tiny_model(family)), peft_of(spec, tiny_model(family), init)
    factors = dict(theirs.named_modules())
    for name, module in lora_modules(ours):
        adapted = factors[f"base_model.model.{name}"]
        torch.testing.assert_close(module.A_RI, adapted.lora_A["default"].weight)
        torch.testing.assert_close(module.B_OR, adapted.lora_B["default"].weight)
    ours.double()
    theirs.double().eval()
    torch.testing.assert_close(
        ours(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-6, atol=1e-6
    )
    before = ours(**inputs()).logits
    train(ours, 1)
    train(theirs, 1)
    after = ours(**inputs()).logits
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, theirs(**inputs()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", VARIANTS)
def test_training_starts_exactly_at_the_pretrained_model(
    method: str, tiny_model: Callable[[str], Path]
) -> None:
    spec = spec_of(method)
    model = model_of(spec, tiny_model("bert"))
    torch.manual_seed(spec.seed)
    base = load_model(Classification, tiny_model("bert"), number_of_labels=3, dropout=0.0).eval()
    assert torch.equal(model(**inputs()).logits, base(**inputs()).logits)
    moved = [module.B_OR.any() for _, module in lora_modules(model)]
    assert all(moved) == any(moved) == (method in MOVED)


@pytest.mark.parametrize("method", VARIANTS)
def test_a_saved_update_is_that_of_the_live_model(
    method: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    spec, folder = spec_of(method), tiny_model("bert")
    model = model_of(spec, folder)
    train(model, 3)
    spec.method.save(model, tmp_path, spec=spec, base=folder)
    live = dict(lora_modules(copy.deepcopy(model).double()))
    with open_weights(folder) as base:
        found = list(spec.method.updates(tmp_path, base=base, roles={}))
    assert len(found) == len(live)
    for update in found:
        module = live[update.name.removesuffix(".weight")]
        identity = torch.eye(module.A_RI.shape[1], dtype=torch.float64)
        probed = (module(identity) - module.base(identity)).T.detach().numpy()
        error = np.linalg.norm(update.dense() - probed, 2) / np.linalg.norm(probed, 2)
        assert error < 1e-7, update.name


@pytest.mark.parametrize("method", VARIANTS)
def test_peft_loads_what_is_saved(
    method: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    spec, folder = spec_of(method, "method.scaling=alpha_over_sqrt_rank"), tiny_model("bert")
    model = model_of(spec, folder)
    train(model, 3)
    spec.method.save(model, tmp_path, spec=spec, base=folder)
    torch.manual_seed(5)  # another head: PEFT must bring ours back
    base = load_model(Classification, folder, number_of_labels=3, dropout=0.0)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(
        model(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("scaling", ["alpha_over_rank", "alpha_over_sqrt_rank"])
@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_mixed_ranks_are_saved_as_peft_reads_them(
    method: str, scaling: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    patterns = (
        "method.rank_pattern={value: 9, layer.1.attention.self.value: 2, query: 5, mlp: 4}",
        "method.alpha_pattern={layer.0.attention.self.query: 40, mlp_up: 6}",
    )
    spec = spec_of(method, *patterns, f"method.scaling={scaling}", "method.alpha=2r")
    model = model_of(spec, tiny_model("bert"))
    layers = {name.split("layer.")[1]: layer for name, layer in lora_modules(model)}
    root = 1.0 if scaling == "alpha_over_rank" else 0.5
    for name, rank, alpha in (
        ("0.attention.self.query", 5, 40),
        ("1.attention.self.query", 5, 10),
        ("1.attention.self.value", 2, 4),
        ("0.attention.self.value", 9, 18),
        ("0.output.dense", 4, 8),
        ("0.attention.output.dense", 3, 6),
        ("0.intermediate.dense", 4, 6),
    ):
        assert layers[name].A_RI.shape[0] == rank
        assert layers[name].scaling == pytest.approx(alpha / rank**root)
    train(model, 3)
    spec.method.save(model, tmp_path, spec=spec, base=tiny_model("bert"))
    base = load_model(Classification, tiny_model("bert"), number_of_labels=3, dropout=0.0)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(
        model(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-6, atol=1e-6
    )
    assert spec.run_id.split("-")[2].startswith(f"{method}_r2to9_")
    assert spec.method.lora is None
    assert spec.method.computed_rank == (18 if method == "pissa" else 9)
    assert spec.method.adapter_rank is None
    assert from_mapping(to_mapping(spec)) == spec


@pytest.mark.filterwarnings("ignore:lora with eva initialization")
def test_eva_finds_pefts_directions(tiny_model: Callable[[str], Path]) -> None:
    """PEFT reads one batch of padded texts; its randomised SVD is exact for 16 features."""
    spec = spec_of("eva", "method.rank=8", "method.target=attention_all")
    ours = model_of(spec, tiny_model("bert"))
    theirs = peft_of(spec, tiny_model("bert"), "eva", eva_config=peft.EvaConfig(rho=1.0)).eval()
    peft.initialize_lora_eva_weights(theirs, [inputs()], show_progress_bar=False)
    factors = dict(theirs.named_modules())
    for name, module in lora_modules(ours):
        A_RI = factors[f"base_model.model.{name}"].lora_A["default"].weight
        cosines_R = torch.linalg.svdvals(A_RI @ module.A_RI.T)
        torch.testing.assert_close(cosines_R, torch.ones(8), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            (A_RI * module.A_RI).sum(1).abs(), torch.ones(8), atol=1e-4, rtol=0
        )


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("bert", "layer.0.intermediate.dense"),
        ("gpt2", "h.0.attn.c_attn"),
        ("gpt2", "h.0.mlp.c_fc"),
    ],
)
def test_lora_ga_starts_in_pefts_subspaces(
    family: str, target: str, tiny_model: Callable[[str], Path]
) -> None:
    """PEFT scales B by the gradient's singular values, and only B by the factor of the paper.

    The gradient of a first layer has as many singular vectors as are compared.
    """
    spec = spec_of("lora_ga", "method.rank=4", f"method.target=[{target}]", family=family)
    ours = model_of(spec, tiny_model(family))
    config = peft.LoraGAConfig(stable_gamma=16)
    theirs = peft_of(spec, tiny_model(family), "lora_ga", lora_ga_config=config)
    factors = dict(theirs.named_modules())
    for name, module in lora_modules(ours):
        adapted = factors[f"base_model.model.{name}"]
        factor = module.B_OR.shape[0] ** 0.25 / 4
        for mine_RX, theirs_RX in (
            (module.A_RI, adapted.lora_A["default"].weight),
            (module.B_OR.T, adapted.lora_B["default"].weight.T),
        ):
            torch.testing.assert_close(mine_RX.norm(dim=1), torch.full((4,), factor))
            cosines_R = functional.cosine_similarity(mine_RX, theirs_RX).abs()
            torch.testing.assert_close(cosines_R, torch.ones(4), rtol=0, atol=1e-3)


def test_loraplus_trains_B_faster_and_the_head_as_before(tiny_model: Callable[[str], Path]) -> None:
    spec = spec_of("loraplus", "method.learning_rate=1e-3", "method.learning_rate_ratio=4")
    model = build_model(spec, tiny_model("bert"), number_of_labels=3)
    rates = {p: g["lr"] for g in make_optimizer(model, spec).param_groups for p in g["params"]}
    named = {n: rates[p] for n, p in model.named_parameters() if p.requires_grad}
    assert {rate for name, rate in named.items() if name.endswith("B_OR")} == {4e-3}
    assert {rate for name, rate in named.items() if not name.endswith("B_OR")} == {1e-3}
    assert "classifier.weight" in named


@pytest.mark.parametrize("method", MOVED)
def test_weight_decay_does_not_move_a_start(method: str, tiny_model: Callable[[str], Path]) -> None:
    spec = spec_of(method, "trainer.weight_decay=0.5", "method.learning_rate=0.1")
    model = model_of(spec, tiny_model("bert"))
    optimizer = make_optimizer(model, spec)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    head = dict(model.named_parameters())["classifier.weight"]
    before = head.detach().clone()
    for _ in range(3):
        optimizer.step()
    for name, module in lora_modules(model):
        assert not module.delta_OI().any(), name
    assert not torch.equal(head, before)


def test_runs_of_different_starts_share_a_pack() -> None:
    layers = []
    torch.manual_seed(0)
    base = nn.Linear(12, 20)
    for method, rank in (("lora", 2), ("pissa", 3), ("olora", 5), ("lora", 6), ("lora_ga", 3)):
        layer = LoraLinear(base, lora_of(spec_of(method, f"method.rank={rank}")), "map").double()
        for factor in (layer.A_RI, layer.B_OR):
            factor.data += 0.1 * torch.randn_like(factor)
        layers.append(layer)
    active = [0, 1, 2, 3, 4]
    x = torch.randn(5, 7, 12, dtype=torch.float64, requires_grad=True)
    weights = [p for layer in layers for p in (layer.A_RI, layer.B_OR)]
    alone = torch.stack([layer(of_run) for layer, of_run in zip(layers, x, strict=True)])
    together = PackedLora(layers, active)(x)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(alone)
    expected = torch.autograd.grad(alone, [x, *weights], seed)
    found = torch.autograd.grad(together, [x, *weights], seed)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_small_update_of_a_large_start_survives_bf16() -> None:
    """Rounding A and A0 separately would lose most of an update of 0.1 %."""
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(64, 64), lora_of(spec_of("pissa", "method.rank=8")), "map")
    for factor in (layer.A_RI, layer.B_OR):
        factor.data *= 1 + 1e-3 * torch.randn_like(factor)
    with torch.no_grad():
        exact_OI = layer.delta_OI()
        A_KI, B_OK = (factor.bfloat16().float() for factor in layer.factors())
        found_OI = layer.scaling * B_OK @ A_KI
    assert (found_OI - exact_OI).norm() < 0.02 * exact_OI.norm()


@pytest.mark.parametrize("method", VARIANTS)
def test_a_model_without_weights_has_the_same_shapes(
    method: str, tiny_model: Callable[[str], Path], tiny_overrides: list[str]
) -> None:
    spec = compose(*tiny_overrides, f"method={method}", "method.rank=3")
    shapes = model_without_weights(spec)
    real = build_model(spec, tiny_model("bert"), number_of_labels=2)
    assert all(p.is_meta for p in shapes.parameters())
    assert [tuple(b.shape) for b in shapes.buffers()] == [tuple(b.shape) for b in real.buffers()]


def test_names_show_the_variant_and_older_runs_keep_theirs() -> None:
    assert {m: compose(f"method={m}").method.name for m in VARIANTS} == {m: m for m in VARIANTS}
    assert compose("method=loraplus").method.label == "loraplus (ratio=16)"
    both = compose("method=eva", "method.scaling=alpha_over_sqrt_rank", "method.names_scaling=true")
    assert both.method.name == "rslora_eva"
    old = compose("method=lora", "method.scaling=alpha_over_sqrt_rank")
    assert old.run_id == "rotten_tomatoes-minilm-lora_r8_attention_qv-lr0.002-s0-32eddd0e"
    new = compose("method=rslora")
    assert dataclasses.replace(lora_of(new), names_scaling=None) == old.method
    assert new.run_id != old.run_id


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.init_batches=3"], "init=kaiming doesn't use it.* method=eva or method=lora_ga"),
        (["method=eva", "method.stable_gamma=3"], "init=eva doesn't use it.* method=lora_ga"),
        (["method.init=eva"], "init=eva needs method.init_batches.* choose method=eva"),
        (["method.init=corda"], "valid are kaiming, gaussian, pissa, olora, eva, lora_ga"),
        (["method.learning_rate_ratio=0"], "learning_rate_ratio=0.* above 0"),
        (["method.rank_pattern={query: 0}"], r"rank_pattern.query=0: a whole number of at least 1"),
        (["method.alpha_pattern={query: -1}"], r"alpha_pattern.query=-1: a number above 0"),
        (["method.rank_pattern=3"], r"rank_pattern=3: a mapping"),
        (["method.names_scaling=3"], "names_scaling=3: true or false"),
    ],
)
def test_settings_that_do_not_apply_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.rank_pattern={quary: 3}"],
            "'quary' names none .* Valid are attention_qv, .*value",
        ),
        (["method.alpha_pattern={mlp_up: 3}"], "alpha_pattern: 'mlp_up' names none"),
        (["method=lora_ga", "method.rank=9"], "rank=9: .* 18 singular .* ranks from 1 to 8"),
        (["method=eva", "method.target=word_embeddings"], "matches no linear map"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    overrides: list[str], message: str, tiny_overrides: list[str]
) -> None:
    with pytest.raises(InputError, match=message):
        model_without_weights(compose(*tiny_overrides, *overrides))
