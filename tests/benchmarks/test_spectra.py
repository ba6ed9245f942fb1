"""The spectra's benchmark on small sizes, its files, and the memory of a pair of checkpoints."""

import importlib
import json
import subprocess
import sys
import tracemalloc
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_study.checkpoints import open_weights
from lowrank_study.config.run import composed
from lowrank_study.measurement import pairs
from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.request import read_request
from lowrank_study.measurement.subjects import CheckpointPair

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def llama_files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("llama_files")


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "spectra.py"), *options],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def test_the_shapes_are_those_of_the_7b_model(llama_files: ModuleType) -> None:
    tensors = llama_files.shapes(32, hidden=4096, inner=11008, vocabulary=32000)
    assert len(tensors) == 291
    assert sum(map(prod, tensors.values())) == 6_738_415_616
    linears = [name for name in tensors if name.startswith("model.layers") and "_proj" in name]
    assert len(linears) == 224


def test_a_pair_is_sharded_and_differs_where_it_is_filled(
    llama_files: ModuleType, tmp_path: Path
) -> None:
    tensors = llama_files.shapes(2, hidden=32, inner=86, vocabulary=50)
    filled = ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"]
    before, after = tmp_path / "before", tmp_path / "after"
    llama_files.write_pair(before, after, tensors, filled=filled)
    assert len(list(before.glob("*.safetensors"))) == 2
    with open_weights(before) as left, open_weights(after) as right:
        assert {name: left.shape(name) for name in left.names()} == tensors
        for name in tensors:
            assert left.dtype(name) == "bfloat16"
            assert left.read(name).any() == (name in filled)
            assert (left.read(name) != right.read(name)).any() == (name in filled)


def test_a_pair_needs_less_memory_than_its_largest_matrix(
    llama_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what NumPy allocates; blocks are as small beside the matrix as in a 7B model."""
    monkeypatch.setattr(pairs, "BLOCK_ENTRIES", 2**15)
    tensors = llama_files.shapes(1, hidden=64, inner=172, vocabulary=40000)
    first = [name for name, shape in tensors.items() if len(shape) == 2][:8]
    before, after = tmp_path / "before", tmp_path / "after"
    llama_files.write_pair(before, after, tensors, filled=first)
    settings = read_request(composed("measure_spectra") | {"before": "a", "after": "b"}).settings
    subject = CheckpointPair(before=before, after=after)

    def measured() -> Any:
        return measure_spectra(
            subject,
            other=None,
            settings=settings,
            on_progress=lambda step: None,
            on_left_out=print,
        )

    measured()  # what is imported or kept for good the first time isn't the matrices'
    tracemalloc.start()
    found = measured()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ranks = [matrix.readings["energy_rank_99"].value for matrix in found.matrices]
    assert ranks == [llama_files.PLANTED_RANK] * 8 + [0]
    assert peak < 2 * 40000 * 64


@pytest.mark.slow
def test_every_case_runs_and_is_written_where_asked(tmp_path: Path) -> None:
    every = "exact,certified,product,adapter,embedding,memory,whole_model"
    done = run("--quick", "--rounds", "1", "--only", every, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "adapter of rank 8" in done.stdout
    assert ",".join(json.loads((tmp_path / "spectra.json").read_text())) == every


@pytest.mark.slow
def test_a_quick_run_leaves_the_committed_results_alone() -> None:
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").glob("*")}
    done = run("--quick", "--rounds", "1", "--only", "exact")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").glob("*")} == before


@pytest.mark.slow
def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    done = run("--only", "exakt")
    assert done.returncode == 2
    assert "no case 'exakt': choose from exact, certified" in done.stderr


@pytest.mark.slow
def test_a_7b_pair_takes_under_three_of_its_largest_matrices(tmp_path: Path) -> None:
    """In the real shapes, as stored in bfloat16; beyond the interpreter's own.

    Two matrices are filled, the embedding is one. That eight take no more is tested above, small.
    """
    done = run("--only", "memory", "--filled", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "spectra.json").read_text())["memory"]["figures"]
    judged = {each["what"].rpartition(" ")[2]: each for each in figures if each["verdict"]}
    assert judged.keys() == {"bfloat16", "float32", "float64"}
    assert judged["bfloat16"]["at_most"] == 3
    assert {each["verdict"] for each in judged.values()} == {"met"}, judged
