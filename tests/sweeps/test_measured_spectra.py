"""Spectra, truncations and controls are read only for a run's current checkpoint."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study import checkpoints
from lowrank_study.answers.functional_rank import read_truncation
from lowrank_study.answers.measured_controls import measure_controls, read_controls
from lowrank_study.answers.measured_controls import read_request as controls_request
from lowrank_study.answers.truncated_runs import TruncateRequest, read_request, truncate_sweep
from lowrank_study.config.grids import planned_configs
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.reporting.sweep_report import study_tables
from lowrank_study.results import controls_file, spectra_file, truncation_file
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spectra.spectra_file import load_spectra, save_spectra, spectra_made_from
from lowrank_study.sweeps import updates
from lowrank_study.sweeps.measured_spectra import read_spectra, without_spectra
from lowrank_study.sweeps.outcome import check_complete
from lowrank_study.sweeps.updates import measure_run


def runs_of(results: Path) -> list[TrainedRun]:
    store = RunStore(results / "runs")
    return store.ended(store.sweep("two"))


def exchange_checkpoints(results: Path) -> None:
    """Replace the first run's checkpoint, as training it again with other code would."""
    first, second = runs_of(results)
    shutil.rmtree(first.checkpoint)
    shutil.copytree(second.checkpoint, first.checkpoint)
    record = {**first.record, "sha256": dict(second.record["sha256"])}
    (first.folder / "record.json").write_text(json.dumps(record))


def test_spectra_are_measured_anew_when_the_run_was_trained_anew(results: Path) -> None:
    first, second = runs_of(results)
    path = spectra_file(results, first.spec.run_id)
    assert spectra_made_from(path) == first.checkpoint_sha256 != second.checkpoint_sha256
    before = path.read_bytes()
    measure_run(first, results)
    assert path.read_bytes() == before
    exchange_checkpoints(results)
    again, _ = runs_of(results)
    with pytest.raises(InputError, match="was measured on an earlier checkpoint"):
        read_spectra(again, results)
    with pytest.raises(InputError, match="run the sweep again to measure it again"):
        study_tables("two", results=results)
    measure_run(again, results)
    norms = [
        [spectrum.frobenius_norm for spectrum in load_spectra(spectra_file(results, run_id))]
        for run_id in (first.spec.run_id, second.spec.run_id)
    ]
    assert norms[0] == norms[1]


def test_spectra_without_hashes_stay_readable(results: Path) -> None:
    run, _ = runs_of(results)
    path = run.folder / "record.json"
    older = {key: value for key, value in run.record.items() if key != "sha256"}
    path.write_text(json.dumps(older))
    spectra_file(results, run.spec.run_id).unlink()
    run, _ = runs_of(results)
    measure_run(run, results)
    assert spectra_made_from(spectra_file(results, run.spec.run_id)) is None
    assert read_spectra(run, results)


def test_an_empty_file_of_an_older_version_counts_as_not_measured(results: Path) -> None:
    run, _ = runs_of(results)
    path = spectra_file(results, run.spec.run_id)
    whole = path.read_bytes()
    save_spectra(path, [], made_from=run.checkpoint_sha256)
    [reason] = without_spectra([run], results).values()
    assert reason.startswith("they were not measured")
    measure_run(run, results)
    assert load_spectra(path)[0].frobenius_norm > 0
    path.write_bytes(whole)


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 0b101
    path.write_bytes(bytes(content))


def test_flipped_bits_of_a_checkpoint_are_detected(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = runs_of(results)
    flip_bits(run.checkpoint / "model.safetensors")
    spectra_file(results, run.spec.run_id).unlink()
    measure_run(run, results)
    told = capsys.readouterr().err
    assert "no spectra: " in told
    assert "model.safetensors has changed since the run wrote it" in told
    assert not spectra_file(results, run.spec.run_id).exists()
    with pytest.raises(InputError, match="has changed since the run wrote it"):
        truncate_sweep(truncate_request(results))
    [reason] = without_spectra([run], results).values()
    assert "has changed since" in reason
    said, not_truncated = study_tables("two", results=results).left_out
    assert "has not been truncated" in not_truncated
    assert said.startswith(f"1 run has no spectra ({run.spec.run_id}): …/model.safetensors has ")
    assert str(results) not in said


def test_a_read_error_leaves_no_spectra_behind(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = runs_of(results)
    path = spectra_file(results, run.spec.run_id)
    path.unlink()

    def unreadable(*_: object) -> checkpoints.Weights:
        raise InputError("model.safetensors: can't be read (Input/output error)")

    with monkeypatch.context() as patched:
        patched.setattr(updates, "open_weights", unreadable)
        measure_run(run, results)
    assert not path.exists()
    [reason] = without_spectra([run], results).values()
    assert reason.startswith("they were not measured")
    measure_run(run, results)
    assert load_spectra(path)
    assert without_spectra([run], results) == {}


@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_a_matrix_that_cannot_be_compared_leaves_no_spectra(
    results: Path, tiny_overrides: list[str], capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    [config] = planned_configs(*tiny_overrides, f"results={results}")
    run, _ = runs_of(results)
    file = run.checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("query.weight"))
    broken = torch.full_like(tensors[name], torch.nan) if fault == "nan" else tensors[name][1:]
    save_file(tensors | {name: broken}, file)
    spectra_file(results, run.spec.run_id).unlink()
    older = {key: value for key, value in run.record.items() if key != "sha256"}
    (run.folder / "record.json").write_text(json.dumps(older))
    runs = runs_of(results)
    measure_run(runs[0], results)
    told = capsys.readouterr().err
    assert f"{name.removesuffix('.weight')}: " in told
    assert "NaN" in told if fault == "nan" else "shape [" in told
    assert "train the run again" in told
    assert list(without_spectra(runs, results)) == [run.spec.run_id]
    with pytest.raises(Unfinished, match="no spectra: "):
        check_complete(runs, config)


def test_a_sweep_without_some_spectra_is_unfinished(
    results: Path, tiny_overrides: list[str]
) -> None:
    [config] = planned_configs(*tiny_overrides, f"results={results}")
    runs = runs_of(results)
    flip_bits(runs[0].checkpoint / "model.safetensors")
    spectra_file(results, runs[0].spec.run_id).unlink()
    with pytest.raises(Unfinished, match=r"^no spectra: .*has changed since[^\n]*$"):
        check_complete(runs, config)


def test_a_damaged_file_of_spectra_is_measured_again(results: Path) -> None:
    run, _ = runs_of(results)
    path = spectra_file(results, run.spec.run_id)
    whole, values = path.read_bytes(), load_spectra(path)[0].singular_values
    [place] = [at for at in range(len(whole)) if whole.startswith(values[0].tobytes(), at)]
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with pytest.raises(InputError, match="is not a whole Parquet file; measure the spectra again"):
        load_spectra(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a whole Parquet file"):
        read_spectra(run, results)
    measure_run(run, results)
    assert read_spectra(run, results)


def truncate_request(results: Path) -> TruncateRequest:
    settings = {
        "sweep": "two", "results": str(results), "device": "cpu", "launcher": "inline",
        "workers": None, "scopes": ["all"], "ranks": [0], "seeds_of_parts": 1,
    }  # fmt: skip
    return read_request(settings)


def test_truncations_are_evaluated_again_for_another_checkpoint(results: Path) -> None:
    first, second = truncate_sweep(truncate_request(results))
    path = truncation_file(results, first.spec.run_id)
    table = read_truncation(first, results)
    assert table is not None
    exchange_checkpoints(results)
    again, _ = runs_of(results)
    with pytest.raises(InputError, match="was made from an earlier checkpoint"):
        read_truncation(again, results)
    record = {**again.record, "test": second.record["test"]}
    (again.folder / "record.json").write_text(json.dumps(record))
    truncate_sweep(truncate_request(results))
    predicted = [
        pd.read_parquet(truncation_file(results, run.spec.run_id))["predicted"].tolist()
        for run in (first, second)
    ]
    assert predicted[0] == predicted[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="can't be read as a table: delete it and run"):
        read_truncation(again, results)


def test_a_report_names_runs_without_truncations(results: Path) -> None:
    first, second = truncate_sweep(truncate_request(results))
    assert study_tables("two", results=results).left_out == ()
    truncation_file(results, first.spec.run_id).unlink()
    [said] = study_tables("two", results=results).left_out
    assert said.startswith(
        f"1 of 2 runs of full fine-tuning has not been truncated ({first.spec.run_id})"
    )
    truncation_file(results, second.spec.run_id).unlink()
    assert study_tables("two", results=results).left_out == ()


def test_controls_of_another_checkpoint_are_refused(results: Path) -> None:
    settings = {
        "sweep": "two", "results": str(results), "device": "cpu", "launcher": "inline",
        "shuffled_seeds": 0, "directions": 2, "along_training": False,
    }  # fmt: skip
    measure_controls(controls_request(settings))
    assert read_controls("two", results) is not None
    exchange_checkpoints(results)
    with pytest.raises(InputError, match=r"earlier checkpoint of .* rerun analysis"):
        read_controls("two", results)
    controls_file(results, "two").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="can't be read as a table"):
        read_controls("two", results)
