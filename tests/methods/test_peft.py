"""Each PEFT kind trains, saves and loads correctly, or is refused by name."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.layers import peft_kinds
from lowrank_study.methods.layers.modules import head_parameters
from lowrank_study.methods.peft import LORA_DEFAULTS, PeftMethod
from lowrank_study.spec import RunSpec
from lowrank_study.spectra.adapter_updates import updates_of_adapter
from lowrank_study.sweeps.effort import Effort
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.optim import make_optimizer

SMALL: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in peft_kinds.TRAINED},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "OSF": {"effective_rank": 2},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TINYLORA": {"r": 2, "u": 4},
    "UNILORA": {"r": 2, "theta_d_length": 16},
    "VBLORA": {"r": 2, "num_vectors": 16, "vector_length": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}
"""Return options that fit a map from 16 to 16 features."""
VARIANTS: list[dict[str, Any]] = [
    {"r": 2, "use_dora": True},
    {"r": 2, "use_rslora": True, "lora_alpha": 3},
    *({"r": 2, "init_lora_weights": start} for start in ("pissa", "olora", "orthogonal", "mica")),
    {"r": 2, "rank_pattern": {"value": 3}, "alpha_pattern": {"1.attention.self.query": 1}},
    {"r": 2, "bias": "all"},
    {"r": 2, "modules_to_save": ["embeddings.LayerNorm"]},
]
READ = ("LORA", "LOHA", "LOKR", "VERA")
"""Kinds whose ΔW `open_adapter` reads; it refuses the others by name."""
CASES = [*SMALL.items(), *(("LORA", options) for options in VARIANTS)]
NAMES = [kind if options == SMALL[kind] else f"{kind} {options}" for kind, options in CASES]


@pytest.fixture(autouse=True)
def _libraries_of_one_kind(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Ignore warnings on BOFT's missing CUDA extension and FROD's sparse tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to load the CUDA extension|Setting boft")
        warnings.filterwarnings("ignore", "Sparse invariant checks")
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """Return a tiny BERT with nonzero biases, since zeros would hide changes to biases."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_model("bert"))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("bert_with_biases")
    model.save_pretrained(folder)
    for file in tiny_model("bert").glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@functools.cache
def composed(*overrides: str) -> RunSpec:
    return compose(
        *("model=bert", "model.dropout=0.0", "trainer.precision=fp32"),
        *("method=peft", "method.peft_type=LORA", *overrides),
    )


def spec_of(kind: str, options: dict[str, Any], *overrides: str) -> RunSpec:
    spec = composed(*overrides)
    assert isinstance(spec.method, PeftMethod)
    method = dataclasses.replace(spec.method, peft_type=kind, options=options)
    return dataclasses.replace(spec, method=method)


def scores(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 3  # T5's classifier reads at the end of a text
    scored: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return scored


def train(model: nn.Module, spec: RunSpec, *, steps: int) -> None:
    optimizer = make_optimizer(model.train(), spec)
    for _ in range(steps):
        nn.functional.cross_entropy(scores(model), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def reloaded(folder: Path, adapter: Path) -> nn.Module:
    """Load the base with transformers and a new random head, and the adapter with PEFT alone."""
    torch.manual_seed(5)
    base = load_model(Classification, folder, number_of_labels=3, dropout=0.0)
    return peft.PeftModel.from_pretrained(base, adapter).eval()


@pytest.mark.parametrize(("kind", "options"), CASES, ids=NAMES)
def test_a_kind_trains_its_parameters_and_loads_again(
    kind: str, options: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    spec = spec_of(kind, options, "method.learning_rate=1e-2")
    model = build_model(spec, bert, number_of_labels=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, spec, steps=4)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != torch.equal(parameter, before[name]), name
    spec.method.save(model, tmp_path, spec=spec, base=bert)
    again = reloaded(bert, tmp_path)
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=1e-6)
    if kind in READ:
        check_updates(model, bert, tmp_path)


def check_updates(model: nn.Module, base: Path, adapter: Path) -> None:
    """Compare ΔW as read from files with the live model's output for an identity matrix."""
    live = model.get_submodule("base_model.model")
    pretrained = load_model(Classification, base, number_of_labels=3, dropout=0.0)
    with open_adapter(adapter) as opened, open_weights(base) as weights, torch.no_grad():
        found = list(updates_of_adapter(opened, base=weights, roles={}, skipped={}))
        assert len(found) >= 4
        for update in found:
            module = live.get_submodule(update.name)
            rows = torch.cat([torch.eye(update.shape[1]), torch.zeros(1, update.shape[1])])
            answer = module(rows)
            delta_OI = (answer[:-1] - answer[-1]).T - pretrained.get_submodule(update.name).weight
            np.testing.assert_allclose(delta_OI.numpy(), update.dense(), rtol=0, atol=3e-7)


def test_ia3_on_an_unknown_architecture_names_the_missing_option(tmp_path: Path) -> None:
    folder = tiny_of("modernbert", tmp_path)
    with pytest.raises(InputError, match=r"feedforward_modules is missing, .* modernbert: .* \[\]"):
        build_model(spec_of("IA3", {}, "method.target=Wqkv"), folder, number_of_labels=3)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=NAMES)
def test_weight_decay_alone_changes_no_update(
    kind: str, options: dict[str, Any], bert: Path
) -> None:
    spec = spec_of(kind, options, "trainer.weight_decay=0.5", "method.learning_rate=0.1")
    model = build_model(spec, bert, number_of_labels=3).eval()
    head = head_parameters(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p not in head}
    optimizer = make_optimizer(model, spec)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter in head or torch.equal(parameter, before[name]), name
    assert all(p.ndim == 1 or p.norm() > 0 for p in head)


def test_weight_decay_pulls_an_adapter_towards_its_start(bert: Path) -> None:
    spec = spec_of("IA3", {}, "trainer.weight_decay=0.5", "method.learning_rate=0.1")
    model = build_model(spec, bert, number_of_labels=3)
    optimizer = make_optimizer(model, spec)
    scale = next(p for name, p in model.named_parameters() if "ia3_l" in name)
    assert torch.equal(scale, torch.ones_like(scale))
    scale.data.fill_(3.0)
    scale.grad = torch.zeros_like(scale)
    optimizer.step()
    torch.testing.assert_close(scale, torch.full_like(scale, 3.0 - 0.05 * 2.0))


def test_defaults_of_lora_are_those_of_peft() -> None:
    config = peft.LoraConfig()
    assert {name: getattr(config, name) for name in LORA_DEFAULTS} == LORA_DEFAULTS


def test_every_kind_of_this_peft_is_known() -> None:
    kinds = {kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    assert kinds == set(peft_kinds.TRAINED) | set(peft_kinds._REFUSED)
    for kind, options in (*peft_kinds._IGNORED.items(), *peft_kinds._ONLY_WITH.items()):
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        assert set(options) <= {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize("kind", sorted(peft_kinds._REFUSED))
def test_a_kind_that_peft_would_train_wrongly_is_refused(kind: str, bert: Path) -> None:
    with pytest.raises(InputError, match=rf"^method.peft_type={kind}: .* Valid: .*LOHA") as refused:
        build_model(spec_of(kind, {}), bert, number_of_labels=3)
    assert "\n" not in str(refused.value)


def test_a_kind_that_peft_lacks_is_refused(bert: Path) -> None:
    with pytest.raises(InputError, match=r"LORRA is not a PEFT method. Valid: .*LOHA"):
        build_model(spec_of("LORRA", {}), bert, number_of_labels=3)


REFUSED_OPTIONS = [
    ("LOHA", {"q": 2}, r"method.options.q is not an option of LOHA. Valid: alpha, .*, r, "),
    ("LORA", {"init_lora_weights": "eva"}, "'eva': it needs a pass over the data.*Valid: true"),
    ("LORA", {"init_lora_weights": "lora_ga"}, "'lora_ga': it needs a pass over the data"),
    ("LORA", {"init_lora_weights": "corda"}, "'corda': it needs a pass over the data"),
    ("LORA", {"init_lora_weights": "loftq"}, "'loftq': it starts from a quantised base"),
    ("LORA", {"init_lora_weights": "pissa_niter_4"}, "random decomposition"),
    ("LORA", {"init_lora_weights": False}, "random update"),
    ("LORA", {"use_dora": "no"}, "use_dora='no': a value like False is needed"),
    ("LORA", {"eva_config": {}}, "needs a pass over the data"),
    ("LORA", {"kasa_config": {}}, "needs a term in the loss"),
    ("LORA", {"rank_pattern": {"q_proj": 4}}, "'q_proj' matches none .* end in query, value"),
    ("LORA", {"rank_pattern": {"(": 4}}, r"'\(' is not a regular expression"),
    ("LORA", {"rank_pattern": 4}, "a mapping from module names"),
    ("LORA", {"r": 17}, "query maps 16 to 16 features"),
    ("LORA", {"target_modules": ["key"]}, "set method.target instead"),
    ("LORA", {"layers_to_transform": [0]}, "PEFT ignores it for modules given by their paths"),
    ("LORA", {"inference_mode": True}, "it is set here|nothing would be trained"),
    ("LORA", {"task_type": "CAUSAL_LM"}, "it is set here"),
    ("LORA", {"modules_to_save": ["norm"]}, "modules_to_save: the model has no module 'norm'"),
    ("LOHA", {"use_effective_conv2d": True}, "only to convolutions"),
    ("LOHA", {"rank_dropout": "much"}, "rank_dropout='much': a value like 0.0"),
    ("GRALORA", {"r": 3}, "PEFT can't put GRALORA with .*3.* on this model: "),
    ("OFT", {"oft_block_size": 4, "r": 0, "eps": 0.1}, "only if method.options.coft is True"),
    ("OFT", {"oft_block_size": 4, "r": 0, "module_dropout": 0.5}, "never applies it"),
    ("IA3", {"feedforward_modules": ["q_proj"]}, "feedforward_modules='q_proj' matches no linear"),
    ("IA3", {"feedforward_modules": ["mlp_up"]}, "should be a subset of `target_modules`"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED_OPTIONS)
def test_an_option_that_would_be_ignored_is_refused(
    kind: str, options: dict[str, Any], message: str, bert: Path
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        build_model(spec_of(kind, options), bert, number_of_labels=3)
    assert "\n" not in str(refused.value)


def test_every_option_in_the_tables_is_refused(bert: Path) -> None:
    model = load_model(Classification, bert, number_of_labels=3, dropout=0.0)

    def check(kind: str, options: dict[str, Any], message: str) -> None:
        spec = spec_of(kind, options)
        with pytest.raises(InputError, match=rf"^method.options.{message}"):
            spec.method.attach(model, spec.model)

    for kind, refused in peft_kinds._IGNORED.items():
        for option in refused:
            check(kind, {option: 3}, f"{option}: .*Valid for {kind}")
    for kind, conditions in peft_kinds._ONLY_WITH.items():
        for option, (other, value) in conditions.items():
            unmet = not value if isinstance(value, bool) else "full"
            check(kind, {option: 3, other: unmet}, f"{option}: .* only if method.options.{other}")


def test_feedforward_modules_are_named_as_targets_are(bert: Path) -> None:
    spec = spec_of("IA3", {"feedforward_modules": ["mlp_up"]}, "method.target=[query,mlp_up]")
    model = build_model(spec, bert, number_of_labels=3)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "ia3_l" in name}
    assert {shape for name, shape in shapes.items() if "query" in name} == {(16, 1)}
    assert {shape for name, shape in shapes.items() if "intermediate" in name} == {(1, 16)}


def test_the_examples_in_the_configuration_can_be_trained(bert: Path) -> None:
    text = (CONF_FOLDER / "method" / "peft.yaml").read_text()
    examples = [line.removeprefix("#   ") for line in text.splitlines() if "#   method" in line]
    assert len(examples) == 2
    for example in examples:
        overrides = [part.strip("'") for part in example.split(" ", 2)]
        build_model(compose("model=bert", *overrides), bert, number_of_labels=3)


@pytest.mark.parametrize("kind", ["ADAMSS", "BOFT", "FROD", "SHIRA", "UNILORA"])
def test_kinds_that_read_the_weights_can_be_counted_for_a_sweep(
    kind: str, tiny_overrides: list[str]
) -> None:
    """PEFT can't make these adapters on the meta device."""
    lora = compose(*tiny_overrides, "method.rank=2")
    assert (
        0
        < Effort().of(compose(*tiny_overrides, "method=peft", f"method.peft_type={kind}"))
        < (Effort().of(lora))
    )


HEADS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "bert": ({}, "[query,value]", {"classifier"}),
    "gpt2": ({"n_embd": 16, "n_layer": 2, "n_head": 2}, "c_attn", {"score"}),
    "deberta-v2": ({}, "[query_proj,value_proj]", {"pooler", "classifier"}),
    "modernbert": ({"global_attn_every_n_layers": 1}, "Wqkv", {"head", "classifier"}),
    "bart": (
        {
            "d_model": 16,
            **{f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers",)},
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")},
        },
        "[q_proj,v_proj]",
        {"classification_head"},
    ),
    "t5": (
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        "[q,v]",
        {"classification_head"},
    ),
}
"""Family: settings of a tiny model, the maps that are adapted, and its new modules."""


def tiny_of(family: str, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModel

    widths = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    of_t5 = family == "t5"
    config = AutoConfig.for_model(
        family,
        vocab_size=48,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **({} if of_t5 else {"max_position_embeddings": 64, "intermediate_size": 24, **widths}),
        **({"cls_token_id": 2, "sep_token_id": 3} if family == "modernbert" else {}),
        **HEADS[family][0],
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
@pytest.mark.parametrize("family", HEADS)
def test_every_new_weight_is_trained_saved_and_loaded(
    family: str, kind: str, tmp_path: Path
) -> None:
    folder = tiny_of(family, tmp_path / "base")
    _, target, heads = HEADS[family]
    options = {"feedforward_modules": []} if (family, kind) == ("modernbert", "IA3") else {}
    spec = spec_of(kind, options, f"method.target={target}", "method.learning_rate=1e-2")
    model = build_model(spec, folder, number_of_labels=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, spec, steps=3)
    trained = {
        name.removeprefix("base_model.model.").split(".")[0]
        for name, p in model.named_parameters()
        if "modules_to_save" in name and not torch.equal(p, before[name])
    }
    assert trained == heads
    spec.method.save(model, tmp_path / "adapter", spec=spec, base=folder)
    again = reloaded(folder, tmp_path / "adapter")
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=1e-6)
    fresh = load_model(Classification, folder, number_of_labels=3, dropout=0.0).eval()
    assert (scores(fresh) - scores(model)).abs().max() > 1e-3
