"""All matrices of two checkpoints of one model are paired, whichever code version wrote them."""

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

from lowrank_study.checkpoints import Pairing, is_adapter, open_weights, pair
from lowrank_study.errors import InputError

MakeModel = Callable[[str], Any]
StateOf = Callable[[Any], dict[str, torch.Tensor]]


def saved_twice(model: Any, folder: Path, own_state: StateOf) -> tuple[Path, Path]:
    """Save a model with save_pretrained; add one to every weight and save it by its own names."""
    before, after = folder / "before", folder / "after"
    model.save_pretrained(before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    after.mkdir()
    save_file(own_state(model), after / "model.safetensors")
    shutil.copy(before / "config.json", after / "config.json")
    return before, after


def changes_of(pairing: Pairing) -> list[float]:
    """Return how far each matrix is from an increase by one everywhere."""
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
def test_names_of_save_pretrained_are_paired_with_names_of_the_code(
    tmp_path: Path, random_model: MakeModel, own_state: StateOf, name: str
) -> None:
    before, after = saved_twice(random_model(name), tmp_path, own_state)
    with open_weights(before) as left, open_weights(after) as right:
        pairing = pair(left, right)
        assert pairing.left_out() == []
        assert pairing.left_out_matrices() == 0
        changes = changes_of(pairing)
        assert len(changes) >= 8
        assert max(changes) < 1e-5


def test_renamed_language_and_vision_models_are_compared_completely(paired: Any) -> None:
    W = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    before = {"model.layers.0.q.weight": W, "visual.b.weight": W}
    after = {"model.language_model.layers.0.q.weight": W + 1, "model.visual.b.weight": W}
    pairing = paired(before, after)
    assert sorted(changes_of(pairing)) == [pytest.approx(0.0, abs=1e-6), 1.0]
    assert pairing.left_out() == []
    assert any("2 matrices have another name" in flag for flag in pairing.flags)
    assert len(pair(pairing.after, pairing.before).matches) == 2


def test_names_that_would_coincide_are_not_renamed(paired: Any) -> None:
    state = {"model.a.weight": torch.ones(2, 2), "a.weight": torch.zeros(2, 2)}
    pairing = paired(state, state)
    assert {match.name for match in pairing.matches} == {"model.a", "a"}


def test_the_language_model_of_a_vision_language_model_is_one_with_the_text_model(
    tmp_path: Path, random_model: MakeModel
) -> None:
    whole = random_model("Gemma3ForConditionalGeneration")
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


def test_buffers_and_counters_are_not_left_out(paired: Any) -> None:
    same = {"h.0.attn.q.weight": torch.ones(4, 4)}
    more = {
        "h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "rotary.inv_freq": torch.ones(4),
        "position_ids": torch.arange(8).reshape(1, 8),
    }
    pairing = paired(same | more, same)
    assert pairing.left_out() == []
    assert pair(pairing.after, pairing.before).left_out() == []


def test_tensors_that_are_not_matrices_are_compared_as_vectors(paired: Any) -> None:
    state = {
        "embeddings.cls_token": torch.zeros(1, 1, 4),
        "embeddings.position": torch.zeros(1, 5, 4),
        "mlp.experts.down_proj_bias": torch.zeros(3, 4),
        "q.weight": torch.zeros(4, 4),
    }
    pairing = paired(state, {n: t + 1 for n, t in state.items()})
    assert pairing.left_out() == []
    grown = {name: float((w - w0).min()) for name, w0, w in pairing.read_vectors()}
    assert grown == dict.fromkeys(sorted(state.keys() - {"q.weight"}), 1.0)


def test_left_out_shares_are_counted_in_parameters(paired: Any) -> None:
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
    pairing = paired(before, after)
    shares = {(part.of, part.count, part.total) for part in pairing.left_out()}
    assert shares == {("before", 4, 60), ("after", 8, 72), ("after", 8, 72)}
    assert len(pairing.left_out()) == 3  # the new rows and the new head
    assert len(list(pairing.read_matrices())) == 1
    shares = {(part.of, part.count, part.total) for part in pairing.left_out()}
    assert shares == {("before", 4, 60), ("before", 16, 60), ("after", 8, 72), ("after", 16, 72)}


def with_adapter(tmp_path: Path, random_model: MakeModel) -> tuple[Path, Any]:
    """Return a saved BERT, and the same with unmerged LoRA."""
    from peft import LoraConfig, get_peft_model

    model = random_model("BertForMaskedLM")
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base", get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))


def test_a_model_with_its_adapter_unmerged_is_refused_by_name(
    tmp_path: Path, random_model: MakeModel, own_state: StateOf
) -> None:
    base, wrapped = with_adapter(tmp_path, random_model)
    save_file(own_state(wrapped), tmp_path / "dump.safetensors")
    with (
        open_weights(base) as left,
        open_weights(tmp_path / "dump.safetensors") as right,
        pytest.raises(InputError, match=r"adapter unmerged .*lora_A.*merge_and_unload\(\)"),
    ):
        pair(left, right)
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")  # the remedy
    with open_weights(base) as left, open_weights(tmp_path / "merged") as right:
        assert pair(left, right).left_out() == []


def test_an_adapter_given_as_a_checkpoint_is_refused_by_name(
    tmp_path: Path, random_model: MakeModel
) -> None:
    base, wrapped = with_adapter(tmp_path, random_model)
    wrapped.save_pretrained(tmp_path / "adapter")
    with (
        open_weights(base) as left,
        open_weights(tmp_path / "adapter" / "adapter_model.safetensors") as right,
        pytest.raises(InputError, match=r"is an adapter .* give adapter=PATH base=PATH"),
    ):
        pair(left, right)


def test_a_model_that_has_adapters_of_its_own_is_compared(paired: Any) -> None:
    state = {
        "q.base_layer.weight": torch.ones(4, 4),
        "q.lora_A.speech.weight": torch.ones(2, 4),
        "q.lora_B.speech.weight": torch.ones(4, 2),
    }
    config = {"model_type": "phi4_multimodal"}
    pairing = paired(state, state, config)
    assert len(pairing.matches) == 3


def test_packed_weights_of_an_unknown_format_are_left_out_and_counted(paired: Any) -> None:
    state = {"q.weight": torch.ones(4, 4), "k.codes": torch.ones(8, 8, dtype=torch.int16)}
    pairing = paired(state, {"q.weight": torch.ones(4, 4)})
    (part,) = pairing.left_out()
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
        pairing = pair(before, after)
        (part,) = pairing.left_out()
    assert (part.of, part.count, part.total) == ("after", 34, 290)
    assert "2_Dense" in part.why
    assert pairing.left_out_matrices() == 1


def test_unread_weight_files_beside_the_model_are_flagged(write_model: Any) -> None:
    folder = write_model({"q.weight": torch.ones(4, 4)})
    for name in ("mm_projector.bin", "pytorch_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"x")
    with open_weights(folder) as weights:
        assert weights.flags == ("weight files in the same folder aren't read: mm_projector.bin",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["q.lora_A.weight", "q.lora_B.weight", "classifier.weight"], True),
        (["layers.0.q.lora_a", "layers.0.q.lora_b"], True),
        (["unet.to_q.lora.down.weight", "unet.to_q.lora.up.weight"], True),
        (["lora_unet_x.lora_down.weight", "lora_unet_x.alpha"], True),
        (["q.base_layer.weight", "q.lora_A.default.weight"], False),
        (["att.w_lora.lora.0.weight"], False),
        (["base_layer.0.weight"], False),
    ],
    ids=["PEFT", "MLX", "diffusers", "kohya", "unmerged", "RWKV", "DLA"],
)
def test_an_adapter_is_distinguished_from_a_model_by_its_names(
    write_model: Any, names: list[str], expected: bool
) -> None:
    with open_weights(write_model({name: torch.ones(2, 2) for name in names})) as weights:
        assert is_adapter(weights) == expected


def test_a_parameter_beside_a_module_of_its_name_is_not_lost(paired: Any) -> None:
    W = torch.ones(4, 4)
    state = {"q.weight": W, "scale.weight": W}
    pairing = paired(state, state | {"scale": W})
    assert {match.name for match in pairing.matches} == {"q", "scale"}
    assert [(part.of, part.count) for part in pairing.left_out()] == [("after", 16)]


def test_nested_models_of_different_sizes_are_refused(write_model: Any) -> None:
    state = {"language_model.h.0.self_attention.query_key_value.weight": torch.ones(48, 16)}
    inner = {"model_type": "bloom", "hidden_size": 16}
    left, right = (
        open_weights(
            write_model(
                state,
                {"model_type": "llava", "text_config": inner | {"n_head": heads}},
                folder=f"heads_{heads}",
            )
        )
        for heads in (2, 4)
    )
    with pytest.raises(InputError, match=r"n_head is 2 in .* and 4 in"):
        pair(left, right)


@pytest.mark.parametrize(
    ("name", "packed", "left_out"),
    [
        ("mlp.down_proj.w4", torch.ones(12, dtype=torch.uint8), 12),
        ("mlp.down_proj.words", torch.ones(3, 4, dtype=torch.int64), 12),
        ("attn.relative_position_index", torch.ones(3, 4, dtype=torch.int64), 0),
        ("attn.attention_bias_idxs", torch.ones(3, 4, dtype=torch.int64), 0),
        ("embeddings.position_ids", torch.ones(1, 12, dtype=torch.int64), 0),
        ("bn.num_batches_tracked", torch.tensor(3), 0),
        ("attn.mask", torch.ones(3, 4, dtype=torch.bool), 0),
    ],
)
def test_integers_that_may_be_packed_weights_are_left_out(
    paired: Any, name: str, packed: torch.Tensor, left_out: int
) -> None:
    state = {"q.weight": torch.ones(4, 4), name: packed}
    pairing = paired(state, state)
    assert [part.count for part in pairing.left_out()] == ([left_out] * 2 if left_out else [])
    assert pairing.left_out_matrices() == (1 if left_out else 0)


def test_trained_tokens_that_were_not_merged_are_refused_by_name(paired: Any) -> None:
    plain = {"embed_tokens.weight": torch.ones(8, 4), "q.weight": torch.ones(4, 4)}
    wrapped = {
        "q.weight": torch.ones(4, 4),
        "embed_tokens.token_adapter.base_layer.weight": torch.ones(8, 4),
        "embed_tokens.token_adapter.trainable_tokens_delta.default": torch.ones(2, 4),
    }
    with pytest.raises(InputError, match=r"adapter unmerged .*trainable_tokens_delta"):
        paired(plain, wrapped)
