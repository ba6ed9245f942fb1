"""LoRA on the token embedding and the output head, tied or not, against PEFT."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lowrank_study.checkpoints import open_weights
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.methods.layers.linear import merged
from lowrank_study.methods.layers.lora import LoraEmbedding, add_lora, lora_modules
from lowrank_study.methods.layers.modules import token_embedding
from lowrank_study.spec import RunSpec
from lowrank_study.spectra.updates import FactoredUpdate
from lowrank_study.sweeps.effort import Effort
from lowrank_study.training.fit import fit
from lowrank_study.training.models import _warn_of_tied, build_model, check_fits
from lowrank_study.training.tracking import Tracker
from tests.training.test_vocabulary import lora, model_of

Overrides = Callable[..., list[str]]
IDS = torch.randint(0, 44, (3, 9), generator=torch.Generator().manual_seed(1))
TARGETS = {
    "llama": ["embed_tokens", "lm_head", "[embed_tokens,lm_head,q_proj]"],
    "gpt2": ["wte", "lm_head", "[wte,lm_head,attention_qv]"],
}
CASES = [
    (family, tied, target)
    for family, targets in TARGETS.items()
    for tied in (True, False)
    for target in targets
]


def spec_of(overrides: Overrides, family: str, *, tied: bool, target: str) -> RunSpec:
    settings = overrides(family, tie_word_embeddings=tied)
    return compose(*settings, f"method.target={target}", "method.rank=3")


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for _, module in lora_modules(model):
        for factor in (module.A_RI, module.B_OR):
            factor.data.normal_(std=0.3, generator=generator)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence PEFT, which warns of tied weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_peft(base: nn.Module, folder: Path) -> Any:
    with without_warnings():
        return peft.PeftModel.from_pretrained(base, folder).eval()


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_equal_to_peft_in_outputs_and_gradients(name: str) -> None:
    """The models are tied, untied, and tied with scaled embeddings."""
    ours, plain = model_of(name), model_of(name)
    names = [token_embedding(ours), "lm_head", "model.layers.0.self_attn.q_proj"]
    add_lora(ours, {each: lora(rank=3, scaling=2.0) for each in names if each})
    randomise(ours)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=names, task_type="CAUSAL_LM")
    with without_warnings():
        theirs = peft.get_peft_model(plain, config)
    factors = dict(theirs.named_modules())

    def pairs() -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        for path, module in lora_modules(ours):
            adapted = factors[f"base_model.model.{path}"]
            if isinstance(module, LoraEmbedding):
                yield module.A_RI, adapted.lora_embedding_A["default"]
                yield module.B_OR, adapted.lora_embedding_B["default"]
            else:
                yield module.A_RI, adapted.lora_A["default"].weight
                yield module.B_OR, adapted.lora_B["default"].weight

    for mine, other in pairs():
        other.data.copy_(mine)
    ours.double()
    theirs.double()
    scores = [model(input_ids=IDS).logits.flatten(0, 1) for model in (ours, theirs)]
    torch.testing.assert_close(*scores, rtol=1e-12, atol=1e-12)
    for each in scores:
        nn.functional.cross_entropy(each, IDS.flatten()).backward()
    for mine, other in pairs():
        assert mine.grad is not None
        assert mine.grad.abs().max() > 0
        assert (mine.grad - other.grad).norm() / other.grad.norm() < 1e-10


def test_an_embedding_starts_as_in_peft() -> None:
    model = model_of("llama")
    torch.manual_seed(0)
    add_lora(model, {"model.embed_tokens": lora(rank=30)})
    [(_, embedding)] = lora_modules(model)
    assert embedding.A_RI.shape == (30, 48)
    assert not embedding.A_RI.any()
    assert embedding.B_OR.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("family", "tied", "target"), CASES)
def test_peft_loads_a_saved_adapter_and_spectra_read_its_updates(
    family: str, tied: bool, target: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = spec_of(causal_overrides, family, tied=tied, target=target)
    folder = model_folder(spec.model)
    ours = build_model(spec, folder, number_of_labels=0).eval()
    randomise(ours)
    spec.method.save(ours, tmp_path / "adapter", spec=spec, base=folder)
    theirs = in_peft(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    base = logits_of(AutoModelForCausalLM.from_pretrained(folder))
    assert (logits_of(ours) - base).abs().max() > 0.01
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=0, atol=1e-5)
    with open_weights(folder) as weights:
        updates = {
            update.name: update
            for update in spec.method.updates(
                tmp_path / "adapter", base=weights, roles=spec.model.roles_by_path
            )
        }
    layers = dict(lora_modules(ours))
    vocabulary = layers.keys() & {"lm_head", "model.embed_tokens", "transformer.wte"}
    assert vocabulary
    for name in vocabulary:
        delta = layers[name].delta_OI()
        tokens_first = delta.T if isinstance(layers[name], LoraEmbedding) else delta
        update = updates[name]
        assert isinstance(update, FactoredUpdate)
        found = update.scaling * update.B_OR @ update.A_RI
        np.testing.assert_allclose(found, tokens_first.numpy(), rtol=0, atol=1e-6)
        assert update.W0_OI is not None
        np.testing.assert_array_equal(update.W0_OI, layers[name].weight.numpy())


@pytest.mark.parametrize("target", TARGETS["llama"])
def test_merging_leaves_a_tied_weight_alone(target: str, causal_overrides: Overrides) -> None:
    spec = spec_of(causal_overrides, "llama", tied=True, target=target)
    model: Any = build_model(spec, model_folder(spec.model), number_of_labels=0).eval()
    randomise(model)
    apart = logits_of(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with merged(model):
        torch.testing.assert_close(logits_of(model), apart, rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    for _, module in lora_modules(model):
        module.merge()
    torch.testing.assert_close(logits_of(model), apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS["llama"])
def test_the_documented_merge_of_a_tied_model_keeps_its_outputs(
    target: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = spec_of(causal_overrides, "llama", tied=True, target=target)
    folder = model_folder(spec.model)
    ours = build_model(spec, folder, number_of_labels=0).eval()
    randomise(ours)
    spec.method.save(ours, tmp_path / "adapter", spec=spec, base=folder)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    base.lm_head.weight.data = base.get_input_embeddings().weight.data.clone()
    in_peft(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loaded.config.tie_word_embeddings is False
    torch.testing.assert_close(logits_of(loaded), logits_of(ours), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_run_has_the_losses_that_peft_gives(
    tied: bool, causal_overrides: Overrides, tmp_path: Path
) -> None:
    settings = causal_overrides("llama", tie_word_embeddings=tied)
    target = "method.target=[embed_tokens,lm_head,attention_qv]"
    spec = compose(*settings, target, "trainer.epochs=4", "trainer.evaluations=4")
    result = fit(spec, checkpoint_folder=tmp_path / "adapter", tracker=Tracker())
    folder = model_folder(spec.model)
    first, *_, last = (point["loss"] for point in result.record["curve"])
    assert last < first - 0.1
    adapted = in_peft(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    trained = [p for name, p in adapted.named_parameters() if "lora_" in name]
    assert result.record["adapter_parameters"] == sum(p.numel() for p in trained)
    split, losses = splits_of(spec).test, []
    for start, end in pairwise(split.offsets):
        ids = torch.from_numpy(split.ids[start:end].astype(np.int64))
        with torch.no_grad():
            of_token = nn.functional.cross_entropy(
                adapted(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none"
            )
        losses.append(float(of_token[split.scored[start + 1 : end]].sum()))
    assert result.test is not None
    _, document = np.unique(split.labels, return_inverse=True)
    expected = np.bincount(document, weights=losses)
    np.testing.assert_allclose(result.test.losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_target_is_announced(
    tied: bool, causal_overrides: Overrides, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_tied.cache_clear()
    with caplog.at_level(logging.WARNING):
        for target in ("attention_qv", "lm_head", "lm_head"):
            check_fits(spec_of(causal_overrides, "llama", tied=tied, target=target))
    expected = [
        "tiny ties its output head to its token embedding. The adapter changes only lm_head"
    ]
    assert [each.getMessage().partition(",")[0] for each in caplog.records] == expected * tied


@pytest.mark.parametrize(("family", "table"), [("llama", "embed_tokens"), ("gpt2", "wte")])
def test_a_wrong_target_lists_head_and_embedding(
    family: str, table: str, causal_overrides: Overrides
) -> None:
    spec = spec_of(causal_overrides, family, tied=True, target="embeddings")
    with pytest.raises(InputError, match=rf"'embeddings' matches no .*, lm_head, .*{table};"):
        build_model(spec, model_folder(spec.model), number_of_labels=0)


def test_a_rank_above_the_width_is_refused(causal_overrides: Overrides) -> None:
    spec = compose(*causal_overrides(), "method.target=embed_tokens", "method.rank=17")
    with pytest.raises(InputError, match="embed_tokens maps 48 to 16 features, so ranks from 1"):
        build_model(spec, model_folder(spec.model), number_of_labels=0)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_table_of_two_stacks_is_no_target(family: str, sized_model: Callable[..., Path]) -> None:
    sizes = {
        "t5": {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4},
        "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    }[family]
    model = AutoModelForSequenceClassification.from_pretrained(sized_model(family, **sizes))
    assert token_embedding(model) is None


def test_an_embedding_costs_its_rank_and_not_its_vocabulary(causal_overrides: Overrides) -> None:
    def cost(target: str) -> int:
        spec = spec_of(causal_overrides, "llama", tied=False, target=target)
        return Effort().a_token(spec)[0]

    maps = cost("q_proj"), cost("[q_proj,o_proj]"), cost("[q_proj,embed_tokens]")
    # Each of two maps reads and writes 16 features. A token reads one column of the embedding's A.
    assert (maps[1] - maps[0]) == 4 * (maps[2] - maps[0]) > 0
