"""Every architecture trains on both paths, and loads with transformers or PEFT alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.data.tokenizer import load_tokenizer
from lowrank_study.errors import InputError
from lowrank_study.spec import RunSpec
from lowrank_study.training import memory
from lowrank_study.training.fit import fit
from lowrank_study.training.member import FitResult
from lowrank_study.training.models import model_without_weights
from lowrank_study.training.tracking import Tracker
from lowrank_study.training.unpadded import can_unpad

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "initializer_range": 0.3,  # large: a wrong mask or position shows
    "cls_token_id": 2,
    "sep_token_id": 3,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "initializer_range": 0.3}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
BART = {
    f"{side}_{what}": size
    for side in ("encoder", "decoder")
    for what, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 24))
}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
FAST: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SIZES),
    "roberta": ("roberta", SIZES),
    "xlm-roberta": ("roberta", SIZES),
    "distilbert": (
        "distilbert",
        {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "initializer_range": 0.3},
    ),
    "albert": ("albert", {**SIZES, "embedding_size": 8}),
    "electra": ("electra", {**SIZES, "embedding_size": 8}),
    "modernbert": ("modernbert", {**SIZES, "local_attention": 6, "global_attn_every_n_layers": 2}),
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", SIZES),
    "opt": ("opt", {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3}),
    "llama": ("llama", GROUPED),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("qwen", {**SIZES, "num_key_value_heads": 2}),
    "qwen3": ("qwen", {**GROUPED, **WINDOW, "use_sliding_window": True}),
    "gemma": ("gemma", GROUPED),
    "gemma2": ("gemma", {**GROUPED, **WINDOW, "attn_logit_softcapping": 0.5}),
    "gemma3_text": ("gemma", {**GROUPED, **WINDOW}),
    "phi3": ("phi3", {**SIZES, "num_key_value_heads": 2, "sliding_window": 5}),
    "gpt_oss": (
        "llama method.target=attention_all",
        {**GROUPED, **WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "mpnet": ("mpnet", SIZES),
    "deberta-v2": ("deberta", {**SIZES, **DEBERTA}),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "falcon": ("falcon", SIZES),
    "t5": ("t5", {**T5, "decoder_start_token_id": 0}),
    "bart": ("bart", {"d_model": 16, "init_std": 0.3, "decoder_start_token_id": 3, **BART}),
}
REFUSED = {"convbert": ("bert", SIZES), "fnet": ("bert method=full", SIZES)}
EVERY = {**FAST, **PADDED}


@pytest.fixture(autouse=True)
def _keep_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Avoid garbage collection, which takes longer than these runs in a process with many tests."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CSV with texts of 1 to 40 words, much longer than the models' windows."""
    generator = random.Random(0)
    lines = ["text,verdict"]
    for row in range(72):
        words = generator.choices(
            [f"word{n}" for n in range(40)], k=generator.choice([1, 2, 5, 12, 40])
        )
        lines.append(f"{' '.join(words)},{'up' if row % 2 else 'down'}")
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def spec_of(texts_file: Path, sized_model: Callable[..., Path]) -> Callable[..., RunSpec]:
    """Return a run on a small random model of a family, made once."""

    @cache
    def folder_of(family: str) -> Path:
        _, sizes = {**EVERY, **REFUSED}[family]
        return sized_model(family, **sizes)

    def give(family: str, *overrides: str) -> RunSpec:
        model, _ = {**EVERY, **REFUSED}[family]
        return compose(
            *f"model={model}".split(),
            f"model.source={folder_of(family)}",
            "model.dropout=0.0",
            "task=file",
            f"task.source={texts_file}",
            "task.label_column=verdict",
            "task.train_size=32",
            "task.validation_size=8",
            "task.test_size=24",
            "task.max_length=64",
            "method.learning_rate=1e-2",
            "trainer.batch_size=8",
            "trainer.precision=fp32",
            *overrides,
        )

    return give


def trained(spec: RunSpec, folder: Path) -> FitResult:
    return fit(spec, checkpoint_folder=folder, tracker=Tracker(), device="cpu")


@torch.no_grad()
def losses_alone(model: nn.Module, spec: RunSpec) -> np.ndarray:
    """Read the test split as a user of transformers would: in one padded batch."""
    base = Path(spec.model.source.path)  # type: ignore[union-attr]
    split = load_splits(spec.task, base).test
    texts = [split.tokens(row).tolist() for row in range(len(split))]
    inputs = load_tokenizer(base).pad({"input_ids": texts}, return_tensors="pt", padding=True)
    logits = model.eval()(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits
    return nn.functional.cross_entropy(
        logits, torch.from_numpy(split.labels), reduction="none"
    ).numpy()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_full_fine_tuning_is_what_transformers_loads(
    family: str, spec_of: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = spec_of(family, "method=full")
    result = trained(spec, tmp_path)
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert alone.config.id2label == {0: "down", 1: "up"}
    assert_same(losses_alone(alone, spec), result.test.losses)


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_lora_is_what_peft_loads_and_fast_is_plain(
    family: str, spec_of: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = spec_of(family, "method.rank=2")
    assert can_unpad(model_without_weights(spec)) == (family in FAST)
    result = trained(spec, tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(source_of(spec), num_labels=2)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path)
    assert_same(losses_alone(adapted, spec), result.test.losses)
    if family in FAST:
        reference = replace(spec, train=replace(spec.train, reference=True))
        plain = trained(reference, tmp_path / "plain")
        assert_same(plain.test.losses, result.test.losses)


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_reads_padding_is_refused(
    family: str, spec_of: Callable[..., RunSpec], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"reads padding: scores in evaluation change by") as told:
        trained(spec_of(family), tmp_path)
    assert "\n" not in str(told.value)


def source_of(spec: RunSpec) -> Path:
    return Path(spec.model.source.path)  # type: ignore[union-attr]
