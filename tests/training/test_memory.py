"""The memory of a run: predicted before it is trained, and measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.training.memory import PeakPrediction, predict_peak

CHILD = """
import json, sys, tempfile
from pathlib import Path
from lowrank_study.config.run import compose
from lowrank_study.training.fit import Job, fit_together
from lowrank_study.training.memory import predict_peak
from lowrank_study.training.tracking import Tracker

small = ["task.train_size=96", "task.validation_size=32", "task.test_size=32", "model.dropout=0.0"]
runs, *overrides = sys.argv[1:]
specs = [compose(*small, *overrides, f"seed={seed}", "data_seed=0") for seed in range(int(runs))]
predicted = predict_peak(specs[0]).peak(len(specs))
with tempfile.TemporaryDirectory() as out:
    jobs = [
        Job(spec=spec, checkpoint_folder=Path(out) / spec.run_id, tracker=Tracker())
        for spec in specs
    ]
    outcomes = fit_together(jobs, device="cpu")
print(json.dumps([predicted, outcomes[-1].record["peak_memory_bytes"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "overrides"),
    [
        (1, ["method.rank=8"]),
        (4, ["method=lora_all_linear", "method.rank=64"]),
        (1, ["method=full", "trainer.batch_size=32"]),
    ],
)
def test_predicted_memory_is_near_the_measured(
    runs: int, overrides: list[str], real_cache: None
) -> None:
    command = [sys.executable, "-c", CHILD, str(runs), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_every_family_is_predicted_without_its_weights(
    family: str, tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    source = tiny_model(family)
    spec = compose(*tiny_overrides, f"model={family}", f"model.source={source}", "method.rank=2")
    predicted = predict_peak(spec)
    assert predicted is not None
    assert predicted.activations > 0
    assert predicted.peak(2) > predicted.peak(1) > predicted.frozen > 0


def test_experts_are_not_predicted(
    tiny_overrides: list[str], sized_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
    source = sized_model("gpt_oss", **sizes, num_key_value_heads=2, num_local_experts=2)
    overrides = (*tiny_overrides, "model=llama", f"model.source={source}", "method.rank=2")
    spec = compose(*overrides)
    assert predict_peak(spec) is None
    assert "runs train alone" in caplog.text


def test_a_pack_shares_libraries_and_frozen_weights() -> None:
    predicted = PeakPrediction(
        libraries=7000, kernels=500, frozen=1000, trained=10, activations=100
    )
    assert predicted.peak(1) == 7000 + 500 + 1000 + 10 + 100
    assert predicted.peak(4) - predicted.peak(1) == 3 * (10 + 100)


def test_rounded_weights_are_counted_beside_the_originals(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    source = tiny_model("bert")

    def frozen(*overrides: str) -> int:
        predicted = predict_peak(
            compose(*tiny_overrides, f"model.source={source}", "method.rank=2", *overrides)
        )
        assert predicted is not None
        return predicted.frozen

    fp32, bf16 = (frozen(f"trainer.precision={name}") for name in ("fp32", "bf16"))
    assert fp32 < bf16 < 1.5 * fp32


def test_dropout_and_attention_weights_are_counted_where_they_are_kept(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    source = tiny_model("bert")

    def kept(dropout: float) -> int:
        overrides = (*tiny_overrides, f"model.source={source}", f"model.dropout={dropout}")
        spec = compose(*overrides, "method.rank=2")
        predicted = predict_peak(spec)
        assert predicted is not None
        return predicted.activations

    assert kept(0.1) > 1.2 * kept(0.0)
