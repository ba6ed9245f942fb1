"""Steps are those of training, and their floor counts every operation in the precision in use."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowrank_study import native
from lowrank_study.config.run import compose
from lowrank_study.sweeps.effort import Effort


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("steps")


def test_operations_are_those_of_the_plain_path(
    steps: ModuleType, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = compose(*tiny_overrides, "method=full", "model.dropout=0.0")
    taken = steps.Steps([spec], batches=2, device=torch.device("cpu"))
    monkeypatch.setattr(native, "wanted", True)
    counted = taken.operations_a_token()
    assert native.wanted
    trained, _ = Effort().a_token(spec)
    assert 0.6 * trained < counted < 1.1 * trained  # the last layer reads one token of each text


def test_a_share_is_that_of_the_precision(
    steps: ModuleType, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def peak_speed(*_: object, precision: str, **__: object) -> float:
        asked.append(precision)
        return 1e12

    monkeypatch.setattr(steps, "peak_speed", peak_speed)
    for precision in ("fp32", "bf16"):
        spec = compose(*tiny_overrides, "method.rank=2", f"trainer.precision={precision}")
        taken = steps.Steps([spec], batches=2, device=torch.device("cpu"))
        shares = taken.shares(2)
        assert len(shares) == 4
        assert all(0 < share < 1 for share in shares)
    assert asked == ["fp32"] * 4 + ["bf16"] * 4


def test_a_run_that_fails_stops_the_benchmark(
    steps: ModuleType, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = compose(*tiny_overrides, "method.rank=2")
    taken = steps.Steps([spec], batches=1, device=torch.device("cpu"))
    taken.session.outcomes[0] = RuntimeError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        taken.take(taken.batches[0])


def test_hardware_is_named_by_what_multiplies(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sets, named in (
        ({"avx2"}, ("AVX2", "AVX2")),
        ({"avx2", "avx512f", "avx512_bf16"}, ("AVX512", "AVX512-BF16")),
        ({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}, ("AVX512", "AMX")),
    ):
        monkeypatch.setattr(steps, "processor", lambda sets=sets: ("", frozenset(sets)))
        assert (steps.hardware("fp32"), steps.hardware("bf16")) == named
