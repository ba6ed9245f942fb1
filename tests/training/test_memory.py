"""The memory of a run: predicted before it is trained, and measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lowrank_study.config.run import compose
from lowrank_study.methods.layers.linear import round_frozen
from lowrank_study.training.memory import PeakPrediction, predict_peak
from lowrank_study.training.models import build_model

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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux reports mapped pages")
def test_rounded_weights_replace_the_loaded_ones_in_memory(
    sized_model: Callable[..., Path],
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}
    folder = sized_model("llama", **sizes, num_attention_heads=4)
    spec = compose("model=llama", f"model.source={folder}", "method.rank=2")
    model = build_model(spec, folder, number_of_labels=2)
    file = str(folder / "model.safetensors")

    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text().split("VmFlags")
        return sum(int(m.split("Rss:")[1].split()[0]) * 1024 for m in smaps if file in m)

    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    everything = resident()
    round_frozen(model)
    maps = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert len(maps) == 7 * 4
    # A page with parts of two tensors stays.
    assert resident() < everything - 0.8 * sum(frozen[name].nbytes for name in maps)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, frozen[name].to(parameter.dtype)), name


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
        libraries=7000,
        kernels=500,
        loaded=2500,
        frozen=1000,
        trained=12,
        checked=20,
        activations=100,
        answered=3000,
    )
    assert predicted.peak(1) == 7000 + 12 + 1000 + 3000  # answering needs most
    assert replace(predicted, answered=0).peak(1) == 7000 + 2500 + 12 * 3 // 4 + 20  # the check
    assert predicted.peak(40) == 7000 + 500 + 1000 + 40 * (12 + 100)


def test_a_tied_head_shares_its_memory_until_it_is_rounded(
    causal_overrides: Callable[..., list[str]],
) -> None:
    def predicted(precision: str, *, is_tied: bool) -> PeakPrediction:
        overrides = causal_overrides(tie_word_embeddings=is_tied)
        found = predict_peak(compose(*overrides, f"trainer.precision={precision}"))
        assert found is not None
        return found

    for precision in ("fp32", "bf16"):
        tied = predicted(precision, is_tied=True)
        untied = predicted(precision, is_tied=False)
        folder = compose(*causal_overrides()).model.source.path  # type: ignore[union-attr]
        config = AutoConfig.from_pretrained(folder)
        head = 4 * config.vocab_size * config.hidden_size
        assert untied.loaded - tied.loaded == head
        # In bf16, both have a rounded head beside the words.
        assert untied.frozen - tied.frozen == (head if precision == "fp32" else 0)


def test_rounded_weights_need_less_memory_in_training(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    source, saved = f"model.source={tiny_model('bert')}", {}
    for method in ("lora", "full"):
        own = (*tiny_overrides, source, f"method={method}")
        fp32 = predict_peak(compose(*own, "trainer.precision=fp32"))
        bf16 = predict_peak(compose(*own, "trainer.precision=bf16"))
        assert fp32 is not None
        assert bf16 is not None
        assert fp32.frozen == fp32.loaded == bf16.loaded
        saved[method] = fp32.frozen - bf16.frozen
    # Each of two layers has four maps of 16x16 and two of 16x24; the pooler has one.
    assert saved == {"lora": 2 * (2 * (4 * 16 * 16 + 2 * 16 * 24) + 16 * 16), "full": 0}


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
