"""Updates of every method equal those that PEFT merges from the same folder."""

import json
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.adapters.conftest import LORA, check
from tests.checkpoints.conftest import PLAIN, two_factors

pytestmark = [
    # PEFT's own remarks about models that have no config
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
]


def test_rslora_divides_by_the_root_of_the_rank(trained: Any) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, use_rslora=True))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert adapter.factors("layers.0.up").scaling == 3.0


@pytest.mark.parametrize("use_rslora", [False, True])
def test_dora_is_exact_with_its_base(trained: Any, use_rslora: bool) -> None:
    config = peft.LoraConfig(**LORA, use_dora=True, use_rslora=use_rslora)
    folder, base, deltas = trained(config)
    assert check(folder, base, deltas) == "dora"
    with open_adapter(folder) as adapter:
        assert adapter.needs_base
        with pytest.raises(InputError, match="give the base model it was trained on"):
            adapter.delta("layers.0.up")
        with pytest.raises(InputError, match="not a product of two factors"):
            adapter.factors("layers.0.up")


def test_dora_on_a_convolution_is_exact(trained: Any) -> None:
    config = peft.LoraConfig(target_modules=["conv"], r=2, lora_alpha=3, use_dora=True)
    assert check(*trained(config)) == "dora"


def test_dora_without_magnitudes_or_on_an_embedding_is_refused(
    trained: Any, write_adapter: Any
) -> None:
    path = write_adapter(two_factors(), PLAIN | {"use_dora": True}, folder="bare")
    with pytest.raises(InputError, match="module q has A, B but no magnitude"):
        open_adapter(path)
    magnitude = {"base_model.model.q.lora_magnitude_vector": torch.ones(4)}
    path = write_adapter(two_factors() | magnitude, PLAIN, folder="not dora")
    with pytest.raises(InputError, match="the config says use_dora false"):
        open_adapter(path)
    folder, _, _ = trained(peft.LoraConfig(target_modules=["embed"], r=2, use_dora=True))
    with pytest.raises(InputError, match="dora on the embedding embed can't be read exactly"):
        open_adapter(folder)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_pissa_and_olora_are_converted_exactly(trained: Any, start: str) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, init_lora_weights=start))
    assert check(folder, base, deltas) == start
    with open_adapter(folder) as adapter, open_weights(base) as weights:
        B_OR, A_RI, scaling, _ = adapter.factors("layers.0.up", weights)
        assert (B_OR.shape, A_RI.shape) == ((20, 8), (8, 12))
        np.testing.assert_allclose(
            scaling * B_OR @ A_RI, adapter.delta("layers.0.up", weights), rtol=0, atol=1e-12
        )
        with pytest.raises(InputError, match="give the base model"):
            adapter.factors("layers.0.up")
        assert any("computed again in float64" in flag for flag in adapter.flags)


def test_olora_on_a_matrix_stored_in_by_out_is_refused(
    write_adapter: Any, write_model: Any
) -> None:
    path = write_adapter(
        two_factors("h.0.mlp.c_fc"), PLAIN | {"init_lora_weights": "olora", "fan_in_fan_out": True}
    )
    for folder, config in (("with", {"model_type": "gpt2"}), ("without", None)):
        base = write_model({"h.0.mlp.c_fc.weight": torch.ones(3, 4)}, config, folder=folder)
        with (
            open_adapter(path) as adapter,
            open_weights(base) as weights,
            pytest.raises(InputError, match=r"olora on h\.0\.mlp\.c_fc"),
        ):
            adapter.delta("h.0.mlp.c_fc", weights)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", True, False])
def test_an_initialisation_that_keeps_the_base_is_read(trained: Any, start: Any) -> None:
    assert check(*trained(peft.LoraConfig(**LORA, init_lora_weights=start))) == "lora"


def test_the_wrong_base_is_refused(write_adapter: Any, write_model: Any) -> None:
    path = write_adapter(two_factors(), PLAIN)
    wrong_shape = write_model({"q.weight": torch.ones(5, 3)}, folder="shape")
    other_names = write_model({"k.weight": torch.ones(4, 3)}, folder="names")
    right = write_model({"q.weight": torch.ones(4, 3)}, folder="right")
    with open_adapter(path) as adapter:
        with (
            open_weights(wrong_shape) as base,
            pytest.raises(InputError, match=r"changes a \[4, 3\] matrix.* it is \[5, 3\]"),
        ):
            adapter.delta("q", base)
        with (
            open_weights(other_names) as base,
            pytest.raises(InputError, match=r"module q is not in the base.*which has k\.weight"),
        ):
            adapter.check_base(base)
        with open_weights(right) as base:
            adapter.check_base(base)


def test_a_base_saved_without_its_head_is_found(write_adapter: Any, write_model: Any) -> None:
    saved = {"base_model.model.bert.norm.weight": torch.full((2,), 3.0)}
    path = write_adapter(two_factors("bert.encoder.q") | saved, PLAIN)
    headless = write_model(
        {"encoder.q.weight": torch.ones(4, 3), "norm.weight": torch.ones(2)}, folder="headless"
    )
    deeper = write_model(
        {"x.bert.encoder.q.weight": torch.ones(4, 3), "x.bert.norm.weight": torch.ones(2)},
        folder="deeper",
    )
    unclear = write_model(
        {f"{x}.bert.encoder.q.weight": torch.ones(4, 3) for x in "xy"}, folder="unclear"
    )
    with open_adapter(path) as adapter:
        for folder in (headless, deeper):
            with open_weights(folder) as base:
                adapter.check_base(base)
                np.testing.assert_array_equal(adapter.saved_delta("bert.norm.weight", base), [2, 2])
        with (
            open_weights(unclear) as base,
            pytest.raises(InputError, match=r"bert\.encoder\.q fits 2 tensors of the base model"),
        ):
            adapter.check_base(base)


def test_a_base_with_nan_is_refused(write_adapter: Any, write_model: Any) -> None:
    path = write_adapter(two_factors(), PLAIN)
    base = write_model({"q.weight": torch.full((4, 3), torch.nan)})
    with (
        open_adapter(path) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"tensor q\.weight has 12 NaN"),
    ):
        adapter.base_matrix("q", weights)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(target_modules=["query", "up"], r=3, alpha=5),
        peft.LoKrConfig(target_modules=["query", "up"], r=2, alpha=5),
        peft.LoKrConfig(target_modules=["query", "up"], r=1, alpha=5, decompose_both=True),
        peft.LoKrConfig(target_modules=["query", "up"], r=1, alpha=5, decompose_factor=3),
        peft.VeraConfig(target_modules=["query", "up"], r=3),
    ],
    ids=lambda config: f"{config.peft_type.value}",
)
def test_loha_lokr_and_vera_are_exact_through_peft(trained: Any, config: Any) -> None:
    folder, base, deltas = trained(config)
    assert check(folder, base, deltas) == config.peft_type.value.lower()
    with open_adapter(folder) as adapter, pytest.raises(InputError, match="give the base model"):
        adapter.delta("layers.0.up")


@pytest.mark.parametrize("change", [{"r": 10**8}, {"rank_pattern": {"up": 3}}])
def test_a_loha_config_that_does_not_fit_is_refused(trained: Any, change: Any) -> None:
    folder, base, _ = trained(peft.LoHaConfig(target_modules=["up"], r=3, alpha=5))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with (
        open_adapter(folder) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"its config says|can't be read exactly"),
    ):
        adapter.delta("layers.0.up", weights)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("LOHA", "hada_w1_a", torch.tensor(1.0)),
        ("LOHA", "hada_w1_b", torch.ones(3, 13)),
        ("VERA", "vera_A", torch.ones(2)),
        ("VERA", "vera_B", torch.ones(2, 3)),
        ("LOKR", "lokr_w1", torch.ones(1, 1)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    trained: Any, method: str, name: str, value: torch.Tensor
) -> None:
    classes = {"LOHA": peft.LoHaConfig, "VERA": peft.VeraConfig, "LOKR": peft.LoKrConfig}
    folder, base, _ = trained(classes[method](target_modules=["up"], r=3))
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    save_file({k: value.clone() if k.endswith(name) else v for k, v in stored.items()}, path)
    state = torch.get_rng_state()
    with (
        open_adapter(folder) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"layers\.0\.up: .*" + name),
    ):
        adapter.delta("layers.0.up", weights)
    assert torch.equal(torch.get_rng_state(), state)
