"""LoRA in GGUF, written by the gguf library as convert_lora_to_gguf.py does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError

WriteGguf = Callable[..., Path]
A = np.arange(12, dtype=np.float32).reshape(2, 6)
B = np.arange(10, dtype=np.float32).reshape(5, 2) - 3
LINEAR = {"blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": B}


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Write a GGUF file, by default of an adapter."""

    def write(
        tensors: dict[str, np.ndarray],
        *,
        alpha: float | None = 1.0,
        form: str = "lora",
        general: str = "adapter",
        tokens: list[int] | None = None,
        name: str = "lora.gguf",
    ) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_type(general)
        writer.add_string(gguf.Keys.Adapter.TYPE, form)
        if alpha is not None:
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        if tokens is not None:
            writer.add_array(gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS, tokens)
        for key, value in tensors.items():
            writer.add_tensor(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def test_a_lora_in_gguf_is_read(write_gguf: WriteGguf) -> None:
    with open_adapter(write_gguf(LINEAR)) as adapter:
        assert adapter.kind == "gguf"
        assert not adapter.needs_base
        assert adapter.modules() == ["blk.0.attn_q"]
        factors = adapter.factors("blk.0.attn_q")
        assert factors.scaling == 0.5
        np.testing.assert_array_equal(adapter.delta("blk.0.attn_q"), 0.5 * (B @ A))
        assert adapter.assumed == ()


def test_an_embedding_keeps_its_rows(write_gguf: WriteGguf) -> None:
    tokens, dims = np.float32(np.random.default_rng(0).standard_normal((7, 2))), B
    path = write_gguf(
        {"token_embd.weight.lora_a": tokens, "token_embd.weight.lora_b": dims}, alpha=2.0
    )
    with open_adapter(path) as adapter:
        np.testing.assert_allclose(
            adapter.delta("token_embd"), tokens.astype(np.float64) @ dims.T, rtol=1e-12
        )


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_without_alpha_the_factor_is_one_as_in_llama_cpp(
    write_gguf: WriteGguf, alpha: float | None
) -> None:
    with open_adapter(write_gguf(LINEAR, alpha=alpha)) as adapter:
        assert adapter.factors("blk.0.attn_q").scaling == 1.0
        assert adapter.assumed == ("no alpha in the file: taken as its rank, as llama.cpp does",)


def test_a_base_in_gguf_is_compared_with_and_another_refused(
    write_gguf: WriteGguf, write_model: Any, write_adapter: Any
) -> None:
    base = write_gguf(
        {"blk.0.attn_q.weight": np.ones((5, 6), np.float32)}, general="model", name="base.gguf"
    )
    converted = write_model({"model.layers.0.self_attn.q_proj.weight": torch.ones(5, 6)})
    path = write_gguf(LINEAR)
    with open_adapter(path) as adapter, open_weights(base) as weights:
        np.testing.assert_array_equal(adapter.base_matrix("blk.0.attn_q", weights), 1.0)
    with (
        open_adapter(path) as adapter,
        open_weights(converted) as weights,
        pytest.raises(InputError, match=r"give the base in GGUF, converted by llama\.cpp"),
    ):
        adapter.check_base(weights)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{module}.lora_A.weight": torch.from_numpy(A),
        f"{module}.lora_B.weight": torch.from_numpy(B),
    }
    folder = write_adapter(factors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    with (
        open_adapter(folder) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match="a GGUF file has its own names and row orders"),
    ):
        adapter.check_base(weights)


def test_norms_and_experts_are_left_out_with_their_share(write_gguf: WriteGguf) -> None:
    others = {
        "blk.0.attn_norm.weight": np.ones(4, np.float32),
        "blk.0.ffn_up_exps.weight.lora_a": np.ones((3, 2, 6), np.float32),
        "blk.0.ffn_up_exps.weight.lora_b": np.ones((3, 5, 2), np.float32),
    }
    with open_adapter(write_gguf(LINEAR | others)) as adapter:
        found = {part.why.partition(" (")[0]: part.count for part in adapter.left_out}
    assert found == {
        "not a factor of a LoRA; llama.cpp ignores it too": 4,
        "factors of a stack of experts": 66,
    }


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        (LINEAR, {"general": "model"}, "is a whole model in GGUF.*two checkpoints"),
        (LINEAR, {"form": "control_vector"}, "adapter of type control_vector, not lora"),
        (LINEAR, {"tokens": [1, 2]}, "alora .*give the PEFT folder"),
        (dict(list(LINEAR.items())[:1]), {}, "has A but no B"),
        ({"blk.0.attn_norm.weight": np.ones(4, np.float32)}, {}, "no factors that can be read"),
    ],
    ids=["model", "form", "alora", "half", "norm"],
)
def test_files_that_are_not_a_lora_are_refused_by_name(
    write_gguf: WriteGguf, tensors: Any, options: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter(write_gguf(tensors, **options))
