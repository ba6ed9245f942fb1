"""PEFT's tensors are sorted into factors, full weights and token rows."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.adapters.conftest import LORA, check
from tests.checkpoints.conftest import PLAIN, two_factors

pytestmark = [
    # PEFT's own remarks about models that have no config
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
]


class Attention(nn.Module):
    """A model with PyTorch's attention, which PEFT wraps, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.q = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.attention(x, x, x)[0])


def test_multihead_attention_has_two_matrices(trained: Any) -> None:
    config = peft.LoraConfig(target_modules=["attention"], r=2, lora_alpha=3)
    folder, base, deltas = trained(config, model=Attention())
    with open_adapter(folder) as adapter, open_weights(base) as weights:
        assert adapter.modules() == ["attention.out_proj", "attention"]
        for module in adapter.modules():
            tensor = adapter.base_tensor(module, weights)
            np.testing.assert_allclose(
                adapter.delta(module, weights), deltas[tensor].numpy(), rtol=0, atol=1e-12
            )
        assert tensor == "attention.in_proj_weight"
        factors = [adapter.factors(module).scaling for module in adapter.modules()]
        assert factors == [3.0, 1.5]  # PEFT's forward pass adds that of out_proj twice
        assert any("attention.out_proj: measured as twice" in flag for flag in adapter.flags)


def test_a_grouped_convolution_is_left_out_by_its_name(tmp_path: Path) -> None:
    both = peft.LoraConfig(target_modules=["grouped", "q"], r=4, lora_alpha=3)
    alone = peft.LoraConfig(target_modules=["grouped"], r=4, lora_alpha=3)
    for name, config in (("both", both), ("alone", alone)):
        peft.get_peft_model(Attention(), config).save_pretrained(tmp_path / name)
    with open_adapter(tmp_path / "both") as adapter:
        assert adapter.modules() == ["q"]
        (part,) = adapter.left_out
        assert part.count == 4 * 8 * 9 + 12
        assert "grouped convolution" in part.why
    with pytest.raises(InputError, match=r"grouped is a grouped convolution.*can't merge"):
        open_adapter(tmp_path / "alone")


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_saved_modules_and_biases_are_full_updates(trained: Any, bias: str) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, modules_to_save=["head"], bias=bias))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert {"head.weight", "head.bias"} <= set(adapter.saved_weights())
        assert ("layers.0.query.bias" in adapter.saved_weights()) == (bias != "none")


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(**LORA, trainable_token_indices={"embed": [1, 7]}),
        peft.TrainableTokensConfig(token_indices=[2, 3, 9], target_modules=["embed"]),
    ],
    ids=["with lora", "alone"],
)
def test_trained_tokens_change_their_rows_only(trained: Any, config: Any) -> None:
    folder, base, deltas = trained(config)
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert "embed.weight" in adapter.saved_weights()


def test_a_lora_on_an_embedding_is_oriented_as_the_embedding(trained: Any) -> None:
    folder, base, deltas = trained(peft.LoraConfig(target_modules=["embed", "conv"], r=2))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        factors = adapter.factors("embed")
        assert factors.B_OR.shape == (10, 2)
        assert factors.A_RI.shape == (2, 12)
        assert adapter.factors("conv").A_RI.shape == (2, 24)


def test_a_saved_weight_the_base_lacks_or_shapes_otherwise_is_refused(
    write_adapter: Any, write_model: Any
) -> None:
    saved = {"base_model.model.head.weight": torch.ones(3, 3)}
    path = write_adapter(two_factors() | saved, PLAIN)
    base = write_model({"q.weight": torch.ones(4, 3), "other": torch.ones(1)})
    with open_adapter(path) as adapter, open_weights(base) as weights:
        with pytest.raises(InputError, match=r"module head\.weight is not in the base model"):
            adapter.saved_delta("head.weight", weights)
        with pytest.raises(InputError, match=r"no saved weight x; it has head\.weight"):
            adapter.read("x")
    base = write_model({"q.weight": torch.ones(4, 3), "head.weight": torch.ones(1, 3)})
    with (
        open_adapter(path) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"has shape \[3, 3\], but in the base \[1, 3\]"),
    ):
        adapter.saved_delta("head.weight", weights)


def test_the_bias_of_a_factor_is_flagged(trained: Any) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, lora_bias=True))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert adapter.left_out == []
        assert "layers.0.query.bias" in adapter.saved_weights()
        with pytest.raises(InputError, match="is added to the base's bias"):
            adapter.read("layers.0.query.bias")
        assert any("lora_B.bias adds a bias" in flag for flag in adapter.flags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_B.weight": None}, "module q has A but no B"),
        ({"lora_A.weight": None}, "module q has B but no A"),
        ({"lora_A.weight": torch.ones(0)}, r"empty, shape \[0\].*ZeRO-3"),
        ({"lora_B.weight": torch.ones(4, 0)}, "ZeRO-3"),
        ({"lora_A.weight": torch.ones(6)}, "which don't multiply"),
        ({"lora_B.weight": torch.ones(4, 5)}, "which don't multiply"),
        ({"lora_B.weight": torch.ones(4, 2, 3)}, "which don't multiply"),
        ({"lora_A.default.weight": torch.ones(2, 3)}, "one of them doesn't belong"),
        ({"lora_C.weight": torch.ones(2, 3)}, "belongs to a method"),
        ({"lora_embedding_A": torch.ones(2, 3)}, "one of them doesn't belong"),
        ({"lora_A.weight": torch.ones(2, 3, dtype=torch.int32)}, "int32"),
    ],
    ids=str,
)
def test_unfinished_factors_are_refused(
    write_adapter: Any, change: dict[str, Any], message: str
) -> None:
    tensors: dict[str, Any] = two_factors()
    tensors |= {f"base_model.model.q.{end}": value for end, value in change.items()}
    path = write_adapter({k: v for k, v in tensors.items() if v is not None}, PLAIN)
    with pytest.raises(InputError, match=message):
        open_adapter(path)


def test_an_adapter_that_diverged_is_refused(write_adapter: Any) -> None:
    tensors = two_factors()
    tensors["base_model.model.q.lora_B.weight"][0, 0] = torch.nan
    with (
        open_adapter(write_adapter(tensors, PLAIN)) as adapter,
        pytest.raises(InputError, match=r"q\.lora_B\.weight has 1 NaN or infinite"),
    ):
        adapter.factors("q")


def test_an_adapter_without_config_or_tensors_is_refused(
    tmp_path: Path, write_adapter: Any
) -> None:
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        open_adapter(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_adapter(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="holds no tensors of an adapter"):
        open_adapter(write_adapter({}, PLAIN))
    path = write_adapter(two_factors(), PLAIN)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        open_adapter(path)
    with pytest.raises(InputError, match="is an adapter, not a whole model"):
        open_weights(path)


def test_a_missing_module_is_refused_with_the_existing_names(write_adapter: Any) -> None:
    with open_adapter(write_adapter(two_factors(), PLAIN)) as adapter:
        for ask in (adapter.factors, adapter.delta):
            with pytest.raises(InputError, match="no module k; it has q"):
                ask("k")


def test_an_adapter_with_b_zero_is_untrained(write_adapter: Any) -> None:
    tensors = two_factors("a") | two_factors("b")
    tensors["base_model.model.a.lora_B.weight"].zero_()
    with open_adapter(write_adapter(tensors, PLAIN)) as adapter:
        assert not np.any(adapter.delta("a"))
        assert np.any(adapter.delta("b"))


def test_an_adapter_stored_in_16_bits_is_flagged(write_adapter: Any) -> None:
    tensors = {name: value.to(torch.bfloat16) for name, value in two_factors().items()}
    with open_adapter(write_adapter(tensors, PLAIN)) as adapter:
        assert adapter.flags == ("adapter stored in bfloat16",)
        assert adapter.factors("q").storage_dtype == "bfloat16"


def test_the_storage_dtype_is_that_of_the_tensors_an_update_is_made_of(write_adapter: Any) -> None:
    tensors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 3, dtype=torch.float32),
        "base_model.model.q.lora_B.weight": torch.ones(4, 2, dtype=torch.float16),
        "base_model.model.q.lora_magnitude_vector": torch.ones(4, dtype=torch.float32),
        "base_model.model.v.lora_A.weight": torch.ones(2, 3),
        "base_model.model.v.lora_B.weight": torch.ones(4, 2),
        "base_model.model.v.lora_magnitude_vector": torch.ones(4, dtype=torch.bfloat16),
        "base_model.model.head.weight": torch.ones(5, 4),
    }
    config = PLAIN | {"use_dora": True, "modules_to_save": ["head"], "target_modules": ["q", "v"]}
    with open_adapter(write_adapter(tensors, config)) as adapter:
        names = [*adapter.modules(), *adapter.saved_weights()]
        found = {name: adapter.storage_dtype(name) for name in names}
        assert found == {"q": "float16", "v": "bfloat16", "head.weight": "float32"}
        with pytest.raises(InputError, match="no module k; it has q, v"):
            adapter.storage_dtype("k")


def test_an_adapter_in_a_pickle_needs_the_opt_in(write_adapter: Any) -> None:
    path = write_adapter(two_factors(), PLAIN)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_adapter(path)
    with open_adapter(path, allow_pickle=True) as adapter:
        np.testing.assert_array_equal(adapter.delta("q"), np.full((4, 3), 4.0))
