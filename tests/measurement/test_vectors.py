"""Vectors, resized vocabularies and new heads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.measurement.subjects import AdapterOnBase, CheckpointPair
from tests.measurement.conftest import (
    by_module,
    measured,
)


def test_new_and_lost_rows_of_a_vocabulary_are_reported(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    w0, w = torch.randn(30, 8, generator=random), torch.randn(33, 8, generator=random)
    save_file({"embed_tokens.weight": w0, "lm_head.bias": w0[:, 0].clone()}, tmp_path / "small")
    save_file({"embed_tokens.weight": w, "lm_head.bias": w[:, 0].clone()}, tmp_path / "grown")
    sigma = np.linalg.svd(w[:30].double().numpy() - w0.double().numpy(), compute_uv=False)
    for before, after, told in (
        ("small", "grown", "30 rows before, 33 after; the first 30 are compared, 3 new rows have"),
        ("grown", "small", "33 rows before, 30 after; the first 30 are compared, the others were"),
    ):
        found = measured(CheckpointPair(before=tmp_path / before, after=tmp_path / after))
        (matrix,) = found.matrices
        assert matrix.spectrum.shape == (30, 8)
        assert matrix.spectrum.singular_values == pytest.approx(sigma, rel=1e-6)
        assert any(flag.startswith("embed_tokens: ") and told in flag for flag in found.flags)
        assert "before" in found.skipped["lm_head.bias"]


def test_an_adapter_with_a_grown_vocabulary_and_a_new_head_is_measured(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "grown"
    shutil.copytree(adapters["adapter"], folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    original = load_file(base / "model.safetensors")
    random = torch.Generator().manual_seed(1)
    words = original["embeddings.word_embeddings.weight"]
    more = torch.randn(len(words) + 3, words.shape[1], generator=random)
    prefix = "base_model.model."
    tensors |= {
        f"{prefix}embeddings.word_embeddings.weight": more,
        f"{prefix}classifier.weight": torch.ones(3, 16),
        f"{prefix}classifier.bias": torch.ones(3),
        f"{prefix}embeddings.LayerNorm.bias": torch.ones(16),
        f"{prefix}embeddings.LayerNorm.weight": torch.ones(15),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["modules_to_save"] = ["word_embeddings", "classifier", "LayerNorm"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = measured(AdapterOnBase(adapter=folder, base=base))
    grown = by_module(found)["embeddings.word_embeddings"]
    assert grown.spectrum.shape == tuple(words.shape)
    expected = np.linalg.norm(more[: len(words)].double().numpy() - words.double().numpy())
    assert grown.readings["frobenius_norm"].value == pytest.approx(expected)
    assert any("the first 48 are compared, 3 new rows have no W0" in flag for flag in found.flags)
    assert [vector.name for vector in found.vectors] == ["embeddings.LayerNorm.bias"]
    assert found.skipped == {
        "classifier": "trained in full, with no W0 to compare with",
        "classifier.bias": "trained in full, with no W0 to compare with",
        "embeddings.LayerNorm": "shape [16] in the base, [15] here",
    }


def test_vectors_have_a_table_of_their_own(base: Path, tuned: Path) -> None:
    found = measured(CheckpointPair(before=base, after=tuned))
    before, after = (load_file(path / "model.safetensors") for path in (base, tuned))
    names = {name for name, tensor in before.items() if tensor.dim() == 1}
    assert {vector.name for vector in found.vectors} == names
    for vector in found.vectors:
        change = (after[vector.name].double() - before[vector.name].double()).norm().item()
        assert vector.norm_of_change == pytest.approx(change, rel=1e-12)
        assert vector.resolvable


def test_scalars_and_vectors_are_listed_and_never_fail(base: Path, tmp_path: Path) -> None:
    extra = {
        "scale": torch.tensor(2.0),
        "gate.bias": torch.zeros(4),
        "nothing": torch.zeros(0),
        "step": torch.tensor(7),
        "odd": torch.ones(3),
    }
    tensors = load_file(base / "model.safetensors")
    for name, add in (("before", 0.0), ("after", 0.5)):
        shutil.copytree(base, tmp_path / name)
        changed = {
            key: (tensor + add).to(tensor.dtype) for key, tensor in (tensors | extra).items()
        }
        if name == "after":
            changed["odd"] = torch.ones(4)
            changed["gate.bias"][1] = float("nan")
        save_file(changed, tmp_path / name / "model.safetensors")
    found = measured(CheckpointPair(before=tmp_path / "before", after=tmp_path / "after"))
    named = {vector.name: vector for vector in found.vectors}
    assert named["scale"].length == 1
    assert named["scale"].norm_of_change == 0.5
    assert found.skipped == {
        "gate.bias": "1 NaN and 0 infinite values",
        "nothing": "empty, shape [0]",
        "step": "int64, a counter or mask, not weights",
        "odd": "shape [3] before, [4] after",
    }
    assert len(found.matrices) == 16
