"""Query, key and value are split as the models' own code splits them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.falcon.modeling_falcon import FalconAttention

from lowrank_study.checkpoints import find_matrices, open_weights
from tests.checkpoints.conftest import tiny_gpt2

QKV = ("query", "key", "value")


def parts_of(path: Path, module: str, parts: tuple[str, ...] = QKV) -> list[torch.Tensor]:
    """Return the parts of a fused tensor."""
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert skipped == {}
        return [torch.from_numpy(matrices[f"{module}.{part}"].read()) for part in parts]


def test_gpt2_c_attn_is_split_into_query_key_value(write_model: Any) -> None:
    model = tiny_gpt2()
    path = write_model(model.state_dict(), {"model_type": "gpt2"})
    x = torch.randn(3, 8)
    c_attn = model.h[0].attn.c_attn
    expected = (c_attn(x) - c_attn.bias).split(8, dim=1)
    for read, part in zip(parts_of(path, "h.0.attn.c_attn"), expected, strict=True):
        assert read.shape == (8, 8)
        torch.testing.assert_close(x @ read.T, part, rtol=0, atol=1e-6)


FALCON = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 10, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": False, "multi_query": True},
        {"new_decoder_architecture": False, "multi_query": False},
    ],
    ids=["grouped", "multi-query", "multi-head"],
)
def test_falcon_is_split_as_its_own_code_does(write_model: Any, options: Any) -> None:
    torch.manual_seed(0)
    attention = FalconAttention(transformers.FalconConfig(**FALCON, **options), layer_idx=0)
    weight = attention.query_key_value.weight.detach()
    config = {"model_type": "falcon", **FALCON, **options}
    path = write_model({"h.query_key_value.weight": weight}, config)
    x = torch.randn(1, 3, 16)
    expected = attention._split_heads(torch.nn.functional.linear(x, weight))
    found = [(x @ read.T).view(1, 3, -1, 4) for read in parts_of(path, "h.query_key_value")]
    if options["new_decoder_architecture"]:  # each key serves two queries
        found[1:] = [heads.repeat_interleave(2, dim=2) for heads in found[1:]]
    for heads, part in zip(found, expected, strict=True):
        torch.testing.assert_close(heads, part, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "heads_key"), [("bloom", "n_head"), ("gpt_neox", "num_attention_heads")]
)
def test_bloom_and_gpt_neox_are_split_by_heads(
    write_model: Any, model_type: str, heads_key: str
) -> None:
    torch.manual_seed(0)
    config = transformers.BloomConfig(hidden_size=16, n_head=4, n_layer=1, vocab_size=10)
    attention = BloomAttention(config, layer_idx=0)
    x = torch.randn(1, 3, 16)
    weight = attention.query_key_value.weight.detach()
    expected = attention._reshape(torch.nn.functional.linear(x, weight))
    path = write_model(
        {"h.query_key_value.weight": weight}, {"model_type": model_type, heads_key: 4}
    )
    for read, part in zip(parts_of(path, "h.query_key_value"), expected, strict=True):
        heads = (x @ read.T).view(1, 3, 4, 4).transpose(1, 2)
        torch.testing.assert_close(heads, part, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"model_type": "gpt_bigcode", "num_attention_heads": 2},
        {"model_type": "gpt_neox"},
        {"model_type": "gpt_neox", "num_attention_heads": 5},
        {"model_type": "gpt_neox", "num_attention_heads": True},
        {"model_type": "falcon", "num_attention_heads": 4},
        {"model_type": ["gpt2"]},
    ],
    ids=str,
)
def test_an_unknown_fused_layout_is_measured_as_one_matrix_and_flagged(
    paired: Any, config: Any
) -> None:
    state = {"h.query_key_value.weight": torch.ones(24, 8), "h.dense.weight": torch.ones(8, 8)}
    pairing = paired(state, state, config)
    assert [match.name for match in pairing.matches] == ["h.dense", "h.query_key_value"]
    assert pairing.left_out() == []
    (flag,) = [flag for flag in pairing.flags if "how to split it isn't known" in flag]
    assert "h.query_key_value" in flag


THIRDS = [range(8), range(8, 16), range(16, 24)]
QWEN3 = {"model_type": "qwen3_vl", "vision_config": {"model_type": "qwen3_vl_vision"}}
CHATGLM = {
    "model_type": "chatglm", "multi_query_attention": True, "hidden_size": 16,
    "multi_query_group_num": 2, "kv_channels": 4, "num_attention_heads": 2,
}  # fmt: skip
INTERNLM2 = {
    "model_type": "internlm2", "hidden_size": 12, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 3,
}  # fmt: skip
DBRX = {"model_type": "dbrx", "d_model": 16, "n_heads": 4, "attn_config": {"kv_n_heads": 1}}
BIGCODE = {"model_type": "gpt_bigcode", "n_embd": 20, "n_head": 10, "multi_query": True}
PHI3 = {
    "model_type": "phi3", "hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "rows"),
    [
        ("Wqkv.weight", {"model_type": "modernbert"}, THIRDS),
        ("attn.qkv.weight", QWEN3, THIRDS),
        ("attn.qkv.weight", {"architecture": "vit_tiny_patch16_224"}, THIRDS),
        ("in_proj_weight", None, THIRDS),  # torch.nn.MultiheadAttention
        ("query_key_value.weight", CHATGLM, THIRDS),
        (
            "wqkv.weight",
            INTERNLM2,
            [[*range(6), *range(12, 18)], [6, 7, 8, 18, 19, 20], [9, 10, 11, 21, 22, 23]],
        ),
        (
            "qkv_proj.weight",
            {"model_type": "codegen"},
            [
                [0, 1, 6, 7, 12, 13, 18, 19],
                [4, 5, 10, 11, 16, 17, 22, 23],
                [2, 3, 8, 9, 14, 15, 20, 21],
            ],
        ),
        ("qkv_proj.weight", PHI3, [range(12), range(12, 18), range(18, 24)]),
        ("c_attn.weight", BIGCODE, [range(20), range(20, 22), range(22, 24)]),
        ("Wqkv.weight", DBRX, [range(16), range(16, 20), range(20, 24)]),
    ],
)
def test_query_key_and_value_are_split_as_the_config_says(
    write_model: Any, rng: np.random.Generator, name: str, config: Any, rows: list[Any]
) -> None:
    fused = rng.standard_normal((24, 5)).astype(np.float32)
    path = write_model({f"layers.0.{name}": fused}, config)
    parts = parts_of(path, f"layers.0.{name.removesuffix('.weight')}")
    for read, expected in zip(parts, rows, strict=True):
        np.testing.assert_array_equal(read, fused[list(expected)])


def test_phi3_gate_and_up_are_split_in_halves(write_model: Any, rng: np.random.Generator) -> None:
    gate_up = rng.standard_normal((12, 8)).astype(np.float32)
    path = write_model({"a.gate_up_proj.weight": gate_up}, PHI3)
    gate, up = parts_of(path, "a.gate_up_proj", ("gate", "up"))
    np.testing.assert_array_equal(np.concatenate([gate, up]), gate_up)


def test_modernbert_is_split_as_its_own_code_does(tmp_path: Path) -> None:
    config = transformers.ModernBertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    model = transformers.ModernBertModel(config)
    model.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 16)
    split = model.layers[0].attn.Wqkv(x).view(1, 3, 3, -1, 8).unbind(dim=-3)
    for read, expected in zip(parts_of(tmp_path, "layers.0.attn.Wqkv"), split, strict=True):
        torch.testing.assert_close((x @ read.T).view(expected.shape), expected)
