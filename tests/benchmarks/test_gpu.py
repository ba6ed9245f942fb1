"""The GPU's benchmark runs without a GPU on small sizes, keeps what it has and resumes."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


@pytest.fixture
def on(gpu: ModuleType) -> Any:
    return gpu.Setting(device=torch.device("cpu"), precision="fp32", quick=True, models={})


def content_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return content


@pytest.mark.slow
def test_every_case_runs_on_small_sizes(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = content_of(tmp_path)
    assert {"losses", "step_smollm2", "pack_2", "spectra", "whole"} < set(content)
    for name, case in content.items():
        assert case["figures"], name
        assert "failed" not in case
    [fp32, _] = content["losses"]["figures"]
    assert fp32["verdict"] == "met"


def test_a_failed_case_leaves_its_reason_and_the_next_one_runs(
    gpu: ModuleType, on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image")

    def slow(_: Any) -> None:
        time.sleep(30)

    good = [gpu.timing.figure("a product", [2.0], unit="s")]
    made = {"broken": broken, "good": lambda _: good, "slow": slow}
    monkeypatch.setattr(gpu, "cases", lambda quick: made)
    assert not gpu.run_cases(list(made), on, out=tmp_path, budget=0.0)
    content = content_of(tmp_path)
    assert content["broken"]["failed"] == "RuntimeError: CUDA error: no kernel image"
    assert content["slow"]["failed"].startswith("TimeoutError: stopped after")
    assert [figure["value"] for figure in content["good"]["figures"]] == [2.0]
    assert "- broken failed: RuntimeError" in (tmp_path / "gpu.md").read_text()
    assert gpu._done(tmp_path) == {"good"}  # the others run again


def test_a_resumed_run_skips_what_it_has(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    good = [gpu.timing.figure("a product", [2.0], unit="s")]

    def case(name: str, _: Any) -> list[Any]:
        ran.append(name)
        return good

    made = {name: gpu.partial(case, name) for name in ("one", "two")}
    monkeypatch.setattr(gpu, "cases", lambda quick: made)
    monkeypatch.setattr(gpu, "made_up", lambda folder, tiny: {})
    options = ["gpu.py", "--quick", "--out", str(tmp_path)]
    for more, expected in (
        (["--only", "two"], ["two"]),
        ([], ["two", "one"]),
        ([], ["two", "one"]),
        (["--again"], ["two", "one", "one", "two"]),
    ):
        monkeypatch.setattr("sys.argv", [*options, *more])
        gpu.main()
        assert ran == expected
