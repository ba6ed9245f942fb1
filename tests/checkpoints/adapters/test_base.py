"""Updates read from adapters on tied and renamed models equal those of the live model.

An identity matrix as input reads a live module's weight: the embedding of every token, and the
head of every unit vector. The update read from disk must be that weight minus W0.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError
from lowrank_study.spectra.adapter_updates import updates_of_adapter
from lowrank_study.spectra.updates import Update

TOKENS, DIMENSIONS = 20, 8
TEXT = {
    "vocab_size": TOKENS,
    "hidden_size": DIMENSIONS,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
Deltas = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def read_updates(adapter: Path, base: Path) -> tuple[dict[str, Update], dict[str, str]]:
    """Return the updates on disk by name, and what was skipped."""
    skipped: dict[str, str] = {}
    with open_adapter(adapter) as opened, open_weights(base) as weights:
        assert opened.left_out == []
        updates = updates_of_adapter(opened, base=weights, roles={}, skipped=skipped)
        return {update.name: update for update in updates}, skipped


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Any]:
    """Save a base, add an adapter with PEFT, change its values and save it."""

    def make(
        model: Any, config: peft.PeftConfig, *, tokens: int | None = None
    ) -> tuple[Any, Path, Path]:
        model.save_pretrained(tmp_path / "base")
        live = copy.deepcopy(model)
        if tokens is not None:
            live.resize_token_embeddings(tokens, mean_resizing=False)
        live.name_or_path = live.config._name_or_path = str(tmp_path / "base")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on tied weights
            live = peft.get_peft_model(live, config)
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in live.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.randn_like(parameter))
            live.save_pretrained(tmp_path / "adapter")
        return live.double(), tmp_path / "adapter", tmp_path / "base"

    return make


def tied_llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=True))


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **options)


HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
Q: dict[str, Any] = {"target_modules": ["q_proj"]}
BOTH = ["embed_tokens", "lm_head"]
TYING = {"ensure_weight_tying": True}
TIED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "LoRA on the head": ({"target_modules": ["lm_head"]}, {HEAD}),
    "LoRA on the embedding": ({"target_modules": ["embed_tokens"]}, {EMBEDDING}),
    "LoRA on both": ({"target_modules": BOTH}, {HEAD, EMBEDDING}),
    "LoRA on both, tied": ({"target_modules": ["embed_tokens"]} | TYING, {HEAD}),
    "the head saved": (Q | {"modules_to_save": ["lm_head"]}, {HEAD}),
    "the embedding saved": (Q | {"modules_to_save": ["embed_tokens"]}, {EMBEDDING}),
    "both saved": (Q | {"modules_to_save": BOTH}, {HEAD, EMBEDDING}),
    "both saved, tied": (Q | {"modules_to_save": ["embed_tokens"]} | TYING, {HEAD}),
    "LoRA on the embedding, the head saved": (
        {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
        {HEAD, EMBEDDING},
    ),
    "rows of tokens": (Q | {"trainable_token_indices": [3, 5]}, {EMBEDDING}),
}


@pytest.mark.parametrize("setup", TIED)
def test_a_tied_model_s_updates_are_those_of_the_live_model(train: Any, setup: str) -> None:
    options, expected = TIED[setup]
    model = tied_llama()
    W0 = model.get_input_embeddings().weight.detach().double().numpy()
    live, adapter, base = train(model, lora(**options))
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    inner = live.base_model.model
    with torch.no_grad():
        probed = {
            EMBEDDING: inner.get_input_embeddings()(torch.arange(TOKENS)).numpy() - W0,
            HEAD: inner.get_output_embeddings()(torch.eye(DIMENSIONS).double()).T.numpy() - W0,
        }
    updates, skipped = read_updates(adapter, base)
    assert {name for name in updates if "q_proj" not in name} == expected
    for name in expected:
        np.testing.assert_allclose(updates[name].dense(), probed[name], rtol=0, atol=1e-12)
        W0_read = updates[name].W0_OI
        assert W0_read is not None
        np.testing.assert_array_equal(W0_read, W0)
    for name in {HEAD, EMBEDDING} - expected:
        if np.abs(probed[name]).max() > 1e-5:  # one tied matrix, counted once
            np.testing.assert_allclose(probed[name], probed[next(iter(expected))], atol=1e-12)
    assert set(skipped.values()) <= {"the same as lm_head (tied), counted there"}


def test_a_tied_head_is_flagged(train: Any) -> None:
    _, adapter, base = train(tied_llama(), lora(target_modules=["lm_head"]))
    with open_adapter(adapter) as opened, open_weights(base) as weights:
        opened.check_base(weights)
        assert "lm_head is tied: its W0 is model.embed_tokens.weight" in opened.flags


def test_a_head_that_the_config_does_not_tie_is_missing(
    write_model: Any, write_adapter: Any
) -> None:
    factors = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, 4),
        "base_model.model.lm_head.lora_B.weight": torch.ones(9, 2),
    }
    path = write_adapter(factors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    stored = {"model.embed_tokens.weight": torch.ones(9, 4)}
    for number, (config, tied) in enumerate(
        (
            ({"tie_word_embeddings": False}, False),
            ({"tie_word_embeddings": True}, True),
            ({"text_config": {"tie_word_embeddings": True}}, True),
            ({}, True),
        )
    ):
        base = write_model(stored, {"model_type": "x"} | config, folder=f"base{number}")
        with open_adapter(path) as adapter, open_weights(base) as weights:
            if tied:
                assert adapter.base_tensor("lm_head", weights) == "model.embed_tokens.weight"
                continue
            with pytest.raises(InputError, match="module lm_head is not in the base"):
                adapter.check_base(weights)


@pytest.mark.parametrize(
    ("module", "stored", "found"),
    [
        ("lm_head", "transformer.wte.weight", True),  # GPT-2
        ("cls.predictions.decoder", "bert.embeddings.word_embeddings.weight", True),
        ("encoder.embed_tokens", "shared.weight", True),  # T5, BART
        ("shared", "model.decoder.embed_tokens.weight", True),
        ("proj_out", "model.decoder.embed_tokens.weight", True),  # Whisper
        ("lm_head", "language_model.model.embed_tokens.weight", True),  # Gemma 3
        ("output", "token_embd.weight", True),  # GGUF
        ("model.embed_tokens", "transformer.wte.weight", False),  # another model's
        ("transformer.proj_out", "model.embed_tokens.weight", False),  # no head, but Flux's
        ("model.layers.0.mlp.up_proj", "model.embed_tokens.weight", False),
    ],
)
def test_a_head_or_a_shared_embedding_is_found_where_it_is_stored(
    write_model: Any, write_adapter: Any, module: str, stored: str, found: bool
) -> None:
    factors = {f"{module}.lora_A.weight": torch.ones(2, 4)}
    factors |= {f"{module}.lora_B.weight": torch.ones(9, 2)}
    path = write_adapter(factors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    base = write_model({stored: torch.ones(9, 4), "norm.weight": torch.ones(4)})
    with open_adapter(path) as adapter, open_weights(base) as weights:
        if found:
            assert adapter.base_tensor(module, weights) == stored
            return
        with pytest.raises(InputError, match="is not in the base model"):
            adapter.check_base(weights)


def test_a_resized_vocabulary_brings_its_own_base_layer(
    write_model: Any, write_adapter: Any
) -> None:
    torch.manual_seed(0)
    W0 = torch.randn(9, 4)
    grown = torch.cat([W0, torch.randn(2, 4)])
    name = "base_model.model.model.embed_tokens"
    tensors = {
        f"{name}.base_layer.weight": grown,
        f"{name}.lora_embedding_A": torch.randn(2, 11),
        f"{name}.lora_embedding_B": torch.randn(4, 2),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    base = write_model({"model.embed_tokens.weight": W0}, {"model_type": "llama"})
    with open_adapter(write_adapter(tensors, config)) as adapter, open_weights(base) as weights:
        W0_read = adapter.base_matrix("model.embed_tokens", weights)
        np.testing.assert_array_equal(W0_read, grown.double().numpy())
        assert adapter.saved_weights() == []
        assert any("9 rows before, 11 after" in flag for flag in adapter.flags)
    tensors[f"{name}.base_layer.weight"] = grown + 1
    path = write_adapter(tensors, config, folder="other")
    with open_adapter(path) as adapter, open_weights(base) as weights:
        adapter.check_base(weights)
        assert any("9 of 9 rows of the base layer" in flag for flag in adapter.flags)


def test_new_tokens_have_no_w0_and_the_others_are_compared(train: Any) -> None:
    model = tied_llama()
    W0 = model.get_input_embeddings().weight.detach().double().numpy()
    config = lora(target_modules=["q_proj"], trainable_token_indices=[TOKENS + 1, 3, TOKENS])
    live, adapter, base = train(model, config, tokens=TOKENS + 2)
    with torch.no_grad():
        rows = live.base_model.model.get_input_embeddings()(torch.arange(TOKENS)).numpy()
    updates, _ = read_updates(adapter, base)
    np.testing.assert_allclose(updates[HEAD].dense(), rows - W0, rtol=0, atol=1e-12)
    assert np.flatnonzero(updates[HEAD].dense().any(axis=1)).tolist() == [3]
    with open_adapter(adapter) as opened, open_weights(base) as weights:
        assert opened.extra_rows("model.embed_tokens.weight", weights) == 2


@pytest.mark.parametrize(
    "name",
    [
        "Qwen2_5_VLForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "ViTForImageClassification",
    ],
)
def test_an_adapter_s_names_are_found_in_its_own_base(
    train: Any, random_model: Callable[[str], Any], name: str
) -> None:
    model = random_model(name)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", exclude_modules="head")
    live, adapter, base = train(model, config)
    stored = load_file(base / "model.safetensors")
    before = {key: value.double() for key, value in model.state_dict().items()}
    merged = live.merge_and_unload().state_dict()
    with open_adapter(adapter) as opened, open_weights(base) as weights:
        assert opened.left_out == []
        assert not all(f"{module}.weight" in stored for module in opened.modules())
        for module in opened.modules():
            W0 = before[f"{module}.weight"].flatten(1).numpy()
            np.testing.assert_array_equal(opened.base_matrix(module, weights), W0)
            expected = merged[f"{module}.weight"].flatten(1).numpy() - W0
            delta = opened.delta(module, weights)
            np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-12)


def test_the_name_of_an_adapter_is_removed_from_the_keys(train: Any) -> None:
    _, adapter, base = train(
        tied_llama(), lora(target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    expected, _ = read_updates(adapter, base)
    path = adapter / "adapter_model.safetensors"
    named = {
        key.replace(".weight", ".default.weight")
        if "lora_" in key
        else key.replace("lm_head.", "lm_head.modules_to_save.default."): value
        for key, value in load_file(path).items()
    }
    save_file(named, path)
    found, _ = read_updates(adapter, base)
    assert found.keys() == expected.keys()
    for name, update in found.items():
        np.testing.assert_array_equal(update.dense(), expected[name].dense())


def test_two_adapters_in_one_file_are_refused(write_adapter: Any) -> None:
    tensors = {
        f"base_model.model.q.lora_{part}.{name}.weight": torch.ones(2, 2)
        for part in "AB"
        for name in ("first", "second")
    }
    path = write_adapter(tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    with pytest.raises(InputError, match="holds the adapters first, second in one file"):
        open_adapter(path)
