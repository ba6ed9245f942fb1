"""Measurements of checkpoints and adapters, held against plain numpy on the same files."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError
from lowrank_study.measurement import comparison
from lowrank_study.measurement import flags as flags_module
from lowrank_study.measurement import request as request_module
from lowrank_study.measurement.files import (
    AdapterOnBase,
    CheckpointPair,
    Subject,
)
from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.records import (
    MeasuredMatrix,
    Measurement,
    MeasureSettings,
    Step,
)
from lowrank_study.measurement.request import read_request
from lowrank_study.spec import HubRepo
from lowrank_study.spectra.measures import MEASURES

Tensors = Mapping[str, torch.Tensor]
Array = npt.NDArray[np.float64]
MEASURES_OF_RANK = [measure.name for measure in MEASURES if measure.group == "rank"]


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


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_copy(base, tmp_path_factory.mktemp("tuned") / "low", low_rank)


@pytest.fixture(scope="module")
def noisy_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_copy(base, tmp_path_factory.mktemp("noisy") / "noisy", noisy)


@pytest.fixture(scope="module")
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


def test_every_rank_is_what_plain_numpy_says(base: Path, noisy_model: Path) -> None:
    found = by_module(measured(CheckpointPair(before=base, after=noisy_model), method="svd"))
    assert len(found) == 16
    for module, matrix in found.items():
        delta = delta_of(base, noisy_model, module)
        sigma = np.linalg.svd(delta, compute_uv=False)
        energy = np.cumsum(sigma**2) / np.sum(sigma**2)
        share = sigma / sigma.sum()
        expected = {
            # as WeightWatcher and textbooks have it: ‖·‖²_F / ‖·‖²_2
            "stable_rank": (np.linalg.norm(delta) / np.linalg.norm(delta, 2)) ** 2,
            "effective_rank": np.exp(-np.sum(share * np.log(share))),
            "participation_ratio": np.sum(sigma**2) ** 2 / np.sum(sigma**4),
            "energy_rank_90": 1 + np.argmax(energy >= 0.9),
            "energy_rank_95": 1 + np.argmax(energy >= 0.95),
            "energy_rank_99": 1 + np.argmax(energy >= 0.99),
            "numerical_rank": np.linalg.matrix_rank(delta),
            "frobenius_norm": np.linalg.norm(delta),
            "largest_singular_value": np.linalg.norm(delta, 2),
        }
        for name, value in expected.items():
            assert matrix.readings[name].value == pytest.approx(value, rel=1e-9), name
            assert matrix.readings[name].status == "resolved"


def test_a_low_rank_update_in_float32(base: Path, tuned: Path) -> None:
    found = measured(CheckpointPair(before=base, after=tuned))
    for matrix in found.matrices:
        assert matrix.state == "changed"
        assert matrix.readings["numerical_rank"].value == 2
        assert matrix.readings["energy_rank_99"].value == min(2, *matrix.spectrum.shape)
        assert matrix.readings["power_law_rate"].status == "undefined"
    assert found.flags == []
    assert found.skipped == {}


def test_rounding_alone_is_not_resolvable(tuned: Path, tmp_path: Path) -> None:
    """Two copies of one model, the second in bfloat16: all that differs is rounding."""
    rounded = changed_copy(tuned, tmp_path / "rounded", lambda name, tensor: tensor.bfloat16())
    found = measured(CheckpointPair(before=tuned, after=rounded))
    changed = [matrix for matrix in found.matrices if min(matrix.spectrum.shape) > 8]
    assert len(changed) == 15
    for matrix in changed:
        for name in MEASURES_OF_RANK:
            reading = matrix.readings[name]
            assert reading.value is None, name
            assert reading.status == "not resolvable"
        as_read = matrix.readings["energy_rank_90"].as_read
        assert as_read is not None
        assert as_read > 4
    assert any("bfloat16" in flag for flag in found.flags)
    assert len(found.vectors) == 23
    for vector in found.vectors:
        assert 0 < vector.norm_of_change < vector.rounding_norm
        assert not vector.resolvable


def test_identical_checkpoints_have_rank_zero_and_no_ratios(base: Path) -> None:
    found = measured(CheckpointPair(before=base, after=base), compare_with_base=True)
    for matrix in found.matrices:
        assert matrix.state == "identical"
        values = {name: reading.value for name, reading in matrix.readings.items()}
        for name in ("energy_rank_90", "energy_rank_99", "numerical_rank", "gavish_donoho_rank"):
            assert values[name] == 0
        for name in ("stable_rank", "effective_rank", "sigma1_over_sigma10", "power_law_rate",
                     "amplification_factor", "intruder_dimensions"):  # fmt: skip
            assert matrix.readings[name].status == "undefined"
        assert values["relative_norm"] == 0
    assert any("identical in every matrix" in flag for flag in found.flags)


def test_an_untrained_adapter_is_called_so(adapters: dict[str, Path]) -> None:
    found = measured(AdapterOnBase(adapter=adapters["untrained"], base=None))
    assert [matrix.state for matrix in found.matrices] == ["untrained"] * 4
    assert [matrix.readings["energy_rank_90"].value for matrix in found.matrices] == [0.0] * 4
    assert any("4 of 4 adapted matrices are untrained" in flag for flag in found.flags)


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


def test_what_is_too_large_is_measured_but_not_compared(
    base: Path, tuned: Path, noisy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (comparison, flags_module):
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


def test_vectors_have_a_table_of_their_own(base: Path, tuned: Path) -> None:
    found = measured(CheckpointPair(before=base, after=tuned))
    before, after = (load_file(path / "model.safetensors") for path in (base, tuned))
    names = {name for name, tensor in before.items() if tensor.dim() == 1}
    assert {vector.name for vector in found.vectors} == names
    for vector in found.vectors:
        change = (after[vector.name].double() - before[vector.name].double()).norm().item()
        assert vector.norm_of_change == pytest.approx(change, rel=1e-12)
        assert vector.resolvable


def test_what_is_not_finite_is_left_out_with_the_reason(base: Path, tmp_path: Path) -> None:
    bad = "encoder.layer.0.attention.self.query.weight"

    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = low_rank(name, tensor)
        if name == bad:
            tensor[0, 0], tensor[1, 1] = float("nan"), float("inf")
        return tensor

    found = measured(CheckpointPair(before=base, after=changed_copy(base, tmp_path / "bad", spoil)))
    assert found.skipped == {bad.removesuffix(".weight"): "1 NaN and 1 infinite values"}
    assert len(found.matrices) == 15


def test_nothing_in_common_says_what_there_was(base: Path, tmp_path: Path) -> None:
    save_file({"tower.weight": torch.ones(3, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"tower\.weight.*position_embeddings") as refused:
        measured(CheckpointPair(before=tmp_path / "other.safetensors", after=base))
    assert "\n" not in str(refused.value)


def test_only_broken_matrices_is_an_error(base: Path, tmp_path: Path) -> None:
    broken = changed_copy(base, tmp_path / "broken", lambda name, tensor: tensor * float("nan"))
    with pytest.raises(InputError, match=r"no matrix could be measured .*1024 NaN"):
        measured(CheckpointPair(before=base, after=broken))


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


def test_files_are_recorded_by_their_hashes(base: Path, tuned: Path) -> None:
    found = measured(CheckpointPair(before=base, after=tuned))
    expected = [
        (part, hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest())
        for part, path in (("before", base), ("after", tuned))
    ]
    assert [(file.part, file.sha256) for file in found.files] == expected


def test_progress_counts_every_matrix_once(base: Path, tuned: Path, noisy_model: Path) -> None:
    steps: list[Step] = []
    measure_spectra(
        CheckpointPair(before=base, after=tuned),
        other=noisy_model,
        settings=settings(),
        on_progress=steps.append,
        on_left_out=lambda parts: None,
    )
    told = [step for step in steps if step.name != "SHA-256"]
    assert [step.done for step in told] == list(range(1, 33))
    assert {step.total for step in told} == {32}
    shares = [step.share for step in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert told[-1].outcome == "90 % energy rank 2"


def fine_and_coarse(folder: Path, *, relative: float, begun: str) -> CheckpointPair:
    """A base stored in bfloat16 and a float32 model of it that was changed by rank 4.

    `begun` says what training began from: the base "as stored", or the "finer" weights that were
    rounded afterwards.
    """
    random = torch.Generator().manual_seed(1)
    w0 = torch.randn(512, 256, generator=random) / 16
    delta = torch.randn(512, 4, generator=random) @ torch.randn(4, 256, generator=random)
    delta *= relative * w0.norm() / delta.norm()
    start = w0.bfloat16().float() if begun == "as stored" else w0
    save_file({"q.weight": w0.bfloat16(), "b": w0[0].bfloat16()}, folder / "base.safetensors")
    save_file({"q.weight": start + delta, "b": start[0] + 1}, folder / "tuned.safetensors")
    return CheckpointPair(before=folder / "base.safetensors", after=folder / "tuned.safetensors")


@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize(
    ("relative", "begun", "dtype", "rank"),
    [
        (1e-3, "finer", "bfloat16", None),
        (0.2, "finer", "bfloat16", 4),
        (1e-3, "as stored", "float32", 4),
        (1e-5, "as stored", "float32", 4),
        (0.2, "as stored", "bfloat16", 4),
    ],
)
def test_a_float32_model_of_a_bfloat16_base(
    tmp_path: Path, method: str, relative: float, begun: str, dtype: str, rank: int | None
) -> None:
    """Only where its rounding really is in the difference is a coarse base's rank left open."""
    subject = fine_and_coarse(tmp_path, relative=relative, begun=begun)
    found = measured(subject, method=method)
    (matrix,) = found.matrices
    assert matrix.spectrum.storage_dtype == dtype
    # Of the counts of large singular values, rounding leaves the four largest as they are.
    names = ["energy_rank_90", "energy_rank_95"]
    for name in names if rank is None else [*names, "numerical_rank", "gavish_donoho_rank"]:
        reading = matrix.readings[name]
        assert reading.value == rank, name
        assert reading.status == ("not resolvable" if rank is None else "resolved"), name
    assert any("only before is stored in bfloat16" in flag for flag in found.flags)
    exact = [flag for flag in found.flags if "not affect the differences of 1 matrices" in flag]
    assert len(exact) == (dtype == "float32")


def test_new_and_lost_rows_of_a_vocabulary_are_told(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    w0, w = torch.randn(30, 8, generator=random), torch.randn(33, 8, generator=random)
    save_file({"embed_tokens.weight": w0, "lm_head.bias": w0[:, 0].clone()}, tmp_path / "small")
    save_file({"embed_tokens.weight": w, "lm_head.bias": w[:, 0].clone()}, tmp_path / "grown")
    sigma = np.linalg.svd(w[:30].double().numpy() - w0.double().numpy(), compute_uv=False)
    for before, after, told in (
        ("small", "grown", "30 rows before, 33 after; the first 30 are compared, 3 new rows have"),
        ("grown", "small", "33 rows before, 30 after; the first 30 are compared, the others are"),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["nothing was given", "before=PATH", "adapter=PATH"]),
        ({"before": "a"}, ["before=a", "after=PATH"]),
        ({"before": "a", "after": "b", "adapter": "c"}, ["adapter=c"]),
        ({"adapter": "a", "method": "qr"}, ["method='qr'", "gram, svd, certified"]),
        ({"adapter": "a", "directions": 0}, ["directions=0", "at least 1"]),
        ({"adapter": "a", "intruder_epsilon": 1.5}, ["1.5", "(0, 1]"]),
        ({"adapter": "a", "fit_first": 9, "fit_last": 9}, ["fit_first=9", "smaller"]),
        ({"adapter": "a", "compare_with_base": "often"}, ["'often'", "true or false"]),
        ({"adapter": "a", "out": __file__}, ["is a file"]),
    ],
)
def test_a_bad_request_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        read_request(composed("measure_spectra") | changes)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_hub_ids_and_revisions_are_fetched(
    base: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fetched(asset: object) -> Path:
        asked.append(asset)
        return base

    monkeypatch.setattr(request_module, "fetch", fetched)
    request = read_request(
        composed("measure_spectra") | {"before": "someone/model@v1.0", "after": str(tuned)}
    )
    found = request_module.measure_request(
        request, on_progress=lambda step: None, on_left_out=print
    )
    assert asked == [HubRepo(repo_id="someone/model", subset=None, revision="v1.0")]
    assert len(found.matrices) == 16
    assert request.out == Path("results/measured") / f"{tuned.parent.name}-{tuned.name}"
