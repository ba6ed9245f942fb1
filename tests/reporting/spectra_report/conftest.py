"""Reports on two updates of a tiny model, and on names meant to do harm."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.measurement.records import Measurement
from lowrank_study.reporting.spectra_report import report_spectra

FILES = {
    "report.html", "spectra.csv", "spectra.parquet", "spectra.json", "spectra.tex",
    "singular_values.parquet", "vectors.csv", "skipped.csv", "files.csv",
}  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>.\u202e\x00\nname"
FORMULA = "=HYPERLINK(1)"


def changed_copy(base: Path, folder: Path, seed: int, *, rounded: bool) -> Path:
    """Write a model that differs by rank 3 and, if `rounded`, is kept in bfloat16."""
    shutil.copytree(base, folder)
    torch.manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        change = torch.randn_like(tensor)
        if tensor.dim() == 2:
            change = torch.randn(tensor.shape[0], 3) @ torch.randn(3, tensor.shape[1])
        scale = 1e-5 if rounded and "layer.1" in name else 0.05
        tensors[name] = tensor + scale * change
        if rounded:
            tensors[name] = tensors[name].bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def models(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A base; a tuned one of which layer 1 is lost in bfloat16's rounding; a second tuned one."""
    folder, base = tmp_path_factory.mktemp("models"), tiny_model("bert")
    return {
        "base": base,
        "rounded": changed_copy(base, folder / "rounded", 1, rounded=True),
        "second": changed_copy(base, folder / "second", 2, rounded=False),
    }


@pytest.fixture(scope="session")
def reported(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Measurement]:
    """A report on two updates with everything in it."""
    return report_spectra(
        before=models["base"],
        after=models["rounded"],
        other=models["second"],
        compare_with_base=True,
        out=tmp_path_factory.mktemp("reported") / "report",
    )


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on checkpoints whose tensors have names meant to do harm."""
    folder = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    names = (f"layer.0.{HOSTILE}", f"{FORMULA}.weight", "layer.1.</script><b>bold</b>", "fine")
    for file in ("before", "after"):
        tensors = {name: torch.randn(6, 5) for name in names}
        tensors["@vector"] = torch.randn(4)
        tensors["-left\nout"] = torch.full((3, 3), float("nan"))
        save_file(tensors, folder / f"{file}.safetensors")
    path, _ = report_spectra(
        before=folder / "before.safetensors",
        after=folder / "after.safetensors",
        out=folder / "report",
        allow_partial=True,
    )
    return path
