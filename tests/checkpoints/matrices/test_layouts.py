"""The layouts of query, key, value and experts agree with the models' own code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lowrank_study.checkpoints import find_matrices, open_weights, pair


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
def test_query_key_and_value_are_split_where_the_config_tells_how(
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


@pytest.mark.parametrize("stored", ["in_out", "out_in"])
def test_qwen3_vl_experts_are_out_by_in_whichever_way_they_are_stored(
    tmp_path: Path,
    random_model: Callable[[str], Any],
    own_state: Callable[[Any], dict[str, torch.Tensor]],
    stored: str,
) -> None:
    """Hub files store (experts, in, out); transformers 5 stores (experts, out, in)."""
    model = random_model("Qwen3VLMoeForConditionalGeneration")
    model.save_pretrained(tmp_path)
    state = own_state(model)
    if stored == "in_out":
        for tensor in [tensor for tensor in state if "mlp.experts" in tensor]:
            state[tensor] = state[tensor].mT.contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    experts = loaded.model.language_model.layers[0].mlp.experts
    torch.testing.assert_close(
        experts.down_proj, model.model.language_model.layers[0].mlp.experts.down_proj
    )
    name = "model.language_model.layers.0.mlp.experts"
    with open_weights(tmp_path) as weights:
        matrices, _ = find_matrices(weights)
        for index in range(3):
            for part in ("down_proj", "gate_up_proj"):
                expected = getattr(experts, part)[index].detach().numpy()
                matrix = matrices[f"{name}.{part}.{index}"]
                np.testing.assert_array_equal(matrix.read(), expected)
                assert matrix.shape == expected.shape


def test_gate_and_up_that_take_turns_are_told_apart(write_model: Any) -> None:
    """GPT-OSS stores (experts, in, out), with alternating columns of gate and up."""
    stack = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    single = {
        f"mlp.experts.{expert}.{part}.weight": np.ascontiguousarray(stack[expert, :, first::2].T)
        for expert in range(2)
        for first, part in enumerate(("gate_proj", "up_proj"))
    }
    config = {"model_type": "gpt_oss"}
    left = open_weights(write_model({"mlp.experts.gate_up_proj": stack}, config, folder="before"))
    right = open_weights(write_model(single, config, folder="after"))
    pairing = pair(left, right)
    assert len(pairing.matches) == 4
    for match, W0_OI, W_OI in pairing.read_matrices():
        assert match.name in {name.removesuffix(".weight") for name in single}
        np.testing.assert_array_equal(W0_OI, W_OI)


def test_what_is_no_single_linear_map_is_flagged(write_model: Any) -> None:
    state = {
        "conv.dwconv.weight": torch.ones(8, 1, 3, 3),
        "ffn.experts.mlp.w1": torch.ones(12, 4),
        "q.weight": torch.ones(4, 4),
    }
    config = {"model_type": "dbrx"}
    left = open_weights(write_model(state, config, folder="before"))
    right = open_weights(write_model(state, config, folder="after"))
    flags = " ".join(pair(left, right).flags)
    assert "a convolution in groups, or of one input channel" in flags
    assert "conv.dwconv" in flags
    assert "all experts stacked in one tensor" in flags


def test_a_square_stack_lies_as_the_other_one_of_its_experts(write_model: Any) -> None:
    rng = np.random.default_rng(0)
    for in_out in (True, False):
        gate_up = rng.standard_normal((2, 4, 8) if in_out else (2, 8, 4)).astype(np.float32)
        down = rng.standard_normal((2, 4, 4)).astype(np.float32)
        state = {"mlp.experts.gate_up_proj": gate_up, "mlp.experts.down_proj": down}
        config = {"model_type": "qwen3_vl_moe", "text_config": {
            "model_type": "qwen3_vl_moe_text", "hidden_size": 4,
        }}  # fmt: skip
        with open_weights(write_model(state, config)) as weights:
            matrices, _ = find_matrices(weights)
            expected = down[1].T if in_out else down[1]
            np.testing.assert_array_equal(matrices["mlp.experts.down_proj.1"].read(), expected)
