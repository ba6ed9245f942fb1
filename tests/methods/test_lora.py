"""Our LoRA against PEFT's, from the same factors; and what it leaves untouched."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import linear_shape, merged
from lowrank_study.methods.layers.lora import LoraLinear, add_lora, lora_modules
from lowrank_study.methods.layers.modules import head_names, target_modules
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import RunSpec
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.models import build_model, load_model

FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama")
PRESETS = ("attention_qv", "attention_all", "mlp", "all_linear")


def spec_of(family: str, *overrides: str) -> RunSpec:
    return compose(f"model={family}", "model.dropout=0.0", "method.rank=3", *overrides)


def lora_of(spec: RunSpec) -> Lora:
    assert isinstance(spec.method, Lora)
    return spec.method


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def randomise_b(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for _, module in lora_modules(model):
        module.B_OR.data.normal_(std=0.3, generator=generator)


@pytest.mark.parametrize("scaling", ["alpha_over_rank", "alpha_over_sqrt_rank"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_peft_in_outputs_and_gradients(
    family: str, scaling: str, tiny_model: Callable[[str], Path]
) -> None:
    spec = spec_of(family, "method.target=all_linear", f"method.scaling={scaling}")
    lora = lora_of(spec)
    ours = build_model(spec, tiny_model(family), number_of_labels=3)
    randomise_b(ours)
    torch.manual_seed(spec.seed)
    base = load_model(Classification, tiny_model(family), number_of_labels=3, dropout=0.0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=lora.rank,
        lora_alpha=int(lora.alpha),
        use_rslora=scaling == "alpha_over_sqrt_rank",
        target_modules=[name for name, _ in lora_modules(ours)],
        fan_in_fan_out=family == "gpt2",
    )
    theirs = peft.get_peft_model(base, config)
    factors = dict(theirs.named_modules())
    for name, module in lora_modules(ours):
        adapted = factors[f"base_model.model.{name}"]
        adapted.lora_A["default"].weight.data.copy_(module.A_RI)
        adapted.lora_B["default"].weight.data.copy_(module.B_OR)
    torch.testing.assert_close(
        ours(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-6, atol=1e-6
    )
    ours.double()  # gradients through many layers: rounding in fp32 would hide a wrong factor
    theirs.double()
    labels = torch.tensor([0, 2, 1])
    our_scores, their_scores = ours(**inputs()).logits, theirs(**inputs()).logits
    torch.testing.assert_close(our_scores, their_scores, rtol=1e-12, atol=1e-12)
    nn.functional.cross_entropy(our_scores, labels).backward()
    nn.functional.cross_entropy(their_scores, labels).backward()
    for name, module in lora_modules(ours):
        adapted = factors[f"base_model.model.{name}"]
        for ours_p, theirs_p in (
            (module.A_RI, adapted.lora_A["default"].weight),
            (module.B_OR, adapted.lora_B["default"].weight),
        ):
            assert ours_p.grad is not None
            assert ours_p.grad.abs().max() > 0
            difference = (ours_p.grad - theirs_p.grad).norm() / theirs_p.grad.norm()
            assert difference < 1e-10


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_parameters_are_exactly_the_factors_and_the_head(
    family: str, preset: str, tiny_model: Callable[[str], Path]
) -> None:
    spec = spec_of(family, f"method.target={preset}")
    plain = load_model(Classification, tiny_model(family), number_of_labels=3, dropout=None)
    names = target_modules(plain, spec.model, lora_of(spec).target)
    expected = sum(3 * sum(linear_shape(plain.get_submodule(name))) for name in names)
    head = sum(p.numel() for n in head_names(plain) for p in plain.get_submodule(n).parameters())
    model = build_model(spec, tiny_model(family), number_of_labels=3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert names
    assert trained == expected + head
    assert {name for name, _ in lora_modules(model)} == set(names)


def test_presets_reach_the_maps_they_name(tiny_model: Callable[[str], Path]) -> None:
    def endings(family: str, preset: str) -> set[str]:
        model = load_model(Classification, tiny_model(family), number_of_labels=2, dropout=None)
        names = target_modules(model, spec_of(family).model, (preset,))
        assert len(names) % 2 == 0  # two layers
        return {
            name.split(".", 3)[-1] if family == "bert" else name.rpartition(".")[2]
            for name in names
        }

    assert endings("llama", "attention_qv") == {"q_proj", "v_proj"}
    assert endings("llama", "mlp") == {"gate_proj", "up_proj", "down_proj"}
    assert endings("gpt2", "attention_qv") == {"c_attn"}
    assert endings("distilbert", "attention_qv") == {"q_lin", "v_lin"}
    model = load_model(Classification, tiny_model("bert"), number_of_labels=2, dropout=None)
    mlp = target_modules(model, spec_of("bert").model, ("mlp",))
    assert all("attention" not in name for name in mlp)
    assert len(target_modules(model, spec_of("bert").model, ("all_linear",))) == 12


def test_targets_by_role_and_by_path(tiny_model: Callable[[str], Path]) -> None:
    model = load_model(Classification, tiny_model("bert"), number_of_labels=2, dropout=None)
    base = spec_of("bert").model
    by_role = target_modules(model, base, ("query", "mlp_up"))
    by_path = target_modules(model, base, ("self.query", "intermediate.dense"))
    assert by_role == by_path
    assert len(by_role) == 4
    one = target_modules(model, base, ("layer.1.attention.self.query",))
    assert one == ["bert.encoder.layer.1.attention.self.query"]


def test_a_target_that_matches_nothing_is_refused(tiny_model: Callable[[str], Path]) -> None:
    model = load_model(Classification, tiny_model("bert"), number_of_labels=2, dropout=None)
    with pytest.raises(InputError, match=r"'q_proj' matches no linear map.*attention_qv.*query"):
        target_modules(model, spec_of("bert").model, ("q_proj",))


@pytest.mark.parametrize(
    ("family", "chosen", "wanted", "why"),
    [
        (
            "albert",
            "bert",
            "attention_qv",
            r"role query at '\*\.attention\.self\.query', which",
        ),
        ("bloom", "llama", "all_linear", r"the role query at '\*\.self_attn\.q_proj', which"),
        ("bloom", "bloom", "typo", r"of NAME\. Valid are attention_qv"),
        ("bloom", "gpt2", "mlp_up", r"the role mlp_up at '\*\.mlp\.c_fc', which"),
    ],
)
def test_a_refused_target_names_what_this_model_has(
    family: str, chosen: str, wanted: str, why: str, sized_model: Callable[..., Path]
) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    folder = sized_model(family, **sizes, **({"n_head": 4} if family == "bloom" else {}))
    model = load_model(Classification, folder, number_of_labels=2, dropout=None)
    base = replace(compose(f"model={chosen}").model, name="NAME")
    with pytest.raises(
        InputError, match=rf"target={wanted!r} matches no linear map.*{why}"
    ) as told:
        target_modules(model, base, (wanted,))
    named = str(told.value).partition("Valid are ")[2].partition(";")[0].split(", ")
    assert len(named) >= 4
    for name in named:
        assert target_modules(model, base, (name,))
        assert name != wanted
    ours = compose(f"model={family}", f"model.source={folder}").model
    assert len(target_modules(model, ours, ("attention_qv",))) == 2


@pytest.mark.parametrize("rank", [17, 100])
def test_a_rank_above_the_map_is_refused(rank: int, tiny_model: Callable[[str], Path]) -> None:
    spec = compose("model=bert", f"method.rank={rank}")
    with pytest.raises(
        InputError, match=rf"method.rank={rank}: .*query maps 16 to 16.*from 1 to 16"
    ):
        build_model(spec, tiny_model("bert"), number_of_labels=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_weights_are_bit_identical_after_training_and_evaluation(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    model = build_model(
        spec_of(family, "method.target=all_linear"), tiny_model(family), number_of_labels=3
    )
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model(**inputs()).logits
    for _ in range(3):
        nn.functional.cross_entropy(model(**inputs()).logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model(**inputs()).logits
    assert (after - before).abs().max() > 0.01
    with merged(model), torch.no_grad():
        assert all(module.merged for _, module in lora_modules(model))
        torch.testing.assert_close(model(**inputs()).logits, after, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_merge_and_unmerge(family: str, tiny_model: Callable[[str], Path]) -> None:
    model = build_model(spec_of(family), tiny_model(family), number_of_labels=3)
    randomise_b(model)
    originals = {name: m.base.weight.clone() for name, m in lora_modules(model)}
    errors = {name: m.round_trip_error() for name, m in lora_modules(model)}
    apart = model(**inputs()).logits
    for _, module in lora_modules(model):
        module.merge()
    for _, module in lora_modules(model):  # a second time changes nothing
        module.merge()
    torch.testing.assert_close(model(**inputs()).logits, apart, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="merged"):
        next(lora_modules(model))[1].round_trip_error()
    for _, module in lora_modules(model):
        module.unmerge()
    for name, module in lora_modules(model):
        error = (module.base.weight - originals[name]).abs().max().item()
        assert error == errors[name]
        assert error < 1e-6
    assert max(errors.values()) > 0


def test_the_bias_of_the_base_map_is_kept() -> None:
    base = nn.Linear(6, 5)
    adapted = LoraLinear(base, lora_of(compose("method.rank=2")), "map")
    x = torch.randn(4, 6)
    torch.testing.assert_close(adapted(x), base(x))
    assert adapted.base.bias is base.bias


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: Conv1D(5, 6)])
def test_delta_is_out_by_in(make: Callable[[], nn.Module]) -> None:
    adapted = LoraLinear(make(), lora_of(compose("method.rank=2", "method.alpha=6")), "map")
    adapted.B_OR.data.normal_()
    assert adapted.delta_OI().shape == (5, 6)
    x = torch.randn(4, 6)
    expected = adapted.base(x) + x @ adapted.delta_OI().T
    torch.testing.assert_close(adapted(x), expected, rtol=1e-5, atol=1e-6)


def test_initialisations() -> None:
    torch.manual_seed(0)
    gaussian = LoraLinear(
        nn.Linear(900, 900), lora_of(compose("method.rank=50", "method.init=gaussian")), "map"
    )
    assert gaussian.A_RI.std().item() == pytest.approx(1 / 50, rel=0.02)
    kaiming = LoraLinear(nn.Linear(900, 900), lora_of(compose("method.rank=50")), "map")
    bound = 1 / 900**0.5
    assert kaiming.A_RI.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert kaiming.A_RI.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not kaiming.B_OR.any()
    assert not gaussian.B_OR.any()


def test_dropout_is_on_the_adapters_input_and_only_in_training() -> None:
    torch.manual_seed(0)
    adapted = LoraLinear(nn.Linear(64, 8), lora_of(compose("method.dropout=0.5")), "map")
    adapted.B_OR.data.normal_()
    x = torch.randn(2, 64)
    adapted.train()
    assert not torch.equal(adapted(x), adapted(x))
    adapted.eval()
    assert torch.equal(adapted(x), adapted(x))


def test_bf16_autocast_gives_finite_gradients_close_to_fp32(
    tiny_model: Callable[[str], Path],
) -> None:
    model = build_model(spec_of("bert"), tiny_model("bert"), number_of_labels=3)
    randomise_b(model)

    def gradients(enabled: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(**inputs()).logits
        nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 2])).backward()
        return [m.A_RI.grad.clone() for _, m in lora_modules(model) if m.A_RI.grad is not None]

    exact, rough = gradients(False), gradients(True)
    assert len(exact) == len(rough) == 4
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.1 * a.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_our_adapter_loads_in_peft(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    spec = spec_of(family, "method.target=all_linear", "method.scaling=alpha_over_sqrt_rank")
    ours = build_model(spec, tiny_model(family), number_of_labels=3)
    randomise_b(ours)
    spec.method.save(ours, tmp_path, spec=spec, base=tiny_model(family))
    torch.manual_seed(5)  # another head: PEFT must bring ours back
    base = load_model(Classification, tiny_model(family), number_of_labels=3, dropout=0.0)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(
        ours(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-6, atol=1e-6
    )


def test_add_lora_freezes_everything_else(tiny_model: Callable[[str], Path]) -> None:
    model = load_model(Classification, tiny_model("bert"), number_of_labels=2, dropout=None)
    path = "bert.encoder.layer.0.attention.self.query"
    add_lora(model, {path: lora_of(compose("method.rank=2"))})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.A_RI", f"{path}.B_OR"}
