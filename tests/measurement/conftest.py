"""Tiny models, their tuned copies and adapters, and their measurement."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.records import MeasuredMatrix, Measurement, MeasureSettings
from lowrank_study.measurement.subjects import Subject

Array = npt.NDArray[np.float64]


def settings(**changes: Any) -> MeasureSettings:
    usual: dict[str, Any] = {
        "method": "gram",
        "compare_with_base": False,
        "directions": 4,
        "intruder_directions": 5,
        "intruder_epsilon": 0.5,
        "fit_first": 1,
        "fit_last": 100,
        "allow_pickle": False,
        "allow_partial": True,
    }
    return MeasureSettings(**(usual | changes))


def measured(subject: Subject, other: Path | None = None, **changes: Any) -> Measurement:
    return measure_spectra(
        subject,
        other=other,
        settings=settings(**changes),
        on_progress=lambda step: None,
        on_left_out=lambda parts: None,
    )


def changed_copy(base: Path, folder: Path, change: Callable[[str, torch.Tensor], Any]) -> Path:
    """Write a model like `base` with every tensor changed."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(7)
    changed = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def low_rank(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() != 2:
        return tensor + 0.01 * torch.randn_like(tensor)
    rows, columns = tensor.shape
    return tensor + 0.05 * torch.randn(rows, 2) @ torch.randn(2, columns)


def noisy(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 0.02 * torch.randn_like(tensor)


@pytest.fixture(scope="session")
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


@pytest.fixture(scope="session")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_copy(base, tmp_path_factory.mktemp("tuned") / "low", low_rank)


@pytest.fixture(scope="session")
def noisy_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_copy(base, tmp_path_factory.mktemp("noisy") / "noisy", noisy)


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A PEFT adapter before and after training, and the model it is merged into."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("adapters")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["query", "value"])
    model: Any = get_peft_model(AutoModel.from_pretrained(base), config)
    model.save_pretrained(folder / "untrained")
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return {path.name: path for path in folder.iterdir()}


def delta_of(before: Path, after: Path, module: str) -> Array:
    name = f"{module}.weight"
    w0, w = (load_file(p / "model.safetensors")[name].double().numpy() for p in (before, after))
    return np.asarray(w - w0)


def by_module(found: Measurement) -> dict[str, MeasuredMatrix]:
    return {matrix.spectrum.module: matrix for matrix in found.matrices}
