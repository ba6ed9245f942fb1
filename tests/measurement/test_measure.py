"""Measurements of checkpoints and adapters, against plain numpy on the same files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.errors import InputError
from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.records import Step
from lowrank_study.measurement.subjects import AdapterOnBase, CheckpointPair
from lowrank_study.spectra.measures import MEASURES
from tests.measurement.conftest import (
    by_module,
    changed_copy,
    delta_of,
    low_rank,
    measured,
    settings,
)

MEASURES_OF_RANK = [measure.name for measure in MEASURES if measure.group == "rank"]


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
    """Two copies of one model, the second in bfloat16, so only rounding differs."""
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


def test_an_untrained_adapter_is_reported_as_untrained(adapters: dict[str, Path]) -> None:
    found = measured(AdapterOnBase(adapter=adapters["untrained"], base=None))
    assert [matrix.state for matrix in found.matrices] == ["untrained"] * 4
    assert [matrix.readings["energy_rank_90"].value for matrix in found.matrices] == [0.0] * 4
    assert any("4 of 4 adapted matrices are untrained" in flag for flag in found.flags)


def test_nonfinite_matrices_are_left_out_with_the_reason(base: Path, tmp_path: Path) -> None:
    bad = "encoder.layer.0.attention.self.query.weight"

    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = low_rank(name, tensor)
        if name == bad:
            tensor[0, 0], tensor[1, 1] = float("nan"), float("inf")
        return tensor

    found = measured(CheckpointPair(before=base, after=changed_copy(base, tmp_path / "bad", spoil)))
    assert found.skipped == {bad.removesuffix(".weight"): "1 NaN and 1 infinite values"}
    assert len(found.matrices) == 15


def test_a_pair_of_only_nonfinite_matrices_is_refused(base: Path, tmp_path: Path) -> None:
    broken = changed_copy(base, tmp_path / "broken", lambda name, tensor: tensor * float("nan"))
    with pytest.raises(InputError, match=r"no matrix could be measured .*1024 NaN"):
        measured(CheckpointPair(before=base, after=broken))


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
    """The rank is left open only if the rounding of a coarse base is in the difference."""
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
