"""Comparisons with W0 and with a second update, against plain numpy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.errors import InputError
from lowrank_study.measurement import comparison, remarks
from lowrank_study.measurement.subjects import AdapterOnBase, CheckpointPair
from tests.measurement.conftest import (
    by_module,
    delta_of,
    measured,
)


def test_an_adapter_and_its_merged_model_are_one_update(
    base: Path, adapters: dict[str, Path]
) -> None:
    subject = AdapterOnBase(adapter=adapters["adapter"], base=base)
    found = measured(subject, adapters["merged"], compare_with_base=True)
    others = {matrix.spectrum.module: matrix for matrix in found.other_matrices}
    assert len(found.matrices) == 4
    for matrix in found.matrices:
        twin = others[matrix.spectrum.module]
        ours = matrix.spectrum.singular_values
        assert twin.spectrum.singular_values[:2] == pytest.approx(ours, rel=1e-5)
        for name in ("energy_rank_90", "amplification_factor", "overlap_left"):
            expected = twin.readings[name].value
            assert matrix.readings[name].value == pytest.approx(expected, rel=1e-5), name
        assert matrix.readings["similarity"].value == pytest.approx(1.0, abs=1e-6)
        largest = matrix.readings["largest_angle"].value
        assert largest is not None
        assert largest < 0.05
    assert any("4 matrices are in both updates" in flag for flag in found.flags)


def test_similarity_and_chance_are_those_of_the_paper(
    base: Path, tuned: Path, noisy_model: Path
) -> None:
    found = measured(CheckpointPair(before=base, after=noisy_model), tuned)
    for module, matrix in by_module(found).items():
        first, second = (
            np.linalg.svd(delta_of(base, after, module))[2] for after in (noisy_model, tuned)
        )
        alike = matrix.similarity
        assert alike is not None
        i, j = alike.right_grid.shape
        assert (i, j) == (min(4, *matrix.spectrum.shape), 2)
        expected = np.linalg.norm(first[:i] @ second[:j].T) ** 2 / min(i, j)
        assert matrix.readings["similarity"].value == pytest.approx(expected, abs=1e-6)
        top = (first[0] @ second[0]) ** 2
        assert matrix.readings["similarity_top"].value == pytest.approx(top, abs=1e-6)
        dimension = matrix.spectrum.shape[1]
        chance = matrix.readings["similarity_chance"].value
        assert chance == pytest.approx(max(i, j) / dimension)
        cosines = np.linalg.svd(first[:i] @ second[:j].T, compute_uv=False)
        angles = np.degrees(np.arccos(np.minimum(cosines, 1.0)))
        assert alike.angles == pytest.approx(angles, abs=1e-4)


def test_the_comparison_with_w0_is_that_of_the_papers(base: Path, tuned: Path) -> None:
    found = measured(CheckpointPair(before=base, after=tuned), compare_with_base=True)
    original = load_file(base / "model.safetensors")
    assert sum(matrix.readings["intruder_dimensions"].value or 0 for matrix in found.matrices) > 0
    for module, matrix in by_module(found).items():
        w0 = original[f"{module}.weight"].double().numpy()
        delta = delta_of(base, tuned, module)
        u, _, vt = np.linalg.svd(delta, full_matrices=False)
        projected = np.linalg.norm(u[:, :2].T @ w0 @ vt[:2].T)
        amplified = np.linalg.norm(delta) / projected
        reading = matrix.readings
        assert reading["projected_norm"].value == pytest.approx(projected, rel=1e-4)
        assert reading["amplification_factor"].value == pytest.approx(amplified, rel=1e-4)
        own = np.linalg.norm(np.linalg.svd(w0, compute_uv=False)[:2])
        assert reading["own_projected_norm"].value == pytest.approx(own)
        random = np.linalg.norm(w0) * 2 / np.sqrt(w0.size)
        assert reading["random_projected_norm"].value == pytest.approx(random)
        u0 = np.linalg.svd(w0, full_matrices=False)[0]
        top = np.linalg.svd(w0 + delta, full_matrices=False)[0][:, : min(5, *w0.shape)]
        cosines = np.abs(u0.T @ top).max(axis=0)
        assert np.array(matrix.intruder_cosines) == pytest.approx(cosines, abs=1e-5)
        assert reading["intruder_dimensions"].value == np.count_nonzero(cosines < 0.5)


def test_a_too_large_matrix_is_measured_but_not_compared(
    base: Path, tuned: Path, noisy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (comparison, remarks):
        monkeypatch.setattr(module, "LARGEST_COMPARED", 64 * 16 - 1)
    subject = CheckpointPair(before=base, after=tuned)
    found = measured(subject, noisy_model, compare_with_base=True)
    large = by_module(found)["embeddings.position_embeddings"]
    assert large.spectrum.shape == (64, 16)
    assert large.readings["energy_rank_99"].value == 2
    for name in ("amplification_factor", "intruder_dimensions"):
        assert large.readings[name].status == "not computed"
    assert large.readings["similarity"].status == "not computed"
    assert large.similarity is None
    other = [matrix for matrix in found.matrices if matrix is not large]
    assert all(matrix.similarity is not None for matrix in other)
    assert any("too large for a comparison" in flag for flag in found.flags)


def test_checkpoints_without_a_common_matrix_are_refused_with_examples(
    base: Path, tmp_path: Path
) -> None:
    save_file({"tower.weight": torch.ones(3, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"tower\.weight.*position_embeddings") as refused:
        measured(CheckpointPair(before=tmp_path / "other.safetensors", after=base))
    assert "\n" not in str(refused.value)


def test_a_second_update_that_cannot_be_compared(
    base: Path, adapters: dict[str, Path], tmp_path: Path, tuned: Path
) -> None:
    with pytest.raises(InputError, match="give base=PATH"):
        measured(AdapterOnBase(adapter=adapters["adapter"], base=None), tuned)
    renamed = tmp_path / "renamed"
    shutil.copytree(adapters["adapter"], renamed)
    tensors = load_file(renamed / "adapter_model.safetensors")
    save_file(
        {name.replace("query", "q").replace("value", "v"): t for name, t in tensors.items()},
        renamed / "adapter_model.safetensors",
    )
    config = json.loads((renamed / "adapter_config.json").read_text())
    config["target_modules"] = ["q", "v"]
    (renamed / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="none of its 4 matrices"):
        measured(AdapterOnBase(adapter=adapters["adapter"], base=None), renamed)
