"""Check that the controls give the values known from theory."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_study.answers import measured_controls
from lowrank_study.answers.controls import (
    CONTROL_COLUMNS,
    RANKS,
    controls_of,
    decay_of,
    decayed_share,
    noise_like,
)
from lowrank_study.answers.full_runs import chosen_full_runs
from lowrank_study.answers.measured_controls import measure_controls, read_controls, read_request
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.reporting.sections.controls import control_ranks
from lowrank_study.reporting.setting import settings_data
from lowrank_study.reporting.study import checked
from lowrank_study.reporting.sweep_report import study_tables
from lowrank_study.results import controls_file, spectra_file
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spectra.ranks import energy_rank
from lowrank_study.spectra.spectra_file import load_spectra
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.tables import row
from lowrank_study.spectra.updates import DenseUpdate
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.training.optim import make_optimizer, make_schedule

FULL = ["method=full", "method.learning_rate=5e-3"]
SHUFFLED = "trainer.shuffle_labels=true"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `results` trains into once."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def results(trained: Path, tiny_overrides: list[str], tmp_path: Path) -> Path:
    """Return a folder with two seeds of full fine-tuning, one also on shuffled labels."""
    if not (trained / "runs").is_dir():
        variants = [["seed=0"], ["seed=1"], ["seed=0", SHUFFLED]]
        specs = [compose(*tiny_overrides, *FULL, *variant) for variant in variants]
        sweep(specs, name="three", results=trained, device="cpu", launcher="inline")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def ended(results: Path) -> list[TrainedRun]:
    store = RunStore(results / "runs")
    return store.ended(store.sweep("three"))


def update_of(delta: np.ndarray, W0: np.ndarray) -> DenseUpdate:
    return DenseUpdate(
        name="layer.0.query", layer=0, role="query", storage_dtype="float32", delta_OI=delta,
        W0_OI=W0,
    )  # fmt: skip


def test_noise_has_the_ranks_known_from_theory() -> None:
    n, rng = 300, np.random.default_rng(0)
    update = update_of(np.outer(np.ones(n), np.ones(n)) / n, np.eye(n))
    read = row(measure(noise_like(update, rng), method="gram"))
    assert read["frobenius_norm"] == pytest.approx(1.0)
    assert read["energy_rank_90"] == pytest.approx(0.509 * n, abs=0.01 * n)
    assert read["energy_rank_99"] == pytest.approx(0.77 * n, abs=0.01 * n)
    assert read["effective_rank"] == pytest.approx(0.804 * n, abs=0.01 * n)
    assert read["participation_ratio"] == pytest.approx(0.5 * n, abs=0.01 * n)
    assert read["stable_rank"] == pytest.approx(n / 4, rel=0.06)
    assert read["gavish_donoho_rank"] == 0


def test_decay_has_the_spectrum_of_the_weight() -> None:
    W0 = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    found = measure(decay_of(update_of(np.ones((20, 12)), W0), 1e-4), method="svd")
    expected = np.linalg.svd(W0.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, 1e-4 * expected, rtol=1e-12)
    assert energy_rank(found.singular_values, 0.9) == energy_rank(expected, 0.9)


def test_the_decayed_share_equals_what_the_optimizer_removes(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    spec = compose(*tiny_overrides, *FULL, "trainer.weight_decay=0.3")
    record = {"steps": 40, "best_step": 25}
    run = TrainedRun(spec=spec, status="done", record=record, folder=tmp_path)
    layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, spec)
    schedule = make_schedule(optimizer, 40, spec.train)
    for _ in range(25):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
        schedule.step()
    left = (layer.weight / before).detach().numpy()
    np.testing.assert_allclose(1.0 - left, decayed_share(run), rtol=1e-10)
    assert decayed_share(replace(run, record={"steps": 40, "best_step": 0})) == 0.0


def test_every_control_has_one_row_per_matrix(results: Path) -> None:
    runs = ended(results)
    [chosen] = chosen_full_runs(runs)
    shuffled = runs[2:]
    table = controls_of(chosen, shuffled, results=results, directions=5)
    assert list(table) == list(CONTROL_COLUMNS)
    matrices = len(load_spectra(spectra_file(results, chosen[0].spec.run_id)))
    counts = table["control"].value_counts().to_dict()
    assert counts.pop("seeds") == counts.pop("noise_pair") > 2 * matrices
    assert counts == {
        "trained": 2 * matrices,
        "noise": matrices,
        "weight_decay": matrices,
        "shuffled_labels": matrices,
    }
    assert set(table.loc[table["control"] == "shuffled_labels", "run_id"]) == {
        shuffled[0].spec.run_id
    }
    norms = table[table["run_id"] == chosen[0].spec.run_id].set_index(["control", "module"])
    for module in norms.loc["noise"].index:
        noise, real = norms.loc[("noise", module)], norms.loc[("trained", module)]
        assert noise["frobenius_norm"] == pytest.approx(real["frobenius_norm"])
        assert noise["relative_norm"] == pytest.approx(real["relative_norm"])
    pairs = table[table["control"] == "seeds"]
    assert set(pairs["directions"]) == {1, 2, 4}
    chance = pairs["directions"] / pairs["in_features"]
    np.testing.assert_allclose(pairs["similarity_right_chance"], chance.astype(float))


def test_updates_overlap_with_themselves_fully_and_with_noise_by_chance(results: Path) -> None:
    [[run, _]] = chosen_full_runs(ended(results))
    table = controls_of([run, run], [], results=results, directions=4)
    same = table[table["control"] == "seeds"]
    np.testing.assert_allclose(same["similarity_right"], 1.0)
    np.testing.assert_allclose(same["similarity_left"], 1.0)
    noise = table[(table["control"] == "noise_pair") & table["layer"].notna()]
    for side in ("right", "left"):
        difference = noise[f"similarity_{side}"] - noise[f"similarity_{side}_chance"]
        assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference)) + 0.02


def request(results: Path, **changes: object) -> measured_controls.ControlsRequest:
    settings = {
        "sweep": "three", "results": str(results), "device": "cpu", "launcher": "inline",
        "shuffled_seeds": 1, "directions": 2, "along_training": True,
    }  # fmt: skip
    return read_request(settings | changes)


def test_a_run_is_trained_again_to_the_same_weights(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [[run, _]] = chosen_full_runs(ended(results))
    assert run.record["best_step"] == run.record["steps"]
    assert read_controls("three", results) is None
    table = measure_controls(request(results))
    kept = read_controls("three", results)
    assert kept is not None
    pd.testing.assert_frame_equal(kept, table)
    training = table[table["control"] == "training"]
    last = run.record["steps"]
    expected = {2**octave for octave in range(10) if 2**octave < last} | {last}
    assert set(training["step"]) == expected
    spectra = load_spectra(spectra_file(results, run.spec.run_id))
    at_end = training[training["step"] == last].set_index("module")
    for spectrum in spectra:
        assert at_end.loc[spectrum.module, "frobenius_norm"] == spectrum.frobenius_norm
        assert at_end.loc[spectrum.module, "effective_rank"] == row(spectrum)["effective_rank"]

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(measured_controls, "rank_along_training", fails)
    pd.testing.assert_frame_equal(measure_controls(request(results)), table)


@pytest.mark.slow
def test_runs_on_shuffled_labels_are_controls_only(results: Path) -> None:
    [chosen] = chosen_full_runs(ended(results))
    table = measure_controls(request(results, along_training=False, shuffled_seeds=2))
    store = RunStore(results / "runs")
    trained = store.ended(store.sweep("three_shuffled"))
    shuffled = [
        replace(run.spec, train=replace(run.spec.train, shuffle_labels=True)) for run in chosen
    ]
    assert {run.spec.run_id: run.spec for run in trained} == {
        each.run_id: each for each in shuffled
    }
    read = table.loc[table["control"] == "shuffled_labels", "run_id"]
    assert set(read) == {run.spec.run_id for run in trained}
    study = study_tables("three", results=results)
    assert len(study.runs) == study.planned == 2
    assert study.truncation is not None
    assert not len(study.truncation)
    data = settings_data(checked(study))[0]
    found = set(control_ranks(data)["control"])
    assert found == {"trained", "shuffled_labels", "noise", "weight_decay"}


def test_a_sweep_without_full_fine_tuning_is_refused(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    spec = compose(*tiny_overrides, "method.rank=2")
    RunStore(tmp_path / "runs").plan("three", [[spec]], question="")
    with pytest.raises(InputError, match="no run of full fine-tuning"):
        measure_controls(request(tmp_path))
    with pytest.raises(InputError, match="directions=0"):
        request(tmp_path, directions=0)


def test_zero_shuffled_seeds_train_nothing(results: Path) -> None:
    table = measure_controls(request(results, along_training=False, shuffled_seeds=0))
    assert set(table["control"]) == {"trained", "noise", "weight_decay", "seeds", "noise_pair"}
    with pytest.raises(InputError, match="no sweep 'three_shuffled'"):
        RunStore(results / "runs").sweep("three_shuffled")


def test_a_measure_newer_than_the_stored_table_is_missing(tmp_path: Path) -> None:
    path = controls_file(tmp_path, "old")
    path.parent.mkdir(parents=True)
    pd.DataFrame({"run_id": pd.Series(["a"]), "control": ["noise"]}).to_parquet(path)
    table = read_controls("old", tmp_path)
    assert table is not None
    assert table[list(RANKS)].isna().all(axis=None)
