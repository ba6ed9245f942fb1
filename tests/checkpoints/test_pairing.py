"""Two checkpoints of one model pair whole, whichever version of the code wrote them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lowrank_study.checkpoints import Pairing, find_matrices, open_weights, pair
from lowrank_study.checkpoints.renames import canonical
from lowrank_study.errors import InputError

TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 32, "max_position_embeddings": 32, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
QWEN_TOWER = {
    "depth": 1, "hidden_size": 12, "out_hidden_size": 16, "num_heads": 2, "patch_size": 4,
    "intermediate_size": 20,
}  # fmt: skip
EXPERTS = {
    "num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 20,
}  # fmt: skip
ROPE = {"type": "default", "rope_type": "default", "mrope_section": [2, 1, 1]}


def tiny(name: str) -> Any:
    """A model of one layer, its weights drawn at random."""
    text, llama = dict(TEXT), {"model_type": "llama", **TEXT}
    clip = {"model_type": "clip_vision_model", **TOWER}
    t = transformers
    configs: dict[str, Callable[[], Any]] = {
        "Qwen2_5_VLForConditionalGeneration": lambda: t.Qwen2_5_VLConfig(
            text_config=text | {"rope_scaling": ROPE}, vision_config=QWEN_TOWER
        ),
        "Qwen3VLMoeForConditionalGeneration": lambda: t.Qwen3VLMoeConfig(
            text_config=text | EXPERTS,
            vision_config=QWEN_TOWER | {"deepstack_visual_indexes": [0]},
        ),
        "LlavaForConditionalGeneration": lambda: t.LlavaConfig(
            vision_config=clip, text_config=llama
        ),
        "Gemma3ForConditionalGeneration": lambda: t.Gemma3Config(
            vision_config={"model_type": "siglip_vision_model", **TOWER},
            text_config=text | {"query_pre_attn_scalar": 8},
            mm_tokens_per_image=4,
        ),
        "MixtralForCausalLM": lambda: t.MixtralConfig(**text, **EXPERTS),
        "Qwen3MoeForCausalLM": lambda: t.Qwen3MoeConfig(**text, **EXPERTS),
        "ViTForImageClassification": lambda: t.ViTConfig(**TOWER),
        "BertForMaskedLM": lambda: t.BertConfig(**text),
        "Qwen2ForCausalLM": lambda: t.Qwen2Config(
            **{k: v for k, v in text.items() if k != "head_dim"}, tie_word_embeddings=True
        ),
    }
    model = getattr(t, name)(configs[name]())
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """The names that the code has today; a tied tensor once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        found.setdefault(tensor.data_ptr(), (name, tensor.clone()))
    return dict(found.values())


def saved_twice(model: Any, folder: Path) -> tuple[Path, Path]:
    """Save a model by save_pretrained, and, with one added to every weight, by its own names."""
    before, after = folder / "before", folder / "after"
    model.save_pretrained(before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    after.mkdir()
    save_file(state_of(model), after / "model.safetensors")
    shutil.copy(before / "config.json", after / "config.json")
    return before, after


def changes_of(pairing: Pairing) -> list[float]:
    """How far each matrix is from having grown by one everywhere, as every one of them has."""
    return [float(np.abs(W - W0 - 1).max()) for _, W0, W in pairing.read_matrices()]


@pytest.mark.parametrize(
    "name",
    [
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "MixtralForCausalLM",
        "Qwen3MoeForCausalLM",
        "ViTForImageClassification",
    ],
)
def test_what_save_pretrained_renames_is_paired_with_the_names_of_the_code(
    tmp_path: Path, name: str
) -> None:
    before, after = saved_twice(tiny(name), tmp_path)
    with open_weights(before) as left, open_weights(after) as right:
        pairing = pair(left, right)
        assert pairing.left_out() == []
        assert pairing.left_out_matrices() == 0
        changes = changes_of(pairing)
        assert len(changes) >= 8
        assert max(changes) < 1e-5


def test_the_pair_of_the_report_is_compared_whole(write_model: Any) -> None:
    W = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    before = {"model.layers.0.q.weight": W, "visual.b.weight": W}
    after = {"model.language_model.layers.0.q.weight": W + 1, "model.visual.b.weight": W}
    left = open_weights(write_model(before, folder="before"))
    right = open_weights(write_model(after, folder="after"))
    pairing = pair(left, right)
    assert sorted(changes_of(pairing)) == [pytest.approx(0.0, abs=1e-6), 1.0]
    assert pairing.left_out() == []
    assert any("2 matrices have another name" in flag for flag in pairing.flags)
    assert len(pair(right, left).matches) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("language_model.model.layers.0.q", "model.language_model.layers.0.q"),
        ("language_model.lm_head", "lm_head"),
        ("vision_tower.vision_model.x", "model.vision_tower.x"),
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("conv.weight_v", "conv.parametrizations.weight.original1"),
        ("a.block_sparse_moe.experts.1.w3.weight", "a.mlp.experts.1.up_proj.weight"),
        ("vit.encoder.layer.0.output.dense.bias", "vit.layers.0.mlp.fc2.bias"),
    ],
)
def test_old_and_new_names_are_one(old: str, new: str) -> None:
    assert canonical(old) == canonical(new)


@pytest.mark.parametrize("name", ["ls1.gamma", "model", "vision_model.layers.0.q", "text.beta"])
def test_other_names_are_kept(name: str) -> None:
    assert canonical(name) == name


def test_names_that_would_coincide_are_not_renamed(write_model: Any) -> None:
    state = {"model.a.weight": torch.ones(2, 2), "a.weight": torch.zeros(2, 2)}
    left = open_weights(write_model(state, folder="before"))
    right = open_weights(write_model(state, folder="after"))
    assert {match.name for match in pair(left, right).matches} == {"model.a", "a"}


def test_the_language_model_of_a_vision_language_model_is_one_with_the_text_model(
    tmp_path: Path,
) -> None:
    whole = tiny("Gemma3ForConditionalGeneration")
    whole.save_pretrained(tmp_path / "whole")
    text = transformers.Gemma3ForCausalLM(whole.config.text_config)
    with torch.no_grad():
        text.model.load_state_dict(whole.model.language_model.state_dict())
        for parameter in text.parameters():
            parameter += 1.0
    text.save_pretrained(tmp_path / "text")
    with open_weights(tmp_path / "whole") as left, open_weights(tmp_path / "text") as right:
        assert right.config["model_type"] == "gemma3_text"
        for pairing, grown in ((pair(left, right), 1), (pair(right, left), -1)):
            found = [float(np.abs(W - W0 - grown).max()) for _, W0, W in pairing.read_matrices()]
            assert len(found) == 8
            assert max(found) < 1e-5
        (part,) = pair(left, right).left_out()
        assert part.of == "before"
        assert "vision_tower" in part.why
        in_tower = sum(
            parameter.numel()
            for name, parameter in whole.named_parameters()
            if "vision_tower" in name or "projector" in name
        )
        assert part.count == in_tower


def test_a_tied_head_that_one_file_stores_is_not_left_out(tmp_path: Path) -> None:
    model = tiny("Qwen2ForCausalLM")
    model.save_pretrained(tmp_path / "once")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= state.keys()
    save_file(state, tmp_path / "twice.safetensors")
    with (
        open_weights(tmp_path / "once") as left,
        open_weights(tmp_path / "twice.safetensors") as right,
    ):
        for pairing in (pair(left, right), pair(right, left)):
            assert pairing.left_out() == []
            assert "(tied), counted there" in pairing.skipped["lm_head"]
    state["lm_head.weight"][0, 0] += 1.0
    save_file(state, tmp_path / "untied.safetensors")
    with (
        open_weights(tmp_path / "once") as left,
        open_weights(tmp_path / "untied.safetensors") as right,
    ):
        (part,) = pair(left, right).left_out()
        assert (part.of, part.count) == ("after", 32 * 16)


def test_buffers_and_counters_are_not_left_out(write_model: Any) -> None:
    same = {"h.0.attn.q.weight": torch.ones(4, 4)}
    more = {
        "h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "rotary.inv_freq": torch.ones(4),
        "position_ids": torch.arange(8).reshape(1, 8),
    }
    left = open_weights(write_model(same | more, folder="before"))
    right = open_weights(write_model(same, folder="after"))
    assert pair(left, right).left_out() == []
    assert pair(right, left).left_out() == []


def test_what_is_no_matrix_is_compared_all_the_same(write_model: Any) -> None:
    state = {
        "embeddings.cls_token": torch.zeros(1, 1, 4),
        "embeddings.position": torch.zeros(1, 5, 4),
        "mlp.experts.down_proj_bias": torch.zeros(3, 4),
        "q.weight": torch.zeros(4, 4),
    }
    left = open_weights(write_model(state, folder="before"))
    right = open_weights(write_model({n: t + 1 for n, t in state.items()}, folder="after"))
    pairing = pair(left, right)
    assert pairing.left_out() == []
    grown = {name: float((w - w0).min()) for name, w0, w in pairing.read_vectors()}
    assert grown == dict.fromkeys(sorted(state.keys() - {"q.weight"}), 1.0)


def test_left_out_shares_are_counted_in_parameters(write_model: Any) -> None:
    before = {
        "model.embed_tokens.weight": torch.randn(10, 4),
        "q.weight": torch.ones(4, 4),
        "gone.bias": torch.ones(4),
    }
    after = {
        "model.embed_tokens.weight": torch.randn(12, 4),
        "q.weight": torch.full((4, 4), float("nan")),
        "classifier.weight": torch.ones(2, 4),
    }
    left = open_weights(write_model(before, folder="before"))
    right = open_weights(write_model(after, folder="after"))
    pairing = pair(left, right)
    told = {(part.of, part.count, part.total) for part in pairing.left_out()}
    assert told == {("before", 4, 60), ("after", 8, 72), ("after", 8, 72)}
    assert len(pairing.left_out()) == 3  # the new rows and the new head
    assert len(list(pairing.read_matrices())) == 1
    told = {(part.of, part.count, part.total) for part in pairing.left_out()}
    assert told == {("before", 4, 60), ("before", 16, 60), ("after", 8, 72), ("after", 16, 72)}


def with_adapter(tmp_path: Path) -> tuple[Path, Any]:
    """A BERT, and the same with LoRA on it, not merged."""
    from peft import LoraConfig, get_peft_model

    model = tiny("BertForMaskedLM")
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base", get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))


def test_a_model_with_its_adapter_unmerged_is_refused_by_name(tmp_path: Path) -> None:
    base, wrapped = with_adapter(tmp_path)
    save_file(state_of(wrapped), tmp_path / "dump.safetensors")
    with (
        open_weights(base) as left,
        open_weights(tmp_path / "dump.safetensors") as right,
        pytest.raises(InputError, match=r"adapter unmerged .*lora_A.*merge_and_unload\(\)"),
    ):
        pair(left, right)
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")  # the remedy
    with open_weights(base) as left, open_weights(tmp_path / "merged") as right:
        assert pair(left, right).left_out() == []


def test_an_adapter_given_as_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    base, wrapped = with_adapter(tmp_path)
    wrapped.save_pretrained(tmp_path / "adapter")
    with (
        open_weights(base) as left,
        open_weights(tmp_path / "adapter" / "adapter_model.safetensors") as right,
        pytest.raises(InputError, match=r"is an adapter .* give adapter=PATH base=PATH"),
    ):
        pair(left, right)


def test_a_model_that_has_adapters_of_its_own_is_compared(write_model: Any) -> None:
    state = {
        "q.base_layer.weight": torch.ones(4, 4),
        "q.lora_A.speech.weight": torch.ones(2, 4),
        "q.lora_B.speech.weight": torch.ones(4, 2),
    }
    config = {"model_type": "phi4_multimodal"}
    left = open_weights(write_model(state, config, folder="before"))
    right = open_weights(write_model(state, config, folder="after"))
    assert len(pair(left, right).matches) == 3


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
        **{key: TEXT[key] for key in TEXT if key not in ("num_key_value_heads", "head_dim")},
        cls_token_id=1, sep_token_id=2,
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
    tmp_path: Path, stored: str
) -> None:
    """Files of the hub hold (experts, in, out), and transformers 5 (experts, out, in)."""
    model = tiny("Qwen3VLMoeForConditionalGeneration")
    model.save_pretrained(tmp_path)
    state = state_of(model)
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
    """GPT-OSS stores (experts, in, out), with columns of gate and up in turns."""
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
    assert "a convolution in groups" in flags
    assert "conv.dwconv" in flags
    assert "all experts stacked in one tensor" in flags


def test_packed_weights_that_nobody_names_are_left_out_and_counted(write_model: Any) -> None:
    state = {"q.weight": torch.ones(4, 4), "k.codes": torch.ones(8, 8, dtype=torch.int16)}
    left = open_weights(write_model(state, folder="before"))
    right = open_weights(write_model({"q.weight": torch.ones(4, 4)}, folder="after"))
    (part,) = pair(left, right).left_out()
    assert (part.of, part.count, part.total) == ("before", 64, 80)
    assert "packed" in part.why


def test_modules_beside_a_transformer_are_left_out_and_counted(
    write_model: Any, tmp_path: Path
) -> None:
    state = {"q.weight": torch.ones(16, 16)}
    left, right = (write_model(state, folder=folder) for folder in ("before", "after"))
    dense = {"linear.weight": torch.ones(2, 16), "linear.bias": torch.ones(2)}
    write_model(dense, folder="after/2_Dense")
    (left / "1_Pooling").mkdir()
    (left / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    with open_weights(left) as before, open_weights(right) as after:
        (part,) = pair(before, after).left_out()
    assert (part.of, part.count, part.total) == ("after", 34, 290)
    assert "2_Dense" in part.why


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
