"""PEFT loads adapters that this package saves, and the reverse."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from lowrank_study.checkpoints import open_adapter, open_weights, save_adapter
from lowrank_study.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")


def tiny_bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=20,
        max_position_embeddings=12,
    )
    return transformers.BertForSequenceClassification(config).eval()


def tiny_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def written(folder: Path, model: Any, ends: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Write a random adapter for `model`; return what was written."""
    torch.manual_seed(1)
    factors = {}
    for name, module in model.named_modules():
        if name.endswith(ends):
            shape = (
                module.weight.shape[::-1]
                if options.get("fan_in_fan_out")
                else (module.weight.shape)
            )
            factors[name] = (torch.randn(3, shape[1]), torch.randn(shape[0], 3))
    settings: dict[str, Any] = {
        "factors": factors,
        "saved_modules": {},
        "modules_to_save": [],
        "rank": 3,
        "alpha": 6,
        "use_rslora": False,
        "dropout": 0.1,
        "target_modules": list(ends),
        "base_model_name": "base",
        "task_type": None,
    } | options
    save_adapter(folder, **settings)
    return settings


@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_computes_the_same_update(tmp_path: Path, use_rslora: bool) -> None:
    model = tiny_bert()
    head = {"classifier.weight": torch.randn(2, 16), "classifier.bias": torch.randn(2)}
    written(
        tmp_path / "adapter",
        model,
        ("query", "value", "intermediate.dense"),
        saved_modules=head,
        modules_to_save=["classifier"],
        use_rslora=use_rslora,
        task_type="SEQ_CLS",
    )
    tokens = torch.arange(10)[None]
    adapted = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path / "adapter").eval()
    state = model.state_dict()
    with open_adapter(tmp_path / "adapter") as adapter:
        assert len(adapter.modules()) == 6
        for module in adapter.modules():
            state[f"{module}.weight"] += torch.from_numpy(adapter.delta(module)).float()
        for name in adapter.saved_weights():
            state[name].copy_(torch.from_numpy(adapter.read(name)))
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(tokens).logits, model(tokens).logits, rtol=1e-6, atol=1e-6
        )


def test_peft_loads_it_onto_conv1d(tmp_path: Path) -> None:
    model = tiny_gpt2()
    written(tmp_path / "adapter", model, ("c_attn",), fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = peft.PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "adapter").eval()
    state = model.state_dict()
    with open_adapter(tmp_path / "adapter") as adapter:
        for module in adapter.modules():
            state[f"{module}.weight"] += torch.from_numpy(adapter.delta(module).T).float()
    model.load_state_dict(state)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(tokens).logits, model(tokens).logits, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_peft_saved_on_conv1d_is_read_here(tmp_path: Path, use_dora: bool) -> None:
    base = tiny_gpt2()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        target_modules=["c_attn", "c_proj"], r=2, use_dora=use_dora, fan_in_fan_out=True
    )
    model = peft.get_peft_model(tiny_gpt2(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = model.merge_and_unload().state_dict()
    with open_adapter(tmp_path / "adapter") as adapter, open_weights(tmp_path / "base") as weights:
        assert len(adapter.modules()) == 6
        for module in adapter.modules():
            expected = merged[f"{module}.weight"] - base.state_dict()[f"{module}.weight"]
            np.testing.assert_allclose(
                adapter.delta(module, weights), expected.T.numpy(), rtol=0, atol=1e-6
            )


def test_a_written_adapter_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    model = tiny_bert()
    settings = written(
        tmp_path,
        model,
        ("query",),
        saved_modules={"classifier.bias": torch.tensor([1.5, -2.0])},
        modules_to_save=["classifier"],
    )
    with open_adapter(tmp_path) as adapter:
        assert set(adapter.modules()) == set(settings["factors"])
        for module, (A_RI, B_OR) in settings["factors"].items():
            read = adapter.factors(module)
            np.testing.assert_array_equal(read.A_RI, A_RI.numpy())
            np.testing.assert_array_equal(read.B_OR, B_OR.numpy())
            assert read.scaling == 2.0
            assert read.storage_dtype == "float32"
        np.testing.assert_array_equal(adapter.read("classifier.bias"), [1.5, -2.0])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6, 0.1)


def test_a_base_of_another_hash_is_refused(tmp_path: Path) -> None:
    for folder, seed in (("base", 0), ("other", 1)):
        model = tiny_bert()
        with torch.no_grad():
            model.classifier.bias.fill_(seed)
        model.save_pretrained(tmp_path / folder)
    with open_weights(tmp_path / "base") as base:
        hashes = [file.sha256 for file in base.files]
        written(tmp_path / "adapter", tiny_bert(), ("query",), base_sha256=hashes)
        with open_adapter(tmp_path / "adapter") as adapter, open_weights(tmp_path / "other") as no:
            adapter.check_base(base)
            with pytest.raises(InputError, match=f"was trained on files of SHA-256 {hashes[0]}"):
                adapter.delta(adapter.modules()[0], no)


def test_a_folder_with_an_adapter_is_never_overwritten(tmp_path: Path) -> None:
    written(tmp_path, tiny_bert(), ("query",))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"holds adapter_model.safetensors already"):
        written(tmp_path, tiny_bert(), ("value",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_crash_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: Any, fails_at: int
) -> None:
    calls = 0
    replace = os.replace

    def crash(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="the disk is full"):
        written(tmp_path, tiny_bert(), ("query",))
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["adapter_model.safetensors"][: fails_at - 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, r"are not \(rank, in\) and \(out, rank\) of rank 4"),
        ({"target_modules": ["value"]}, "is not one of the target modules value"),
    ],
)
def test_factors_that_peft_would_not_load_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        written(tmp_path / "new", tiny_bert(), ("query",), **change)
    assert not (tmp_path / "new").exists()


def test_the_config_is_plain_json_without_code(tmp_path: Path) -> None:
    written(tmp_path, tiny_bert(), ("query",), alpha=2.5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 2.5
    assert "auto_mapping" not in config
