"""Stored tensors become (out, in) matrices: transposed, convolutions, experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import find_matrices, open_weights
from tests.checkpoints.conftest import tiny_gpt2


def test_conv1d_is_transposed_where_the_config_says_so(write_model: Any) -> None:
    model = tiny_gpt2()
    path = write_model(model.state_dict(), {"model_type": "gpt2", "n_head": 2})
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        x = torch.randn(3, 8)
        mlp = model.h[0].mlp
        assert matrices["h.0.mlp.c_fc"].shape == (32, 8)
        read = torch.from_numpy(matrices["h.0.mlp.c_fc"].read())
        torch.testing.assert_close(x @ read.T + mlp.c_fc.bias, mlp.c_fc(x), rtol=0, atol=1e-6)
        assert matrices["h.0.mlp.c_proj"].shape == (8, 32)
        assert matrices["wte"].shape == (11, 8)
        assert skipped == {}
        assert weights.shape("h.0.mlp.c_fc.weight") == (8, 32)


def test_a_convolution_becomes_out_by_the_rest(write_model: Any, rng: np.random.Generator) -> None:
    kernel = rng.standard_normal((4, 3, 2, 5)).astype(np.float32)
    line = rng.standard_normal((4, 3, 2)).astype(np.float32)
    path = write_model(
        {"conv.weight": kernel, "line.weight": line, "cls_token": np.ones((1, 1, 4), np.float32)}
    )
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert matrices["conv"].shape == (4, 30)
        np.testing.assert_array_equal(matrices["conv"].read(), kernel.reshape(4, 30))
        np.testing.assert_array_equal(matrices["line"].read(), line.reshape(4, 6))
        assert list(skipped) == ["cls_token"]


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_experts_are_read_one_by_one(
    write_model: Any, rng: np.random.Generator, model_type: str
) -> None:
    stack = rng.standard_normal((3, 4, 5)).astype(np.float32)
    bias = rng.standard_normal((3, 5)).astype(np.float32)
    path = write_model(
        {"mlp.experts.down_proj": stack, "mlp.experts.down_proj_bias": bias},
        {"model_type": model_type},
    )
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert list(matrices) == [f"mlp.experts.down_proj.{i}" for i in range(3)]
        for index in range(3):
            matrix = matrices[f"mlp.experts.down_proj.{index}"]
            expected = stack[index].T if model_type == "gpt_oss" else stack[index]
            assert matrix.shape == expected.shape
            np.testing.assert_array_equal(matrix.read(), expected)
        assert list(skipped) == ["mlp.experts.down_proj_bias"]


@pytest.mark.parametrize("name", ["blk.0.ffn_up_exps.weight", "block_sparse_moe.up_linear.weight"])
def test_experts_under_other_names_are_not_convolutions(write_model: Any, name: str) -> None:
    with open_weights(write_model({name: torch.ones(3, 4, 5)})) as weights:
        matrices, _ = find_matrices(weights)
        assert [matrix.shape for matrix in matrices.values()] == [(4, 5)] * 3


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


def test_a_square_stack_is_oriented_as_the_other_stack_of_its_experts(write_model: Any) -> None:
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
