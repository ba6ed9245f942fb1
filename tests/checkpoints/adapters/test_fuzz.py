"""Damaged adapters are refused, or read as their tensors say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft  # noqa: F401  # its import would count as the time of the first adapter
import pytest
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError
from tests.checkpoints.fuzzing import Change, changes, damaged, fuzzed, record, refused_or

__all__ = ["record"]


torch.manual_seed(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "config.json").write_text('{"model_type": "gpt2", "n_head": 2}')
    return path


ADAPTER = save(
    {
        "base_model.model.q.lora_A.weight": torch.randn(2, 6),
        "base_model.model.q.lora_B.weight": torch.randn(4, 2),
        "base_model.model.e.lora_embedding_A": torch.randn(2, 7),
        "base_model.model.e.lora_embedding_B": torch.randn(3, 2),
        "base_model.model.head.weight": torch.randn(2, 4),
    }
)


CONFIG = json.dumps(
    {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 5,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {"q": 5},
        "target_modules": ["q", "e"],
    }
).encode()


@fuzzed(tensors=st.lists(changes(), max_size=2), config=st.lists(changes(), max_size=2))
def test_a_damaged_adapter(folder: Path, tensors: list[Change], config: list[Change]) -> None:
    path = folder / "adapter"
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").write_bytes(damaged(ADAPTER, tensors))
    (path / "adapter_config.json").write_bytes(damaged(CONFIG, config))

    def read() -> dict[str, Any]:
        with open_adapter(path) as adapter:
            if adapter.needs_base or adapter.left_out:
                raise InputError("needs its base, or says what it leaves out")
            return {
                module: (adapter.factors(module), adapter.delta(module))
                for module in adapter.modules()
            }

    found = refused_or(read)
    assert tensors or config or found is not None
    if found is None:
        return
    alpha = {"rank": json.loads((path / "adapter_config.json").read_bytes())}["rank"]
    with safe_open(path / "adapter_model.safetensors", "pt") as library:
        stored = {name: library.get_tensor(name).double().numpy() for name in library.keys()}  # noqa: SIM118
    factors = {
        name: value for name, value in stored.items() if name.endswith(("lora_A.weight", "_A"))
    }
    assert len(found) == len(factors)
    for module, (parts, delta) in found.items():
        rank = parts.A_RI.shape[0]
        known = {float(value) for value in alpha.get("alpha_pattern", {}).values()}
        known.add(float(alpha["lora_alpha"]))
        assert any(
            parts.scaling == value / (rank**0.5 if alpha.get("use_rslora") else rank)
            for value in known
        )
        ends = [name for name in stored if f"{module}.lora_" in name]
        A, B = (stored[name] for name in sorted(ends))
        expected = (
            (B @ A).T
            if "embedding" in ends[0]
            else B.reshape(B.shape[0], -1) @ A.reshape(A.shape[0], -1)
        )
        np.testing.assert_allclose(delta, parts.scaling * expected, rtol=1e-12, atol=1e-300)


KOHYA = save(
    {
        "lora_unet_q.lora_down.weight": torch.randn(2, 6),
        "lora_unet_q.lora_up.weight": torch.randn(4, 2),
        "lora_unet_q.alpha": torch.tensor(5.0),
    }
)


@fuzzed(made=st.lists(changes(), max_size=4))
def test_a_damaged_kohya_file(folder: Path, made: list[Change]) -> None:
    path = folder / "kohya.safetensors"
    path.write_bytes(damaged(KOHYA, made))

    def read() -> dict[str, np.ndarray]:
        with open_adapter(path) as adapter:
            if adapter.left_out:
                raise InputError("says what it leaves out")
            return {module: adapter.delta(module) for module in adapter.modules()}

    found = refused_or(read)
    assert made or found is not None
    if found is None:
        return
    with safe_open(path, "pt") as library:
        for module, delta in found.items():
            A, B = (
                library.get_tensor(f"{module}.lora_{end}.weight").double() for end in ("down", "up")
            )
            has_alpha = f"{module}.alpha" in library.keys()  # noqa: SIM118
            alpha = library.get_tensor(f"{module}.alpha").item() if has_alpha else len(A)
            expected = (alpha / len(A)) * (B.flatten(1) @ A.flatten(1)).numpy()
            np.testing.assert_allclose(delta, expected, rtol=1e-12, atol=1e-300)


FACTORS = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.ones(4, 2)}


HADAMARD = {
    f"q.hada_w{i}_{end}": torch.ones(shape)
    for i in (1, 2)
    for end, shape in (("a", (4, 2)), ("b", (2, 6)))
}


KRONECKER = {"q.lokr_w1": torch.ones(2, 2), "q.lokr_w2": torch.ones(2, 3)}


VECTORS = {
    "base_model.vera_A": torch.ones(2, 6),
    "base_model.vera_B": torch.ones(4, 2),
    "q.vera_lambda_b": torch.ones(4),
    "q.vera_lambda_d": torch.ones(2),
}


TOKENS = {"q.trainable_tokens_delta": torch.rand(2, 6)}


KINDS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "dora": ({"use_dora": True}, FACTORS | {"q.lora_magnitude_vector": torch.rand(4)}),
    "pissa": ({"init_lora_weights": "pissa"}, FACTORS),
    "olora": ({"init_lora_weights": "olora", "use_rslora": True}, FACTORS),
    "tokens": ({"trainable_token_indices": [0, 3]}, FACTORS | TOKENS),
    "loha": ({"peft_type": "LOHA", "alpha": 5}, HADAMARD),
    "lokr": ({"peft_type": "LOKR", "alpha": 5}, KRONECKER),
    "vera": ({"peft_type": "VERA", "save_projection": True}, VECTORS),
}


@fuzzed(
    kind=st.sampled_from(list(KINDS)),
    tensors=st.lists(changes(), max_size=2),
    config=st.lists(changes(), max_size=2),
    base=st.lists(changes(), max_size=1),
)
def test_a_damaged_adapter_with_its_base(
    folder: Path, kind: str, tensors: list[Change], config: list[Change], base: list[Change]
) -> None:
    path = folder / "needs_base"
    path.mkdir(exist_ok=True)
    extra, stored = KINDS[kind]
    (path / "adapter_model.safetensors").write_bytes(damaged(save(stored), tensors))
    settings = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 5} | extra).encode()
    (path / "adapter_config.json").write_bytes(damaged(settings, config))
    weights = path / "base.safetensors"
    weights.write_bytes(damaged(save({"q.weight": torch.arange(24.0).reshape(4, 6)}), base))

    def read() -> list[np.ndarray]:
        with open_adapter(path) as adapter, open_weights(weights) as before:
            deltas = [adapter.delta(module, before) for module in adapter.modules()]
            return deltas + [adapter.saved_delta(name, before) for name in adapter.saved_weights()]

    found = refused_or(read)
    assert tensors or config or base or found is not None
    for delta in found or []:
        assert np.isfinite(delta).all()
