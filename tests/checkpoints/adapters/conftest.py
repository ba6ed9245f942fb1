"""A model that PEFT adapts, saves and merges: the reference for what is read from disk."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lowrank_study.checkpoints import open_adapter, open_weights


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(12, 12)
        self.up = nn.Linear(12, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.query(x) + self.up(x)[..., :12])


class Model(nn.Module):
    """Two blocks, an embedding, a convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 12)
        self.layers = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(4, 6, (3, 2))
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.layers:
            x = block(x)
        return torch.as_tensor(self.head(x))


def randomise(model: nn.Module) -> None:
    """Give all trainable parameters other values, instead of training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 1.0 if "magnitude" in name else 0.3
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter * scale + 0.3 * noise.abs() if scale == 1 else noise)


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    """Train, save and merge an adapter with PEFT; return its folder, the base and the deltas."""

    def make(config: peft.PeftConfig, *, model: Any = None) -> Any:
        torch.manual_seed(0)
        base = Model() if model is None else model
        fresh = copy.deepcopy(base)
        before = fresh.state_dict()
        folder = tmp_path / "base"
        folder.mkdir()
        save_file(
            {name: value.contiguous() for name, value in before.items()},
            folder / "model.safetensors",
        )
        wrapped = peft.get_peft_model(base, config)
        randomise(wrapped)
        wrapped.save_pretrained(tmp_path / "adapter")
        before = {name: value.double() for name, value in before.items()}
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
        merged = loaded.double().merge_and_unload().state_dict()
        deltas = {name: merged[name] - before[name] for name in before}
        return tmp_path / "adapter", folder, deltas

    return make


def check(folder: Path, base_folder: Path, deltas: dict[str, torch.Tensor]) -> Any:
    """Compare every update with PEFT's merge; return the adapter's kind."""
    with open_adapter(folder) as adapter, open_weights(base_folder) as base:
        adapter.check_base(base)
        left = {name for name, delta in deltas.items() if delta.abs().max() > 0}
        for module in adapter.modules():
            expected = deltas[f"{module}.weight"].numpy()
            delta = adapter.delta(module, base)
            assert delta.dtype == np.float64
            # PEFT takes PiSSA's and OLoRA's beginning out of the base in float32
            tolerance = 5e-6 if adapter.kind in ("pissa", "olora") else 1e-12
            np.testing.assert_allclose(
                delta, expected.reshape(expected.shape[0], -1), rtol=1e-12, atol=tolerance
            )
            left.discard(f"{module}.weight")
            if not adapter.needs_base:
                np.testing.assert_array_equal(adapter.delta(module), delta)
        for name in adapter.saved_weights():
            np.testing.assert_allclose(
                adapter.saved_delta(name, base), deltas[name].numpy(), rtol=0, atol=1e-12
            )
            left.discard(name)
        assert left == set(), "changes that the adapter's reader doesn't know of"
        return adapter.kind


LORA = {"target_modules": ["query", "up"], "r": 4, "lora_alpha": 6}


A = torch.arange(12.0).reshape(2, 6)
B = torch.arange(10.0).reshape(5, 2) - 3
BA = (B.double() @ A.double()).numpy()
FLAT = {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B}
"""A LoRA in kohya's layout."""

WriteFile = Callable[..., Path]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Write a LoRA in one file, with a header."""

    def write(
        tensors: dict[str, torch.Tensor],
        metadata: dict[str, str] | None = None,
        name: str = "lora.safetensors",
    ) -> Path:
        copies = {key: value.clone().contiguous() for key, value in tensors.items()}
        save_file(copies, tmp_path / name, metadata=metadata)
        return tmp_path / name

    return write
