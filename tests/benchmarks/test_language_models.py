"""Both programs of the language model benchmark take the same steps."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lowrank_study.config.run import compose


@pytest.mark.parametrize("method", [("method=lora_all_linear", "method.rank=2"), ("method=full",)])
def test_the_losses_are_equal(
    method: tuple[str, ...],
    causal_overrides: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    loop = importlib.import_module("causal_loop")
    spec = compose(
        *causal_overrides("llama"),
        *method,
        "model.dropout=0.0",
        "method.learning_rate=1e-2",
        "trainer.batch_size=8",
        "trainer.precision=fp32",
    )
    ours, _ = loop.ours(spec, 8)
    theirs, _ = loop.libraries(spec, 8)
    assert abs(ours[0] - ours[-1]) > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
