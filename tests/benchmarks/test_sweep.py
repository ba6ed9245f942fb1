"""The sweep benchmark compares the same work."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank_study.answers.tables import spectra_tables
from lowrank_study.config.run import compose
from lowrank_study.methods.lora import Lora
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import Tracker


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


def test_the_runs_are_some_of_the_study() -> None:
    benchmark = importlib.import_module("sweep")
    specs = benchmark.specs_of(quick=False)
    study = [
        compose("experiment=rank_sweep", f"method={method}", f"method.rank={rank}")
        for method in ("full", "lora", "lora_all_linear")
        for rank in (1, 2, 4, 8, 16, 32, 64)
    ]
    assert {spec.run_id for spec in specs} < {spec.run_id for spec in study}
    targets = {spec.method.target for spec in specs if isinstance(spec.method, Lora)}
    assert len(targets) == 2


def test_a_quick_run_leaves_the_committed_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = importlib.import_module("sweep")
    written: list[Path] = []
    monkeypatch.setattr(
        benchmark, "run_cases", lambda names, **settings: written.append(settings["out"])
    )
    for options, out in (
        (["--quick"], None),
        (["--quick", "--out", str(tmp_path)], tmp_path),
        ([], benchmark.HERE / "results"),
    ):
        monkeypatch.setattr("sys.argv", ["sweep.py", *options])
        benchmark.main()
        assert written[-1] == out or (out is None and benchmark.HERE not in written[-1].parents)


@pytest.mark.slow
@pytest.mark.parametrize("tuned", [False, True])
def test_the_trainer_does_what_the_suite_does(
    tuned: bool, tiny_overrides: list[str], tmp_path: Path
) -> None:
    peft_loop = importlib.import_module("peft_loop")
    specs = [
        compose(*tiny_overrides, "method.rank=2"),
        compose(*tiny_overrides, "method=full", "method.learning_rate=3e-3"),
    ]
    runs = sweep(specs, name="ours", results=tmp_path / "ours")
    spectra, _ = spectra_tables(runs, tmp_path / "ours")
    for spec, run in zip(specs, runs, strict=True):
        theirs = peft_loop.train(spec, tmp_path / "theirs" / spec.run_id, tuned=tuned)
        assert theirs["run_id"] == run.spec.run_id
        assert theirs["steps"] == run.record["steps"]
        assert theirs["trainable_parameters"] == run.record["trainable_parameters"]
        assert theirs["matrices"] == (spectra["run_id"] == spec.run_id).sum()
        assert 0.0 <= theirs["test_score"] <= 1.0


@pytest.mark.slow
def test_from_the_same_start_the_trainer_ends_at_the_same_weights(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    peft_loop = importlib.import_module("peft_loop")
    fp32 = ["model.dropout=0.0", "trainer.precision=fp32"]
    spec = compose(*tiny_overrides, *fp32, "method.rank=2", "method.learning_rate=1e-2")
    theirs = peft_loop.train(spec, tmp_path / "theirs", same_start=True)
    ours = fit(spec, checkpoint_folder=tmp_path / "ours", tracker=Tracker())
    assert ours.record["test"]["accuracy"] == theirs["test_score"]
    file = "adapter_model.safetensors"
    trained = load_file(tmp_path / "ours" / file)
    for name, weight in load_file(tmp_path / "theirs" / "saved" / file).items():
        np.testing.assert_allclose(trained[name], weight, atol=1e-5, err_msg=name)
