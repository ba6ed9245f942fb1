"""Names of one weight in the layouts that transformers has used for it."""

import pytest

from lowrank_study.checkpoints.renames import counterparts, neutral_name

LAYER = "layers.0.self_attn.q_proj.weight"
SAME_WEIGHT = [
    # Qwen2-VL, Qwen2.5-VL: the live model since 4.52, and the files
    (f"model.language_model.{LAYER}", f"model.{LAYER}"),
    ("model.visual.blocks.0.attn.proj.weight", "visual.blocks.0.attn.proj.weight"),
    # LLaVA, Gemma 3, PaliGemma, Mistral 3
    (f"model.language_model.{LAYER}", f"language_model.model.{LAYER}"),
    ("lm_head.weight", "language_model.lm_head.weight"),
    ("model.multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
    (
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
    ),
    ("model.image_newline", "image_newline"),
    # Gemma 3 against its text model alone; Qwen2.5-Omni's thinker; Mllama; NemotronH
    (f"model.{LAYER}", f"language_model.model.{LAYER}"),
    (f"model.language_model.{LAYER}", f"thinker.model.{LAYER}"),
    ("model.vision_model.layernorm_pre.weight", "vision_model.layernorm_pre.weight"),
    ("model.layers.0.mixer.out_proj.weight", "backbone.layers.0.mixer.out_proj.weight"),
    # ViT and DINOv2 of transformers 5, GPT-NeoX, Mixtral, DETR, BERT's first checkpoints
    (
        "vit.layers.3.attention.q_proj.weight",
        "vit.encoder.layer.3.attention.attention.query.weight",
    ),
    ("vit.layers.3.attention.o_proj.bias", "vit.encoder.layer.3.attention.output.dense.bias"),
    ("vit.layers.3.mlp.fc1.weight", "vit.encoder.layer.3.intermediate.dense.weight"),
    ("vit.layers.3.mlp.fc2.weight", "vit.encoder.layer.3.output.dense.weight"),
    (
        "encoder.layer.0.attention.k_proj.weight",
        "encoder.layer.0.attention.attention.key.weight",
    ),
    ("lm_head.weight", "embed_out.weight"),
    ("model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
    ("model.decoder.layers.0.mlp.fc2.weight", "model.decoder.layers.0.fc2.weight"),
    ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
]


@pytest.mark.parametrize(("live", "stored"), SAME_WEIGHT)
def test_a_weight_is_found_in_either_direction(live: str, stored: str) -> None:
    assert neutral_name(live) == neutral_name(stored)
    assert counterparts([live, "a.weight"], [stored, "b.weight"]) == {live: stored}
    assert counterparts([stored], [live]) == {stored: live}


def test_a_name_that_both_have_is_its_own_counterpart() -> None:
    names = [f"model.{LAYER}", f"model.language_model.{LAYER}"]
    assert counterparts(names, names) == {name: name for name in names}
    # the one that is left has no other to be the counterpart of
    assert counterparts(names, names[:1]) == {names[0]: names[0]}


def test_what_could_be_meant_twice_is_no_counterpart() -> None:
    twice = [f"model.{LAYER}", f"language_model.model.{LAYER}"]
    assert counterparts([f"model.language_model.{LAYER}"], twice) == {}
    assert counterparts(twice, [f"model.language_model.{LAYER}"]) == {}


def test_different_weights_keep_different_names() -> None:
    bert = [
        f"bert.encoder.layer.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
    ]
    assert len({neutral_name(name) for name in bert}) == len(bert)
    assert neutral_name("model") == "model"
    assert neutral_name("model.") == "model."
