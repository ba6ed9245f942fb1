"""A measurement reports what it leaves out before it begins, counted in parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError
from lowrank_study.measurement.records import Measurement
from lowrank_study.measurement.request import measure_request, read_request

HEAD = {"classifier.weight": torch.ones(2, 16), "classifier.bias": torch.ones(2)}


def encoder(change: float) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    names = [f"layer.{layer}.{part}.weight" for layer in range(4) for part in ("query", "value")]
    return {name: torch.randn(16, 16, generator=random) + change for name in names}


def measured(told: list[str], **given: Any) -> Measurement:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return measure_request(
        read_request(composed("measure_spectra") | plain),
        on_progress=lambda step: told.append(step.name),
        on_left_out=told.extend,
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file(encoder(0.0), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def test_a_new_head_is_reported_first_and_the_rest_is_measured(base: Path, tmp_path: Path) -> None:
    save_file(encoder(1.0) | HEAD, tmp_path / "tuned.safetensors")
    told: list[str] = []
    found = measured(told, before=base, after=tmp_path / "tuned.safetensors")
    assert told[0].startswith("left out: 34 of 2,082 parameters of after (1.6 %)")
    assert "classifier" in told[0]
    assert told[1] == "layer.0.query"
    assert len(found.matrices) == 8
    assert found.total == 9
    assert [part.count for part in found.left_out] == [34]


def test_more_than_a_twentieth_is_refused_before_anything_is_measured(
    base: Path, tmp_path: Path
) -> None:
    half = {name: tensor for name, tensor in encoder(1.0).items() if "query" in name}
    save_file(half, tmp_path / "half.safetensors")
    told: list[str] = []
    with pytest.raises(InputError, match=r"1,024 of 2,048 parameters of before.*allow_partial"):
        measured(told, before=base, after=tmp_path / "half.safetensors")
    assert told == []
    found = measured(told, before=base, after=tmp_path / "half.safetensors", allow_partial=True)
    assert "1,024 of 2,048" in told[0]
    assert (len(found.matrices), found.total) == (4, 8)


def test_a_diverged_matrix_is_counted_when_it_is_found(base: Path, tmp_path: Path) -> None:
    broken = encoder(1.0)
    broken["layer.2.value.weight"][3, 3] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors")
    told: list[str] = []
    with pytest.raises(InputError, match=r"256 of 2,048 .* NaN or infinite"):
        measured(told, before=base, after=tmp_path / "broken.safetensors")
    found = measured(told, before=base, after=tmp_path / "broken.safetensors", allow_partial=True)
    assert {part.of for part in found.left_out} == {"before", "after"}
    assert (len(found.matrices), found.total) == (7, 8)


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_all_matrices_are_called_identical_only_if_all_were_compared(
    base: Path, tmp_path: Path, change: float
) -> None:
    more = encoder(0.0) | {"layer.4.query.weight": torch.ones(2, 16)}
    save_file(more, tmp_path / "more.safetensors")
    told: list[str] = []
    part = measured(told, before=base, after=tmp_path / "more.safetensors")
    assert any("in the 8 of 9 matrices that were compared" in flag for flag in part.flags)
    save_file(encoder(change), tmp_path / "same.safetensors")
    whole = measured(told, before=base, after=tmp_path / "same.safetensors")
    assert any("in every matrix" in flag for flag in whole.flags) == (change == 0.0)


def test_an_adapters_new_head_is_a_part_of_the_adapted_model(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", HEAD)
    told: list[str] = []
    found = measured(told, adapter=folder, base=base)
    assert told[0] == (
        "left out: 34 of 2,082 parameters of the adapted model (1.6 %): "
        "new in the adapter, with no W0 to compare with: classifier.bias, classifier"
    )
    assert len(found.matrices) == 2


def test_without_a_base_new_tensors_are_unknown(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", HEAD)
    told: list[str] = []
    with pytest.raises(InputError, match=r"34 of 162 parameters of adapter .*give base=MODEL"):
        measured(told, adapter=folder)
    measured(told, adapter=folder, allow_partial=True)
    assert told[0].startswith("left out: 34 of 162 parameters of adapter (21 %)")


def adapter(folder: Path, more: dict[str, torch.Tensor]) -> Path:
    """A LoRA of rank 2 on two matrices, as PEFT saves it."""
    tensors = {f"base_model.model.{name}": tensor for name, tensor in more.items()}
    for part in ("query", "value"):
        module = f"base_model.model.layer.0.{part}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, 16)
        tensors[f"{module}.lora_B.weight"] = torch.randn(16, 2)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_shares_of_an_adapter_are_of_all_its_parameters(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_file(encoder(0.0) | {"embed_tokens.weight": torch.ones(40, 16)}, base)
    folder = adapter(tmp_path / "adapter", HEAD | {"embed_tokens.weight": torch.ones(41, 16)})
    found = measured([], adapter=folder, base=base)
    parts = {part.of: (part.count, part.total) for part in found.left_out}
    assert parts == {"adapter": (16, 128 + 34 + 656), "the adapted model": (34, 2048 + 640 + 34)}


def test_another_update_may_be_a_single_file_of_either_kind(base: Path, tmp_path: Path) -> None:
    save_file(encoder(1.0), tmp_path / "tuned.safetensors")
    first = adapter(tmp_path / "first", {})
    told: list[str] = []
    pair = {"before": base, "after": tmp_path / "tuned.safetensors"}
    found = measured(told, **pair, other=first / "adapter_model.safetensors")
    assert [m.spectrum.factored for m in found.other_matrices] == [True, True]
    found = measured(told, adapter=first, base=base, other=tmp_path / "tuned.safetensors")
    assert len(found.other_matrices) == 8
    assert sum(matrix.similarity is not None for matrix in found.matrices) == 2


def test_another_update_may_have_other_names(tmp_path: Path) -> None:
    old, new = "model.layers.0.q.weight", "model.language_model.layers.0.q.weight"
    W0, W, other = (torch.randn(16, 16) for _ in range(3))
    for file, tensors in (("base", {old: W0}), ("first", {old: W}), ("second", {new: other})):
        save_file(tensors, tmp_path / f"{file}.safetensors")
    before, after, second = (tmp_path / f"{f}.safetensors" for f in ("base", "first", "second"))
    found = measured([], before=before, after=after, other=second)
    assert found.matrices[0].similarity is not None


@pytest.mark.parametrize("role", ["adapter", "other", "after"])
def test_a_folder_of_several_adapters_names_them(base: Path, tmp_path: Path, role: str) -> None:
    for name in ("poetry", "prose"):
        adapter(tmp_path / "several" / name, {})
    given: dict[str, Any] = {"base": base, "adapter": adapter(tmp_path / "first", {})}
    if role == "after":
        given = {"before": base}
    with pytest.raises(InputError, match=r"holds 2 adapters .*\(poetry, prose\); give one"):
        measured([], **(given | {role: tmp_path / "several"}))


def test_further_adapters_beside_the_first_are_reported(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "first", {})
    adapter(folder / "second", {})
    found = measured([], adapter=folder, base=base)
    assert "1 more adapters in its subfolders aren't read: second" in found.flags
