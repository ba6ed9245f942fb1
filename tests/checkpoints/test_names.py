"""Wrappers are stripped, and one weight has one canonical name in all layouts."""

from typing import Any

import pytest
import torch

from lowrank_study.checkpoints import canonical, open_weights
from lowrank_study.checkpoints.names import canonical_names
from lowrank_study.errors import InputError

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
    ("encoder.layer.0.attention.k_proj.weight", "encoder.layer.0.attention.attention.key.weight"),
    ("lm_head.weight", "embed_out.weight"),
    ("model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
    ("model.decoder.layers.0.mlp.fc2.weight", "model.decoder.layers.0.fc2.weight"),
    ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
    # language models inside others, normalisations, experts, ViT
    ("language_model.model.layers.0.q", "model.language_model.layers.0.q"),
    ("language_model.lm_head", "lm_head"),
    ("vision_tower.vision_model.x", "model.vision_tower.x"),
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("conv.weight_v", "conv.parametrizations.weight.original1"),
    ("a.block_sparse_moe.experts.1.w3.weight", "a.mlp.experts.1.up_proj.weight"),
    ("vit.encoder.layer.0.output.dense.bias", "vit.layers.0.mlp.fc2.bias"),
]


@pytest.mark.parametrize(("live", "stored"), SAME_WEIGHT)
def test_a_weight_has_one_name_in_all_layouts(live: str, stored: str) -> None:
    assert canonical(live) == canonical(stored)


def test_names_that_would_coincide_stay_as_they_are() -> None:
    twice = [f"model.{LAYER}", f"language_model.model.{LAYER}"]
    assert canonical_names(twice) == {name: name for name in twice}


def test_different_weights_keep_different_names() -> None:
    parts = ("attention.self.query", "attention.self.key", "attention.output.dense")
    parts += ("attention.output.LayerNorm", "intermediate.dense", "output.dense")
    parts += ("output.LayerNorm",)
    bert = [f"bert.encoder.layer.{i}.{part}.weight" for i in (0, 1) for part in parts]
    assert len({canonical(name) for name in bert}) == len(bert)


@pytest.mark.parametrize("name", ["ls1.gamma", "model", "vision_model.layers.0.q", "text.beta"])
def test_other_names_are_kept(name: str) -> None:
    assert canonical(name) == name


def test_inner_parts_of_a_name_are_kept(write_model: Any) -> None:
    path = write_model({"encoder.module.weight": torch.ones(2, 2), "module.": torch.ones(1)})
    with open_weights(path) as weights:
        assert set(weights.names()) == {"encoder.module.weight", "module."}


def test_an_ambiguous_prefix_is_refused(write_model: Any) -> None:
    path = write_model({"w": torch.ones(2), "module.w": torch.ones(2)})
    with pytest.raises(InputError, match="are both w without wrapper prefixes"):
        open_weights(path)
