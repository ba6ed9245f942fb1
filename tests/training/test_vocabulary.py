"""Losses and gradients of tokens, computed without keeping logits, are those of the plain path."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from lowrank_study import native
from lowrank_study.data.splits import Split
from lowrank_study.methods.layers.linear import is_linear, round_frozen
from lowrank_study.methods.layers.lora import LoraLinear, add_lora
from lowrank_study.methods.layers.modules import token_embedding
from lowrank_study.methods.lora import Lora
from lowrank_study.tasks.language_modelling import LanguageModelling
from lowrank_study.training import vocabulary
from lowrank_study.training.batches import Batch, batch_of
from lowrank_study.training.packing import Pack
from lowrank_study.training.unpadded import can_unpad
from lowrank_study.training.vocabulary import cross_entropy, token_losses

CPU = torch.device("cpu")
LENGTHS = [5, 17, 2, 9]
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,  # large: a wrong mask or position shows
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "vocab_size": 48, "pad_token_id": 0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**GROUPED, **WINDOW, "use_sliding_window": True}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "gemma2": (
        "gemma2",
        {**GROUPED, **WINDOW, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
    ),
    "gpt2": ("gpt2", {**GPT2, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}),
    "granite": ("granite", {**SIZES, "num_key_value_heads": 2, "logits_scaling": 3.0}),
    "cohere": ("cohere", {**SIZES, "num_key_value_heads": 2, "logit_scale": 0.3}),
    "opt": (
        "opt",
        {
            **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
            **{
                "ffn_dim": 64,
                "word_embed_proj_dim": 32,
                "init_std": 0.3,
                "max_position_embeddings": 64,
            },
        },
    ),
    "gpt_neox": ("gpt_neox", {**SIZES, "rotary_pct": 0.5}),
    "phi3": ("phi3", {**SIZES, "num_key_value_heads": 2, "sliding_window": 5}),
    "gpt_oss": (
        "gpt_oss",
        {**GROUPED, **WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}
OPTIONS = {"dropout": 0.0, "attention_dropout": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def documents() -> Batch:
    """Return documents, of which the first tokens are not scored, as in an instruction."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    scored = np.ones(offsets[-1], dtype=bool)
    for start, length in zip(offsets, LENGTHS, strict=False):
        scored[start : start + 1 + length // 3] = False
    split = Split(
        ids=np.random.default_rng(0).integers(4, 48, offsets[-1]).astype(np.int32),
        types=np.zeros(offsets[-1], dtype=np.int8),
        offsets=offsets.astype(np.int64),
        labels=np.arange(len(LENGTHS)),
        scored=scored,
        text_bytes=np.array(LENGTHS),
        is_right=np.ones(len(LENGTHS), dtype=bool),
    )
    return batch_of(split, np.arange(len(LENGTHS)))


@cache
def _model(name: str) -> nn.Module:
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes)
    for option, value in OPTIONS.items():
        if hasattr(config, option):
            setattr(config, option, value)
    config.embd_pdrop = 0.0
    model: Any = AutoModelForCausalLM.from_config(config)
    model.task = LanguageModelling
    assert isinstance(model, nn.Module)
    return model


def model_of(name: str) -> nn.Module:
    return copy.deepcopy(_model(name)).requires_grad_(True)


def lora(rank: int = 2, scaling: float = 1.0) -> Lora:
    return Lora(
        learning_rate=1e-3,
        rank=rank,
        alpha=scaling * rank,
        scaling_rule="alpha_over_rank",
        dropout=0.0,
        init="gaussian",
        init_batches=None,
        stable_gamma=None,
        learning_rate_ratio=None,
        rank_pattern=None,
        alpha_pattern=None,
        names_scaling=None,
        target=("all",),
    )


def with_lora(
    model: nn.Module, *, rank: int, seed: int, head: bool = True, embedding: bool = False
) -> nn.Module:
    """Put LoRA, whose update is not 0, beside every linear map, also beside the vocabulary's."""
    torch.manual_seed(seed)
    table = token_embedding(model)
    names = [
        name
        for name, module in model.named_modules()
        if (is_linear(module) and (head or name != "lm_head")) or (embedding and name == table)
    ]
    add_lora(model, dict.fromkeys(names, lora(rank)))
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(
                module.A_RI if module.A_RI.count_nonzero() == 0 else module.B_OR, std=0.1
            )
    return model


def pack_of(*models: nn.Module, reference: bool = False) -> Pack:
    return Pack(models, device=CPU, pad_id=0, sample=documents(), reference=reference)


def gradients(pack: Pack, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses of one run in training, and its gradients of their mean."""
    losses_RS = pack.scores(documents())
    (losses_RS.sum() / documents().scored_T.sum()).backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return losses_RS.detach(), found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-5, atol=1e-5 * max(largest, 1.0), msg=name
        )


@pytest.fixture(autouse=True)
def _some_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_LOGITS", 7 * 48)


@pytest.mark.parametrize("method", ["full", "lora", "lora_and_head", "lora_and_both"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_padded_texts(name: str, method: str) -> None:
    def prepared() -> nn.Module:
        model = model_of(name)
        if method == "full":
            return model
        both = method == "lora_and_both"
        return with_lora(model, rank=2, seed=1, head=method != "lora", embedding=both)

    stock, ours = prepared(), prepared()
    assert can_unpad(ours)
    expected, wanted = gradients(pack_of(stock, reference=True), stock)
    found, got = gradients(pack_of(ours), ours)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_equal(got, wanted)


@pytest.mark.parametrize("tokens", [1, 1000], ids=["alone", "together"])
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2", "gpt_oss"])
def test_texts_beyond_the_window_have_the_loss_that_transformers_computes(
    name: str, tokens: int
) -> None:
    stock, ours, batch = model_of(name), model_of(name), documents()
    losses = 0.0
    for text in batch.parts(1):  # by the library's own loss
        labels_T = torch.where(text.scored_T, text.ids_T, -100)
        mean = stock(input_ids=text.ids_T[None], labels=labels_T[None]).loss
        (loss := mean * text.scored_T.sum()).backward()
        losses += loss.item()
    pack = pack_of(ours)
    found = [pack.scores(part).sum() for part in batch.parts(tokens)]
    torch.stack(found).sum().backward()  # type: ignore[no-untyped-call]
    assert sum(each.item() for each in found) == pytest.approx(losses, rel=1e-5)
    assert_equal(*({n: p.grad for n, p in m.named_parameters()} for m in (ours, stock)))  # type: ignore[misc]


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_gives_the_losses_of_training(name: str) -> None:
    model = model_of(name)
    pack = pack_of(model)
    with torch.inference_mode():
        found = pack.scores_of(0, documents())
    torch.testing.assert_close(found, pack.scores(documents())[0].detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_vocabulary", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_each_run_of_a_pack_is_the_run_alone(name: str, with_vocabulary: bool) -> None:
    options = {"head": with_vocabulary, "embedding": with_vocabulary}

    def models() -> list[nn.Module]:
        return [with_lora(model_of(name), rank=rank, seed=rank, **options) for rank in (1, 2, 5)]

    packed = models()
    pack = pack_of(*packed)
    pack.scores(documents()).sum().backward()  # type: ignore[no-untyped-call]
    for model, alone in zip(packed, models(), strict=True):
        pack_of(alone).scores(documents()).sum().backward()  # type: ignore[no-untyped-call]
        assert_equal(
            {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
            {n: p.grad for n, p in alone.named_parameters() if p.grad is not None},
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("words", [7, 64, 100, 49152])
@pytest.mark.skipif(native.library("cross_entropy.c") is None, reason="no C compiler")
def test_native_code_gives_pytorchs_numbers(
    words: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (8.0 * torch.randn(2, 5, words, generator=generator)).to(dtype)
    logits[0, 0, 0], logits[1, 1, 1] = 90.0, -torch.inf
    targets = torch.randint(0, words, (5,), generator=generator)
    found = cross_entropy(logits, targets, with_gradient=True)
    monkeypatch.setattr(native, "wanted", False)
    expected = cross_entropy(logits, targets, with_gradient=True)
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=2e-6)
    of_exact = exact.exp() - functional.one_hot(targets, words)
    for _, gradient in (found, expected):
        assert gradient is not None
        tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-3}[dtype]
        torch.testing.assert_close(gradient.double(), of_exact, rtol=2e-2, atol=tolerance)


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "torch"])
def test_a_likely_word_does_not_swallow_the_many_unlikely_ones(
    is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such sums were off by 4e-5 in log_softmax on AVX2, and gradients by a thousandth."""
    monkeypatch.setattr(native, "wanted", is_native)
    logits = 2.0 * torch.randn(1, 64, 49152, generator=torch.Generator().manual_seed(0))
    logits[..., 5] = 12.0
    targets = torch.full((64,), 5)
    losses, gradient = cross_entropy(logits, targets, with_gradient=True)
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(losses.double(), -exact[..., 5], rtol=0, atol=3e-6)
    assert gradient is not None
    assert gradient.double().sum(-1).abs().max() < 3e-6


def test_a_logit_that_is_not_a_number_gives_no_finite_loss() -> None:
    logits = torch.zeros(1, 2, 100)
    logits[0, 1, 70] = torch.nan
    losses, _ = cross_entropy(logits, torch.tensor([1, 1]), with_gradient=True)
    assert losses.isfinite().tolist() == [[True, False]]


def test_no_tensor_of_all_logits_is_made() -> None:
    """The head sees at most the tokens that fit, and never those that are not scored."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(48, 8), torch.randn(2, 20, 8, requires_grad=True)
    seen: list[int] = []

    def logits_of(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[0] * hidden.shape[1])
        return hidden @ weight.T

    targets = torch.arange(20)
    losses = token_losses(hidden, targets, logits_of=logits_of, words=48, trained=[])
    losses.square().sum().backward()  # type: ignore[no-untyped-call]
    assert max(seen) <= 7
    assert sum(seen) == 40
    found, hidden.grad = hidden.grad, None
    logits = (hidden @ weight.T).flatten(0, 1)
    plain = functional.cross_entropy(logits, targets.repeat(2), reduction="none").view(2, 20)
    plain.square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-5, atol=1e-5)


def test_a_rounded_head_gives_autocasts_numbers_and_words_are_looked_up_in_fp32() -> None:
    model, plain = (with_lora(model_of("llama"), rank=2, seed=1, head=False) for _ in range(2))
    head: Any = model.lm_head
    table: Any = model.get_input_embeddings().weight  # type: ignore[operator]
    before = table.detach().clone()
    assert torch.equal(head.weight, before)
    pack, other = pack_of(model), pack_of(plain)
    round_frozen(model)
    assert table.dtype == torch.float32
    assert torch.equal(table, before)
    assert torch.equal(head.weight, before.bfloat16())
    found = []
    for each in (pack, other):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = each.scores(documents())
        losses.sum().backward()  # type: ignore[no-untyped-call]
        found.append(losses.detach())
    assert torch.equal(*found)
    head.weight.data.zero_()  # the losses become those of equal logits
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = pack.scores_of(0, documents())
    torch.testing.assert_close(losses, torch.full_like(losses, float(np.log(48))))
    assert_equal(
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        {n: p.grad for n, p in plain.named_parameters() if p.grad is not None},
    )
