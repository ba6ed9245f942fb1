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


def test_gpt2_c_attn_is_split_into_query_key_value(write_model: Any) -> None:
    model = tiny_gpt2()
    path = write_model(model.state_dict(), {"model_type": "gpt2"})
    x = torch.randn(3, 8)
    c_attn = model.h[0].attn.c_attn
    with open_weights(path) as weights:
        matrices, _ = find_matrices(weights)
        for part, expected in zip(
            ("query", "key", "value"), (c_attn(x) - c_attn.bias).split(8, dim=1), strict=True
        ):
            matrix = matrices[f"h.0.attn.c_attn.{part}"]
            assert matrix.shape == (8, 8)
            read = torch.from_numpy(matrix.read())
            torch.testing.assert_close(x @ read.T, expected, rtol=0, atol=1e-6)


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
    config = transformers.FalconConfig(**FALCON, **options)
    attention = FalconAttention(config, layer_idx=0)
    x = torch.randn(1, 3, 16)
    fused = torch.nn.functional.linear(x, attention.query_key_value.weight)
    path = write_model(
        {"h.query_key_value.weight": attention.query_key_value.weight.detach()},
        {"model_type": "falcon", **FALCON, **options},
    )
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert skipped == {}
        for part, expected in zip(
            ("query", "key", "value"), attention._split_heads(fused), strict=True
        ):
            read = torch.from_numpy(matrices[f"h.query_key_value.{part}"].read())
            heads = (x @ read.T).view(1, 3, -1, 4)
            if part != "query" and options["new_decoder_architecture"]:
                heads = heads.repeat_interleave(2, dim=2)  # each key serves two queries
            torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)


def test_bloom_and_gpt_neox_are_split_by_heads(write_model: Any) -> None:
    torch.manual_seed(0)
    config = transformers.BloomConfig(hidden_size=16, n_head=4, n_layer=1, vocab_size=10)
    attention = BloomAttention(config, layer_idx=0)
    x = torch.randn(1, 3, 16)
    weight = attention.query_key_value.weight.detach()
    parts = attention._reshape(torch.nn.functional.linear(x, weight))
    for number, model_type in enumerate(("bloom", "gpt_neox")):
        heads_key = {"bloom": "n_head", "gpt_neox": "num_attention_heads"}[model_type]
        path = write_model(
            {"h.query_key_value.weight": weight},
            {"model_type": model_type, heads_key: 4},
            folder=str(number),
        )
        with open_weights(path) as weights:
            matrices, _ = find_matrices(weights)
            for part, expected in zip(("query", "key", "value"), parts, strict=True):
                read = torch.from_numpy(matrices[f"h.query_key_value.{part}"].read())
                heads = (x @ read.T).view(1, 3, 4, 4).transpose(1, 2)
                torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)


def test_phi3_and_torch_attention_are_split_by_rows(
    write_model: Any, rng: np.random.Generator
) -> None:
    qkv = rng.standard_normal((16, 8)).astype(np.float32)
    gate_up = rng.standard_normal((12, 8)).astype(np.float32)
    config = {
        "model_type": "phi3",
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    path = write_model({"a.qkv_proj.weight": qkv, "a.gate_up_proj.weight": gate_up}, config)
    with open_weights(path) as weights:
        matrices, _ = find_matrices(weights)
        rows = {"query": (0, 8), "key": (8, 12), "value": (12, 16)}
        for part, (first, last) in rows.items():
            np.testing.assert_array_equal(matrices[f"a.qkv_proj.{part}"].read(), qkv[first:last])
        np.testing.assert_array_equal(matrices["a.gate_up_proj.gate"].read(), gate_up[:6])
        np.testing.assert_array_equal(matrices["a.gate_up_proj.up"].read(), gate_up[6:])
    attention = torch.nn.MultiheadAttention(4, 2)
    path = write_model({"t.in_proj_weight": attention.in_proj_weight.detach()}, folder="torch")
    with open_weights(path) as weights:
        matrices, _ = find_matrices(weights)
        np.testing.assert_array_equal(
            matrices["t.in_proj_weight.key"].read(), attention.in_proj_weight.detach()[4:8]
        )


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


@pytest.mark.parametrize(
    ("leaf", "config", "rows"),
    [
        ("Wqkv", {"model_type": "modernbert"}, [range(8), range(8, 16), range(16, 24)]),
        (
            "attn.qkv",
            {"model_type": "qwen3_vl", "vision_config": {"model_type": "qwen3_vl_vision"}},
            [range(8), range(8, 16), range(16, 24)],
        ),
        (
            "attn.qkv",
            {"architecture": "vit_tiny_patch16_224"},
            [range(8), range(8, 16), range(16, 24)],
        ),
        (
            "query_key_value",
            {
                "model_type": "chatglm", "multi_query_attention": True, "hidden_size": 16,
                "multi_query_group_num": 2, "kv_channels": 4, "num_attention_heads": 2,
            },
            [range(8), range(8, 16), range(16, 24)],
        ),
        (
            "wqkv",
            {
                "model_type": "internlm2", "hidden_size": 12, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 3,
            },
            [[*range(6), *range(12, 18)], [6, 7, 8, 18, 19, 20], [9, 10, 11, 21, 22, 23]],
        ),
        (
            "qkv_proj",
            {"model_type": "codegen"},
            [
                [0, 1, 6, 7, 12, 13, 18, 19],
                [4, 5, 10, 11, 16, 17, 22, 23],
                [2, 3, 8, 9, 14, 15, 20, 21],
            ],
        ),
        (
            "c_attn",
            {"model_type": "gpt_bigcode", "n_embd": 20, "n_head": 10, "multi_query": True},
            [range(20), range(20, 22), range(22, 24)],
        ),
        (
            "Wqkv",
            {"model_type": "dbrx", "d_model": 16, "n_heads": 4, "attn_config": {"kv_n_heads": 1}},
            [range(16), range(16, 20), range(20, 24)],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_query_key_and_value_are_split_as_the_config_says(
    write_model: Any, leaf: str, config: dict[str, Any], rows: list[Any]
) -> None:
    fused = np.random.default_rng(0).standard_normal((24, 5)).astype(np.float32)
    with open_weights(write_model({f"layers.0.{leaf}.weight": fused}, config)) as weights:
        matrices, _ = find_matrices(weights)
        for part, expected in zip(("query", "key", "value"), rows, strict=True):
            matrix = matrices[f"layers.0.{leaf}.{part}"]
            np.testing.assert_array_equal(matrix.read(), fused[list(expected)])


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
    with open_weights(tmp_path) as weights:
        matrices, _ = find_matrices(weights)
        for part, expected in zip(("query", "key", "value"), split, strict=True):
            read = torch.from_numpy(matrices[f"layers.0.attn.Wqkv.{part}"].read())
            torch.testing.assert_close((x @ read.T).view(expected.shape), expected)
