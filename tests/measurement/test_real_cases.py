"""Real inputs are measured: this project's runs, PEFT's adapters and a GGUF file.

Each is held against something that knows nothing of the analyzer: the files themselves, PEFT's
own merge, or WeightWatcher's formula.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from lowrank_study.assets import fetch
from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.config.run import compose, composed
from lowrank_study.loaded import model_folder
from lowrank_study.measurement.records import MeasuredMatrix, Measurement
from lowrank_study.measurement.request import measure_request, read_request
from lowrank_study.results import spectra_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra.adapter_updates import updates_of_adapter
from lowrank_study.spectra.measures import MEASURES
from lowrank_study.spectra.spectra_file import load_spectra
from lowrank_study.spectra.updates import FactoredUpdate
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.models import load_model

Array = npt.NDArray[np.float64]
RANK, ALPHA = 4, 6.0
# Without decay: it would move the embeddings of tokens that no text has.
SHORT = ["task.train_size=64", "task.validation_size=32", "task.test_size=32"]
SHORT += ["trainer.weight_decay=0.0"]


def analyzed(**given: Any) -> Measurement:
    """Do what `analysis/measure_spectra.py` does, up to the report."""
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in given.items()
    }
    return measure_request(
        read_request(composed("measure_spectra") | plain),
        on_progress=lambda step: None,
        on_left_out=print,
    )


def by_module(found: Measurement) -> dict[str, MeasuredMatrix]:
    return {matrix.spectrum.module: matrix for matrix in found.matrices}


def differences(before: Path, after: Path, prefix: str = "") -> dict[str, Array]:
    """Give W - W0 of the matrices of two files, by module; those of `after` have a prefix."""
    W0, W = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {
        name.removesuffix(".weight"): (W[name].double() - W0[name.removeprefix(prefix)]).numpy()
        for name in W
        if name.removeprefix(prefix) in W0 and W[name].ndim == 2 and name.endswith(".weight")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    results: Path
    base: Path
    full: TrainedRun
    lora: TrainedRun


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train the pinned model for a few steps, in full and by LoRA."""
    results = tmp_path_factory.mktemp("results")
    specs = [compose(*SHORT, "method=full"), compose(*SHORT, f"method.rank={RANK}")]
    full, lora = sweep(specs, name="real", results=results, workers=1)
    assert [full.status, lora.status] == ["done", "done"]
    return Runs(results=results, base=model_folder(full.spec.model), full=full, lora=lora)


def check_own_spectra(found: Measurement, run: TrainedRun, results: Path) -> None:
    own = {s.module: s for s in load_spectra(spectra_file(results, run.spec.run_id))}
    assert set(by_module(found)) == set(own)
    for module, matrix in by_module(found).items():
        ours, theirs = matrix.spectrum, own[module]
        assert ours.frobenius_norm == pytest.approx(theirs.frobenius_norm, rel=1e-12)
        np.testing.assert_allclose(
            ours.singular_values,
            theirs.singular_values,
            rtol=1e-6,
            atol=theirs.absolute_error,
        )


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
def test_a_full_fine_tuning_run(runs: Runs) -> None:
    found = analyzed(before=runs.base, after=runs.full.checkpoint)
    check_own_spectra(found, runs.full, runs.results)
    deltas = differences(runs.base, runs.full.checkpoint, prefix="bert.")
    moved = {module for module, delta in deltas.items() if delta.any()}
    assert len(moved) >= 6 * 6 + 2  # six maps a layer, words and positions
    matrices = by_module(found)
    assert {name for name, matrix in matrices.items() if matrix.state == "changed"} == moved
    for module in moved:
        delta, spectrum = deltas[module], matrices[module].spectrum
        rows, columns = delta.any(axis=1), delta.any(axis=0)
        assert spectrum.active_shape == (rows.sum(), columns.sum())
        sigma = np.linalg.svd(delta[rows][:, columns], compute_uv=False)
        given = spectrum.singular_values  # zeros beyond the last may be left out
        given = np.pad(given, (0, sigma.size - given.size))
        np.testing.assert_allclose(given, sigma, rtol=0, atol=1e-7 * sigma[0])
        # weightwatcher/RMT_Util.py: stable_rank(evals) = sum(evals) / max(evals), evals = sv * sv
        assert matrices[module].readings["stable_rank"].value == pytest.approx(
            np.sum(sigma * sigma) / np.max(sigma * sigma), rel=1e-6
        )
    words = matrices["bert.embeddings.word_embeddings"].spectrum
    assert words.active_shape[0] < words.shape[0] / 10


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
def test_a_lora_run_and_the_model_it_is_merged_into(runs: Runs, tmp_path: Path) -> None:
    found = analyzed(adapter=runs.lora.checkpoint, base=runs.base)
    check_own_spectra(found, runs.lora, runs.results)
    assert len(found.matrices) == 6 * 2  # query and value of six layers
    base = AutoModelForSequenceClassification.from_pretrained(runs.base, num_labels=2)
    peft: Any = PeftModel.from_pretrained(base, runs.lora.checkpoint)
    peft.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = by_module(analyzed(before=runs.base, after=tmp_path / "merged"))
    changed = {name for name, matrix in merged.items() if matrix.state == "changed"}
    assert changed == set(by_module(found))
    for module, matrix in by_module(found).items():
        sigma = matrix.spectrum.singular_values
        assert sigma.size == RANK
        twin = merged[module].spectrum
        for reading in (
            matrix.readings["numerical_rank"],
            merged[module].readings["numerical_rank"],
        ):
            assert reading.status == "resolved"
            assert reading.value is not None
            assert reading.value <= RANK
        # by Weyl's inequality, as merging rounds W in float32
        assert np.abs(twin.singular_values[:RANK] - sigma).max() < twin.rounding_edge
        assert twin.singular_values[RANK] < twin.rounding_edge


@pytest.fixture(params=["tiny", pytest.param("minilm", marks=pytest.mark.slow)])
def base(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], real_cache: None
) -> Path:
    if request.param == "tiny":
        return tiny_model("bert")
    return model_folder(compose("model=minilm").model)


def trained_by_peft(base: Path, **options: Any) -> Any:
    """Train an adapter on made-up texts until all its parts differ from their initial values."""
    torch.manual_seed(0)
    targets = ["query", "value", "intermediate.dense"]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **options)
    model: Any = get_peft_model(AutoModel.from_pretrained(base), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens = torch.randint(5, model.config.vocab_size, (8, 12))
    wanted = torch.randn(8, model.config.hidden_size)
    for _ in range(10):
        optimizer.zero_grad()
        mean = model(input_ids=tokens).last_hidden_state.mean(dim=1)
        (mean - wanted).square().mean().backward()
        optimizer.step()
    return model


def merged_matrices(model: Any) -> dict[str, torch.Tensor]:
    merged: Mapping[str, torch.Tensor] = copy.deepcopy(model).merge_and_unload().state_dict()
    return {name.removesuffix(".weight"): tensor for name, tensor in merged.items()}


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_an_adapter_trained_by_peft_is_its_own_merge(base: Path, tmp_path: Path, kind: str) -> None:
    model = trained_by_peft(base, **{f"use_{kind}": True})
    model.save_pretrained(tmp_path)
    in_single, in_double = merged_matrices(model), merged_matrices(model.double())
    readings = by_module(analyzed(adapter=tmp_path, base=base, method="svd"))
    layers = model.config.num_hidden_layers
    with open_adapter(tmp_path) as adapter, open_weights(base) as weights:
        updates = list(updates_of_adapter(adapter, base=weights, roles={}, skipped={}))
    assert {update.name for update in updates} == set(readings)
    assert len(updates) == 3 * layers
    for update in updates:
        assert update.W0_OI is not None
        delta = update.dense()
        if isinstance(update, FactoredUpdate):
            assert update.scaling == pytest.approx(ALPHA / RANK**0.5)
        single, double = (w[update.name].double().numpy() for w in (in_single, in_double))
        rounding = 4 * np.finfo(np.float32).eps * np.abs(single).max()
        np.testing.assert_allclose(delta, single - update.W0_OI, rtol=0, atol=rounding)
        np.testing.assert_allclose(delta, double - update.W0_OI, rtol=0, atol=1e-12)
        sigma = np.linalg.svd(double - update.W0_OI, compute_uv=False)
        found = readings[update.name].spectrum.singular_values
        clear = sigma > 1e-9 * sigma[0]
        np.testing.assert_allclose(found[clear[: found.size]], sigma[clear], rtol=1e-5)
        rank = readings[update.name].readings["numerical_rank"].value
        assert rank is not None
        # DoRA's trained magnitudes scale the rows of W0, which no product of rank 4 does
        assert rank > RANK if kind == "dora" else rank <= RANK


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return fetch(compose("model=smollm2").model.source)


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
def test_a_gguf_file_against_itself(smollm2: Path) -> None:
    """SmolLM2-135M as Q4_1."""
    found = analyzed(before=smollm2, after=smollm2)
    assert len(found.matrices) == 30 * 7 + 1  # seven maps a layer, and the tied embedding
    for matrix in found.matrices:
        assert matrix.state == "identical"
        assert matrix.spectrum.frobenius_norm == 0.0
        assert not matrix.spectrum.singular_values.any()
        assert matrix.readings["energy_rank_99"].value == 0.0
        assert matrix.readings["effective_rank"].status == "undefined"
    assert {vector.norm_of_change for vector in found.vectors} == {0.0}
    assert any("identical in every matrix" in flag for flag in found.flags)


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gguf_file_against_a_rounded_copy(
    smollm2: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Only rounding differs, yet σ alone suggests a rank in the hundreds."""
    with open_weights(smollm2) as weights:
        names = [name for name in weights.names() if name.startswith(("blk.0.", "blk.29."))]
        exact = {name: torch.from_numpy(np.array(weights.read(name))) for name in names}
    save_file(exact, tmp_path / "exact.safetensors")
    rounded = {name: tensor.to(dtype) for name, tensor in exact.items()}
    save_file(rounded, tmp_path / "rounded.safetensors")
    ranks = [measure.name for measure in MEASURES if measure.group == "rank"]
    for before in (smollm2, tmp_path / "exact.safetensors"):
        after = tmp_path / "rounded.safetensors"  # two of its layers
        found = analyzed(before=before, after=after, allow_partial=True)
        matrices = [matrix for matrix in found.matrices if matrix.state == "changed"]
        assert len(matrices) == 14
        for matrix in matrices:
            assert {matrix.readings[name].status for name in ranks} == {"not resolvable"}
            as_read = matrix.readings["energy_rank_90"].as_read
            assert as_read is not None
            assert as_read > 0.3 * min(matrix.spectrum.shape)


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
def test_a_gguf_model_is_dequantised_once_to_the_weights_of_our_own_reader(smollm2: Path) -> None:
    folder = model_folder(compose("model=smollm2").model)
    with open_weights(folder) as dequantised, open_weights(smollm2) as quantised:
        [name] = [
            n
            for n in quantised.names()
            if n.endswith(("blk.0.ffn_up.weight", "layers.0.mlp.up_proj.weight"))
        ]
        [same] = [n for n in dequantised.names() if n.endswith("layers.0.mlp.up_proj.weight")]
        np.testing.assert_array_equal(dequantised.read(same), quantised.read(name))
    model = load_model(Classification, folder, number_of_labels=3, dropout=None)
    assert model.config.model_type == "llama"  # type: ignore[union-attr]
