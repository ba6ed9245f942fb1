"""LoRA files of diffusers, ComfyUI and kohya's scripts are read as scaling * B @ A."""

from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.adapters.conftest import BA, FLAT, A, B, WriteFile

LAYOUTS = {
    "diffusers": ("transformer.blocks.0.attn.to_q", "{m}.lora_A.weight", "{m}.lora_B.weight"),
    "ComfyUI": ("diffusion_model.double_blocks.0.qkv", "{m}.lora_A.weight", "{m}.lora_B.weight"),
    "ComfyUI, kohya's parts": (
        "diffusion_model.double_blocks.0.qkv",
        "{m}.lora_down.weight",
        "{m}.lora_up.weight",
    ),
    "an adapter's name": (
        "transformer.blocks.0.attn.to_q",
        "{m}.lora_A.default.weight",
        "{m}.lora_B.default.weight",
    ),
    "diffusers of 2023": ("unet.mid_block.to_q", "{m}.lora.down.weight", "{m}.lora.up.weight"),
    "its text encoders": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "{m}.lora_linear_layer.down.weight",
        "{m}.lora_linear_layer.up.weight",
    ),
    "kohya": ("lora_unet_mid_block_to_q", "{m}.lora_down.weight", "{m}.lora_up.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [None, torch.tensor(1, dtype=torch.int64), torch.tensor(1.0)])
def test_every_layout_is_read(write_file: WriteFile, layout: str, alpha: Any) -> None:
    module, down, up = LAYOUTS[layout]
    tensors = {down.format(m=module): A, up.format(m=module): B}
    if alpha is not None:
        tensors[f"{module}.alpha"] = alpha
    with open_adapter(write_file(tensors)) as adapter:
        assert adapter.modules() == [module]
        scaling = 1.0 if alpha is None else 0.5
        np.testing.assert_array_equal(adapter.delta(module), scaling * BA)
        assert adapter.left_out == []
        assert adapter.assumed == adapter.flags
        assert ["no alpha" in text for text in adapter.assumed] == [True] * (alpha is None)


@pytest.mark.parametrize(
    ("stored", "module"),
    [
        ("unet.down.0.attn1.processor.to_q_lora", "unet.down.0.attn1.to_q"),
        ("down.0.attn1.processor.to_out_lora", "down.0.attn1.to_out.0"),
        ("unet.down.0.attn1.to_k_lora", "unet.down.0.attn1.to_k"),
        ("mid.attn1.processor.add_v_proj_lora", "mid.attn1.add_v_proj"),
    ],
)
def test_the_first_layout_of_diffusers_names_the_projection(
    write_file: WriteFile, stored: str, module: str
) -> None:
    path = write_file({f"{stored}.down.weight": A, f"{stored}.up.weight": B})
    with open_adapter(path) as adapter:
        assert adapter.modules() == [module]
        np.testing.assert_array_equal(adapter.delta(module), BA)


def test_dora_s_magnitudes_are_read_with_the_base(write_file: WriteFile, write_model: Any) -> None:
    torch.manual_seed(0)
    W0, m = torch.randn(5, 6), torch.rand(5) + 0.5
    tensors = {
        "transformer.q.lora_A.weight": A,
        "transformer.q.lora_B.weight": B,
        "transformer.q.alpha": torch.tensor(1.0),
        "transformer.q.lora_magnitude_vector.weight": m,
    }
    tuned = W0.double() + 0.5 * torch.from_numpy(BA)
    expected = m.double()[:, None] * tuned / tuned.norm(dim=1, keepdim=True) - W0.double()
    base = write_model({"q.weight": W0})
    with open_adapter(write_file(tensors)) as adapter, open_weights(base) as weights:
        assert adapter.kind == "dora"
        with pytest.raises(InputError, match="give the base model"):
            adapter.delta("transformer.q")
        delta = adapter.delta("transformer.q", weights)
    np.testing.assert_allclose(delta, expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("lora_unet_p.lora_up.weight", "a module has B but no A"),
        ("lora_unet_p.hada_w1_a", "belongs to a method that can't be read exactly as LoRA"),
        ("bundle_emb.token.string_to_param", "not part of any known adapter format"),
        ("lora_unet_p.diff", "belongs to a method"),
    ],
)
def test_unused_tensors_are_left_out_with_their_share(
    write_file: WriteFile, extra: str, why: str
) -> None:
    path = write_file(FLAT | {extra: torch.ones(1, 2)})
    with open_adapter(path) as adapter:
        assert adapter.modules() == ["lora_unet_q"]
        (part,) = adapter.left_out
    assert (part.count, part.total, part.unit, part.of) == (2, 24, "parameters", "adapter")
    assert why in part.why
    assert extra in part.why


def test_a_module_that_another_method_changes_too_is_left_out_whole(write_file: WriteFile) -> None:
    tensors = FLAT | {
        "lora_unet_p.lora_down.weight": A,
        "lora_unet_p.lora_up.weight": B,
        "lora_unet_p.lora_mid.weight": torch.ones(2, 2),
    }
    with open_adapter(write_file(tensors)) as adapter:
        assert adapter.modules() == ["lora_unet_q"]
        assert sum(part.count for part in adapter.left_out) == 12 + 10 + 4


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": A}, "textual inversion embedding, which changes no weight"),
        ({"clip_g": A, "clip_l": B}, "textual inversion embedding"),
        ({"model.q.weight": A}, "no factors of an adapter.*two checkpoints"),
        (
            {"q.lora_A.one.weight": A, "q.lora_B.one.weight": B, "k.lora_A.two.weight": A},
            "holds the adapters one, two in one file",
        ),
        (FLAT | {"lora_unet_q.lora_mid.weight": A}, "belongs to a method"),
        (FLAT | {"lora_unet_q.dora_scale": A}, "belongs to a method"),
        (FLAT | {"lora_unet_q.hada_w1_a": A}, "belongs to a method"),
        (
            {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B},
            r"PEFT's names.*put the config beside it and call the file adapter_model\.safetensors",
        ),
        ({"q.lora_A.weight": A.to(torch.int32), "q.lora_B.weight": B}, r"q\.lora_A\.weight.*int32"),
        (
            {
                "a.lora_A.weight": A,
                "a.lora_B.weight": B,
                "a.lora_magnitude_vector": B[:, 0],
                "b.lora_A.weight": A,
                "b.lora_B.weight": B,
            },
            "some of its modules have DoRA magnitudes and some have none",
        ),
    ],
)
def test_files_that_are_not_a_lora_are_refused_by_name(
    write_file: WriteFile, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter(write_file(tensors))


PIPELINE = {
    "unet.mid.to_q.lora_A.weight": A,
    "unet.mid.to_q.lora_B.weight": B,
    "text_encoder.layers.0.q.lora_A.weight": A,
    "text_encoder.layers.0.q.lora_B.weight": B,
}


def test_one_model_of_a_pipeline_suffices_as_base(write_file: WriteFile, write_model: Any) -> None:
    unet = write_model({"mid.to_q.weight": torch.ones(5, 6)})
    with open_adapter(write_file(PIPELINE)) as adapter, open_weights(unet) as base:
        assert adapter.in_base("unet.mid.to_q", base)
        assert not adapter.in_base("text_encoder.layers.0.q", base)
        np.testing.assert_array_equal(adapter.delta("text_encoder.layers.0.q"), BA)
        assert any(
            flag.startswith("text_encoder: its 1 modules aren't in the base")
            for flag in adapter.flags
        )
    other = write_model({"k.weight": torch.ones(5, 6)}, folder="other")
    with (
        open_adapter(write_file(PIPELINE)) as adapter,
        open_weights(other) as base,
        pytest.raises(InputError, match="is not in the base model"),
    ):
        adapter.check_base(base)


def test_a_base_that_fits_two_models_of_a_pipeline_is_refused(
    write_file: WriteFile, write_model: Any
) -> None:
    tensors = {
        f"{encoder}.q.lora_{part}.weight": value
        for encoder in ("text_encoder", "text_encoder_2")
        for part, value in (("A", A), ("B", B))
    }
    base = write_model({"q.weight": torch.ones(5, 6)})
    with (
        open_adapter(write_file(tensors)) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match="its text_encoder and its text_encoder_2 both fit"),
    ):
        adapter.check_base(weights)


def test_kohya_s_names_are_found_in_a_checkpoint_of_all_models(
    write_file: WriteFile, write_model: Any
) -> None:
    tensors = {
        "lora_unet_input_blocks_1_q.lora_down.weight": A,
        "lora_unet_input_blocks_1_q.lora_up.weight": B,
        "lora_te1_text_model_k.lora_down.weight": A,
        "lora_te1_text_model_k.lora_up.weight": B,
    }
    base = write_model(
        {
            "model.diffusion_model.input_blocks.1.q.weight": torch.ones(5, 6),
            "conditioner.embedders.0.transformer.text_model.k.weight": torch.ones(5, 6),
        }
    )
    with open_adapter(write_file(tensors)) as adapter, open_weights(base) as weights:
        adapter.check_base(weights)
        found = {adapter.base_tensor(module, weights) for module in adapter.modules()}
        assert found == set(weights.names())
