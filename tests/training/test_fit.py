"""The training loop: what it learns, keeps, saves and reports."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from lowrank_study.config.run import compose
from lowrank_study.data.splits import Split, load_splits
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.tasks import Task
from lowrank_study.tasks.classification import Classification
from lowrank_study.training import member, unpadded
from lowrank_study.training.batches import batch_of
from lowrank_study.training.evaluate import predict
from lowrank_study.training.fit import Job, backward, fit, fit_together, torch_device
from lowrank_study.training.member import Diverged, FitResult
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.packing import Pack
from lowrank_study.training.tracking import JsonLinesTracker, Tracker
from lowrank_study.training.unpadded import padded_scores

CPU = torch.device("cpu")


def run(overrides: list[str], folder: Path, *more: str) -> FitResult:
    return fit(compose(*overrides, *more), checkpoint_folder=folder, tracker=Tracker())


@pytest.mark.parametrize(
    "method", [["method=full", "method.learning_rate=3e-3"], ["method.rank=8"]]
)
def test_training_learns_repeats_and_restores(
    method: list[str], tiny_overrides: list[str], tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    longer = [
        *method,
        "trainer.precision=fp32",
        "trainer.epochs=12",
        "trainer.evaluations=4",
        "method.target=all_linear",
    ]
    first = run(tiny_overrides, tmp_path / "a", *longer)
    again = run(tiny_overrides, tmp_path / "b", *longer)
    record = first.record
    assert record["test"]["accuracy"] > record["test"]["majority_accuracy"] + 0.15
    assert (first.test.losses == again.test.losses).all()
    assert record["steps"] == 12 * math.ceil(record["examples"]["train"] / 16)
    # the saved model is the tested one
    spec = compose(*tiny_overrides, *longer)
    if "method=full" in method:
        model = load_model(Classification, tmp_path / "a", number_of_labels=2, dropout=None)
    else:
        model = load_model(Classification, tiny_model("bert"), number_of_labels=2, dropout=None)
        model = peft.PeftModel.from_pretrained(model, tmp_path / "a")
    splits = load_splits(spec.task, tiny_model("bert"))
    model.eval()
    read = predict(
        spec.task,
        lambda batch: padded_scores(model, batch, CPU, pad_id=0)[0],
        splits.test,
        device=CPU,
        precision="fp32",
    )
    np.testing.assert_allclose(read.losses, first.test.losses, rtol=1e-5, atol=1e-6)


def test_an_evaluation_in_between_keeps_the_best_step(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.9, 0.2])
    real = member.predict

    def predict_with(task: Task, scores: member.Scores, split: Split, **options: Any) -> object:
        found = real(task, scores, split, **options)
        if len(split) == 40 and (wanted := next(accuracies, None)):  # validation, twice
            predicted, wrong = found.columns["predicted"], round(40 * (1 - wanted))
            predicted[:] = found.labels
            predicted[:wrong] = 1 - found.labels[:wrong]
        return found

    monkeypatch.setattr(member, "predict", predict_with)
    result = run(tiny_overrides, tmp_path, "trainer.evaluations=2", "trainer.epochs=2")
    assert result.record["best_step"] == result.record["steps"] // 2
    assert result.record["validation"]["accuracy"] == 0.9


def test_divergence_differs_from_other_failures(tiny_overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"loss was .* at step \d+ of \d+, at learning rate 1e\+38"):
        run(tiny_overrides, tmp_path, "method.learning_rate=1e38", "trainer.max_grad_norm=1e38")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("method", ["method=full", "method=lora"])
def test_a_last_step_that_ruins_the_weights_is_a_divergence(
    method: str, tiny_overrides: list[str], tmp_path: Path
) -> None:
    one_step = ("trainer.epochs=1", "trainer.batch_size=1000", "trainer.evaluations=1")
    at_once = ("method.learning_rate=1e38", "trainer.warmup_fraction=0")
    with pytest.raises(Diverged, match=r"the validation loss was .* at step 1 of 1"):
        run(tiny_overrides, tmp_path, method, *one_step, *at_once)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_peft_method_trains_through_the_same_loop(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    result = run(
        tiny_overrides, tmp_path, "method=peft", "method.peft_type=loha", "method.options.r=2"
    )
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert 0 < result.record["trainable_parameters"] < result.record["total_parameters"]


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(InputError, match=r"device='gpu0'.*auto, cpu"):
        torch_device("gpu0")


def test_the_curve_as_json_lines(tiny_overrides: list[str], tmp_path: Path) -> None:
    with JsonLinesTracker(tmp_path) as tracker:
        fit(compose(*tiny_overrides), checkpoint_folder=tmp_path / "c", tracker=tracker)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(0 <= line["validation_accuracy"] <= 1 for line in lines)


def test_the_curve_of_a_language_model_counts_its_predicted_tokens(
    causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    curves = {}
    for method in ("full", "lora"):
        spec = compose(
            *causal_overrides(),
            *(f"method={method}", "trainer.evaluations=4", "trainer.epochs=2"),
        )
        with JsonLinesTracker(tmp_path) as tracker:
            record = fit(spec, checkpoint_folder=tmp_path / method, tracker=tracker).record
        curves[method] = record["curve"]
        tokens = [point["predicted_tokens"] for point in record["curve"]]
        assert tokens == sorted(tokens)
        assert tokens[-1] == 2 * tokens[-3] == 2 * record["predicted_tokens"]["train"]
    base, *trained = curves["full"]
    assert (base["step"], base["predicted_tokens"]) == (0, 0)
    assert base["nats_per_token"] == pytest.approx(np.log(44), rel=0.05), "no word is preferred"
    assert trained[-1]["nats_per_token"] < base["nats_per_token"] - 0.1
    assert [point["step"] for point in trained] == [point["step"] for point in curves["lora"]]
    logged = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged[:5]] == [point["step"] for point in curves["full"]]
    assert "train_loss" not in logged[0]


def test_the_model_is_shown_after_every_step(tiny_overrides: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    def watch(step: int, model: torch.nn.Module) -> None:
        weights = [float(p.detach().double().abs().sum()) for p in model.parameters()]
        seen.append((step, sum(weights)))

    spec = compose(*tiny_overrides, "method=full", "method.learning_rate=1e-2")
    job = Job(spec=spec, checkpoint_folder=tmp_path / "a", tracker=Tracker(), watch=watch)
    [watched] = fit_together([job], device="cpu")
    assert isinstance(watched, FitResult)
    assert [step for step, _ in seen] == list(range(1, watched.record["steps"] + 1))
    assert len({weight for _, weight in seen}) == len(seen)
    alone = fit(spec, checkpoint_folder=tmp_path / "b", tracker=Tracker())
    assert alone.test is not None
    assert watched.test is not None
    np.testing.assert_array_equal(alone.test.losses, watched.test.losses)


def test_an_error_in_a_watcher_ends_only_its_own_run(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    def fails(step: int, model: torch.nn.Module) -> None:
        raise RuntimeError(f"seen enough at step {step}")

    specs = [compose(*tiny_overrides, f"method.rank={rank}") for rank in (1, 2)]
    first, second = (
        Job(spec=spec, checkpoint_folder=tmp_path / spec.run_id, tracker=Tracker(), **more)
        for spec, more in zip(specs, ({"watch": fails}, {}), strict=True)
    )
    failed, done = fit_together([first, second], device="cpu")
    assert isinstance(failed, RuntimeError)
    assert isinstance(done, FitResult)


def test_a_run_that_chooses_a_rate_keeps_no_model(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    result = run(tiny_overrides, tmp_path, "trainer.read_test=false")
    assert result.test is None
    assert result.record["checkpoint_bytes"] == 0
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("method", ["method.rank=2", "method=full"])
def test_parts_add_up_to_the_gradient_of_the_whole(
    method: str, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = compose(*tiny_overrides, method, "model.dropout=0.0")
    folder = model_folder(spec.model)
    splits = load_splits(spec.task, folder)
    batch = batch_of(splits.train, np.arange(12))
    found = []
    for least in (10_000, 20):
        monkeypatch.setattr(unpadded, "_LEAST_TOKENS", least)
        monkeypatch.setattr(unpadded, "_MOST_TOKENS", 0)
        model = build_model(spec, folder, number_of_labels=2).double()
        pad_id = padding_id(folder)
        pack = Pack([model], device=CPU, pad_id=pad_id, sample=batch, reference=False)
        assert (len(list(pack.parts(batch, "fp32"))) > 1) == (least == 20)
        [loss] = backward(pack, batch, spec, CPU).tolist()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        found.append((loss, gradients))
    (whole, expected), (in_parts, gradients) = found
    assert in_parts == pytest.approx(whole, rel=1e-6)
    for mine, other in zip(gradients, expected, strict=True):
        if other is None:
            assert mine is None
            continue
        assert mine is not None
        # Losses are taken in fp32, whatever the weights are.
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)
