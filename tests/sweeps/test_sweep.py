"""Whole sweeps: from specifications to ended runs, spectra and tables."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from lowrank_study.answers.tables import runs_table, spectra_tables
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.loaded import model_folder
from lowrank_study.reporting.sweep_report import report_sweep, study_tables
from lowrank_study.results import spectra_file
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec
from lowrank_study.spectra.spectra_file import load_spectra
from lowrank_study.sweeps import plan
from lowrank_study.sweeps.launch import Place, local
from lowrank_study.sweeps.plan import check_models
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.sweeps.updates import updates_of_run
from lowrank_study.training.models import build_model


def specs_of(tiny_overrides: list[str], *variants: list[str]) -> list[RunSpec]:
    return [compose(*tiny_overrides, *variant) for variant in variants]


FULL, LORA = ["method=full", "method.learning_rate=3e-3"], ["method.rank=2"]
HOT = ["method.rank=2", "method.learning_rate=1e38"]
UNCLIPPED = "trainer.max_grad_norm=1e38"
NO_MLP = "method.options.feedforward_modules=[]"


@pytest.mark.slow
def test_a_sweep_with_a_run_that_diverges(tiny_overrides: list[str], tmp_path: Path) -> None:
    specs = specs_of([*tiny_overrides, UNCLIPPED], LORA, HOT, FULL, LORA)
    runs = sweep(specs, name="three", results=tmp_path, question="What?", launcher="inline")
    status = {run.spec.run_id: run.status for run in runs}
    assert status == {specs[0].run_id: "done", specs[1].run_id: "diverged", specs[2].run_id: "done"}
    assert not list((tmp_path / "runs" / ".running").iterdir())
    table = runs_table(runs)
    assert table["status"].value_counts().to_dict() == {"done": 2, "diverged": 1}
    [message] = table.loc[table["status"] == "diverged", "message"]
    assert "learning rate 1e+38" in message
    spectra, values = spectra_tables(runs, tmp_path)
    assert set(spectra["run_id"]) == {specs[0].run_id, specs[2].run_id}
    lora = spectra[spectra["run_id"] == specs[0].run_id]
    assert sorted(lora["role"].unique()) == ["query", "value"]
    assert (lora["numerical_rank"] == 2).all()
    assert len(values[values["run_id"] == specs[0].run_id]) == len(lora) * 2
    tables = study_tables("three", results=tmp_path)
    assert tables.provenance["reviews on tiny"]["trainer.epochs"] == 1
    assert tables.question == "What?"
    assert tables.planned == 3
    assert tables.comparison.empty
    compared = study_tables("three", results=tmp_path, margin=0.02).comparison
    assert list(compared["seeds"]) == [1]
    difference = table.set_index("run_id")["test_score"]
    expected = difference[specs[0].run_id] - difference[specs[2].run_id]
    assert compared["difference"].tolist() == pytest.approx([expected])
    # an unfinished sweep can be read but not reported
    more = [*specs, *specs_of(tiny_overrides, ["method.rank=3"])]
    RunStore(tmp_path / "runs").plan("more", [[spec] for spec in more], question="")
    assert len(study_tables("more", results=tmp_path).runs) == 3
    with pytest.raises(InputError, match="1 of the 4 planned runs has not ended"):
        report_sweep("more", results=tmp_path)
    # the second call trains nothing and is fast
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")}
    sweep(specs, name="three", results=tmp_path, launcher="inline")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")} == stamps


@pytest.mark.slow
def test_the_spectra_are_those_of_the_saved_weights(
    tiny_overrides: list[str], tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    from safetensors.numpy import load_file

    specs = specs_of(tiny_overrides, FULL, LORA)
    full, lora = sweep(specs, name="two", results=tmp_path, launcher="inline")
    before = load_file(tiny_model("bert") / "model.safetensors")
    after = load_file(full.checkpoint / "model.safetensors")
    measured = {s.module: s for s in load_spectra(spectra_file(tmp_path, full.spec.run_id))}
    matrices = [n for n, w in after.items() if w.ndim == 2 and n.removeprefix("bert.") in before]
    assert set(measured) == {name.removesuffix(".weight") for name in matrices}
    for name in matrices:
        delta = after[name].astype(np.float64) - before[name.removeprefix("bert.")]
        expected = np.linalg.svd(delta, compute_uv=False)
        found = measured[name.removesuffix(".weight")].singular_values
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-7 * expected[0])
    roles = {update.role for update in updates_of_run(full) if update.layer is not None}
    assert roles == {"query", "key", "value", "attention_output", "mlp_up", "mlp_down"}
    factors = load_file(lora.checkpoint / "adapter_model.safetensors")
    scaling = lora.spec.method.scaling  # type: ignore[union-attr]
    for update in updates_of_run(lora):
        stem = f"base_model.model.{update.name}.lora_"
        delta = scaling * factors[f"{stem}B.weight"] @ factors[f"{stem}A.weight"]
        expected = np.linalg.svd(delta, compute_uv=False)[:2]
        spectrum = {s.module: s for s in load_spectra(spectra_file(tmp_path, lora.spec.run_id))}
        np.testing.assert_allclose(spectrum[update.name].singular_values, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["method.target=q_proj"], "'q_proj' matches no linear map"),
        (["method.rank=17"], r"method.rank=17: .* from 1 to 16"),
        (["task.label_column=stars"], "'stars' is not a column"),
        (["task.validation_size=100000"], "no rows"),
    ],
)
def test_one_bad_run_and_nothing_is_written(
    bad: list[str], message: str, tiny_overrides: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        sweep(specs_of(tiny_overrides, LORA, bad), name="x", results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_texts_longer_than_the_models_positions_are_refused(
    tiny_overrides: list[str], review_file: Path, tmp_path: Path
) -> None:
    header, first, *rows = review_file.read_text().splitlines()
    long = tmp_path / "long.csv"
    long.write_text("\n".join([header, "good " * 70 + first, *rows]))
    bad = [f"task.source={long}", "task.max_length=70"]
    with pytest.raises(InputError, match=r"task.max_length=70: .* has positions for 64"):
        sweep(specs_of(tiny_overrides, FULL, bad), name="x", results=tmp_path / "results")
    check_models(specs_of(tiny_overrides, FULL, [bad[0], "task.max_length=64"]), tmp_path)


@pytest.mark.slow
def test_a_sweep_without_workers_is_unfinished(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = specs_of(tiny_overrides, LORA, FULL)
    sweep(specs[:1], name="x", results=tmp_path, launcher="inline")
    dies, popen = [sys.executable, "-c", "raise SystemExit(1)"], subprocess.Popen
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, **__: popen(dies))
    with pytest.raises(Unfinished, match="1 of 2 runs have not ended"):
        sweep(specs, name="x", results=tmp_path)


@pytest.mark.slow
def test_an_adapter_without_a_readable_update_still_trains(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    """IA3 multiplies activations, so it has no exact ΔW."""
    specs = specs_of(tiny_overrides, ["method=peft", "method.peft_type=IA3", NO_MLP], FULL)
    runs = sweep(specs, name="ia3", results=tmp_path, launcher="inline")
    assert [run.status for run in runs] == ["done", "done"]
    assert load_spectra(spectra_file(tmp_path, specs[0].run_id)) == []
    _, found = report_sweep("ia3", results=tmp_path)
    assert found.startswith(
        f"2 of 2 planned runs are done. 1 run has no spectra ({specs[0].run_id}): the updates of "
        "peft_type=IA3 can't be read as exact matrices."
    )


@pytest.mark.slow
def test_a_linear_probe_trains_only_the_head(tiny_overrides: list[str], tmp_path: Path) -> None:
    specs = specs_of(tiny_overrides, ["method=head", "method.rank=4"], FULL)
    head, full = sweep(specs, name="head", results=tmp_path, launcher="inline")
    assert head.spec.run_id.startswith("reviews-tiny-head-lr")
    assert head.record["trainable_parameters"] < full.record["trainable_parameters"] / 10
    base = load_file(model_folder(specs[0].model) / "model.safetensors")
    tuned = load_file(head.checkpoint / "model.safetensors")
    trained = {name for name in tuned if name.removeprefix("bert.") not in base}
    assert trained == {"classifier.weight", "classifier.bias"}
    for name in set(tuned) - trained:
        np.testing.assert_array_equal(tuned[name], base[name.removeprefix("bert.")])
    start = build_model(specs[0], model_folder(specs[0].model), number_of_labels=2).state_dict()
    assert all(np.any(tuned[name] != start[name].numpy()) for name in trained)
    assert list(updates_of_run(head)) == []
    assert load_spectra(spectra_file(tmp_path, head.spec.run_id)) == []
    tables = study_tables("head", results=tmp_path, margin=0.02)
    assert set(tables.runs["method"]) == {"head", "full"}
    _, found = report_sweep("head", results=tmp_path, margin=0.02)
    score = tables.runs.set_index("method")["test_score"]["head"]
    assert f"a linear probe {score:.3f}" in found


def test_pack_size_is_limited_and_is_one_for_padded_texts(
    tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [spec] = specs_of(tiny_overrides, LORA)
    places = [Place(cores="0", device="cpu")]
    assert plan.most_packed(spec, places, None) == 4
    assert plan.most_packed(spec, places, 2) == 2
    assert plan.most_packed(spec, places, 7) == 7
    monkeypatch.setattr("lowrank_study.training.unpadded.can_unpad", lambda _: False)
    assert plan.most_packed(spec, places, 2) == 1


def test_a_full_disk_is_refused_before_training(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="not enough disk space"):
        check_models(specs_of(tiny_overrides, FULL), tmp_path)


@pytest.mark.slow
def test_a_killed_worker_loses_only_its_run(tiny_overrides: list[str], tmp_path: Path) -> None:
    slow = ["method.rank=3", "trainer.epochs=400"]
    specs = specs_of(tiny_overrides, slow, LORA)
    script = (
        "import sys, pickle; from pathlib import Path;"
        "from lowrank_study.sweeps.sweep import sweep;"
        "specs = pickle.loads(Path(sys.argv[1]).read_bytes());"
        "sweep(specs, name='k', results=Path(sys.argv[2]), workers=1)"
    )
    import pickle

    (tmp_path / "specs").write_bytes(pickle.dumps(specs))
    command = [sys.executable, "-c", script, str(tmp_path / "specs"), str(tmp_path / "results")]
    slot = tmp_path / "results" / "runs" / ".running" / specs[0].run_id
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = [json.loads(lease.read_text()) for lease in slot.glob("*/lease.json")]
            if found and found[0]["progress"] > 0:
                break
            time.sleep(0.1)
        os.kill(found[0]["pid"], signal.SIGKILL)
        assert parent.wait(120) == 0
    runs = RunStore(tmp_path / "results" / "runs").ended([spec.run_id for spec in specs])
    assert [run.status for run in runs] == ["failed", "done"]
    assert "SIGKILL" in runs[0].record["message"]


@pytest.mark.slow
def test_a_short_real_run_learns(real_cache: None, tmp_path: Path) -> None:
    """The pinned model on the pinned reviews beats always giving the commonest class."""
    small = [
        "model.dropout=0.0",
        "task.train_size=768",
        "task.test_size=400",
        "task.validation_size=100",
    ]
    specs = [
        compose(*small, "method=full"),
        compose(*small, "method.rank=8", "method.learning_rate=5e-3"),
    ]
    runs = sweep(specs, name="real", results=tmp_path)
    for run in runs:
        assert run.status == "done", run.record
        test = run.record["test"]
        # 3.5 standard errors of 400 texts above always answering "fresh"
        margin = 3.5 * (0.25 / 400) ** 0.5
        assert test["accuracy"] > test["majority_accuracy"] + margin, run.spec.run_id
        predictions = pd.read_parquet(run.folder / "predictions.parquet")
        assert len(predictions) == 400
        assert (predictions["label"] == predictions["predicted"]).mean() == test["accuracy"]
    spectra, _ = spectra_tables(runs, tmp_path)
    full = spectra[(spectra["run_id"] == runs[0].spec.run_id) & spectra["layer"].notna()]
    assert len(full) == 36
    assert full["resolvable"].all()
    by_layer = full.groupby("layer")["energy_rank_90"].median()
    assert by_layer[5] < by_layer[0]  # what the classifier reads moves in fewest directions
    lora = spectra[spectra["run_id"] == runs[1].spec.run_id]
    assert len(lora) == 12
    assert (lora["numerical_rank"] == 8).all()
