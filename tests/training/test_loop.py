"""Batches, schedule, evaluation and the loop itself."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.config.run import compose
from lowrank_study.data.splits import Split, load_splits
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.lora import load_adapter
from lowrank_study.tasks import Task
from lowrank_study.tasks.classification import Classification
from lowrank_study.training import batches, member
from lowrank_study.training.batches import evaluation_batches, steps_of, training_batches
from lowrank_study.training.evaluate import predict
from lowrank_study.training.fit import Job, fit, fit_together, torch_device
from lowrank_study.training.member import Diverged, FitResult
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.optim import make_optimizer, rate_share
from lowrank_study.training.tracking import JsonLinesTracker, NoTracker
from lowrank_study.training.unpadded import padded_scores

CPU = torch.device("cpu")


def split_of(lengths: list[int]) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(
        ids=np.arange(1, offsets[-1] + 1, dtype=np.int32),
        types=np.zeros(offsets[-1], dtype=np.int8),
        offsets=offsets.astype(np.int64),
        labels=np.arange(len(lengths)) % 2,
    )


def run(overrides: list[str], folder: Path, *more: str) -> FitResult:
    return fit(compose(*overrides, *more), checkpoint_folder=folder, tracker=NoTracker())


def test_every_epoch_has_every_text_once_and_no_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500).tolist()
    split = split_of(lengths)
    seen: list[int] = []
    for batch in training_batches(split, batch_size=16, epochs=2, seed=3):
        seen += batch.rows.tolist()
        assert len(batch.ids_T) == sum(batch.lengths)
        for row, ids in zip(batch.rows, torch.split(batch.ids_T, list(batch.lengths)), strict=True):
            assert ids.tolist() == split.tokens(row).tolist()
        assert batch.labels_N.tolist() == split.labels[batch.rows].tolist()
    assert sorted(seen) == sorted(list(range(500)) * 2)
    assert seen[:500] != seen[500:]
    assert len(seen) // 16 <= steps_of(split, batch_size=16, epochs=2) == 2 * math.ceil(500 / 16)


def test_the_order_follows_from_the_seed() -> None:
    split = split_of(list(range(3, 60)))

    def order(seed: int) -> list[int]:
        found = training_batches(split, batch_size=4, epochs=1, seed=seed)
        return [int(row) for batch in found for row in batch.rows]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_evaluation_reads_every_text_once_within_the_token_budget() -> None:
    split = split_of(np.random.default_rng(0).integers(3, 700, 90).tolist())
    rows: list[int] = []
    for batch in evaluation_batches(split):
        rows += batch.rows.tolist()
        assert len(batch.ids_T) <= batches._EVALUATION_TOKENS or len(batch.rows) == 1
    assert rows == list(range(90))


def test_the_rate_rises_and_falls_linearly() -> None:
    shares = [rate_share(step, steps=100, warmup_fraction=0.1) for step in range(100)]
    assert shares[0] == 0.1
    assert max(shares) == shares[9] == shares[10] == 1.0
    assert shares[55] == 0.5
    assert shares[99] == pytest.approx(1 / 90)
    assert np.allclose(np.diff(shares[10:]), -1 / 90)
    assert rate_share(0, steps=3, warmup_fraction=0.0) == 1.0


def test_biases_and_norms_are_not_decayed(tiny_model: Callable[[str], Path]) -> None:
    spec = compose("model=bert", "method=full")
    model = build_model(spec, tiny_model("bert"), number_of_labels=2)
    groups = make_optimizer(model, spec).param_groups
    assert [group["weight_decay"] for group in groups] == [spec.train.weight_decay, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "method", ["full", "lora", "peft method.peft_type=LOHA", "head"], ids=lambda m: m.split()[0]
)
def test_the_head_has_a_rate_of_its_own(method: str, tiny_model: Callable[[str], Path]) -> None:
    overrides = [*f"method={method}".split(), "method.learning_rate=1e-3"]
    spec = compose("model=bert", *overrides, "trainer.head_learning_rate=0.1")
    model = build_model(spec, tiny_model("bert"), number_of_labels=2)
    rates = {p: g["lr"] for g in make_optimizer(model, spec).param_groups for p in g["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(rates) == set(trained.values())
    in_head = {name for name in trained if "classifier" in name}
    assert in_head
    assert {rates[trained[name]] for name in in_head} == {0.1}
    assert {rates[p] for name, p in trained.items() if name not in in_head} <= {1e-3}


def test_dropout_of_the_model_is_set(tiny_model: Callable[[str], Path]) -> None:
    for family in ("bert", "roberta", "distilbert", "gpt2", "llama"):
        model = load_model(Classification, tiny_model(family), number_of_labels=2, dropout=0.0)
        model.train()
        inputs = {
            "input_ids": torch.randint(4, 40, (2, 7)),
            "attention_mask": torch.ones(2, 7).long(),
        }
        assert torch.equal(model(**inputs).logits, model(**inputs).logits), family


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
    # what was saved is the model that was tested
    spec = compose(*tiny_overrides, *longer)
    if "method=full" in method:
        model = load_model(Classification, tmp_path / "a", number_of_labels=2, dropout=None)
    else:
        model = load_model(Classification, tiny_model("bert"), number_of_labels=2, dropout=None)
        load_adapter(model, tmp_path / "a")
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


def test_methods_of_a_seed_start_from_the_same_head(tiny_model: Callable[[str], Path]) -> None:
    heads = []
    for method in (["method=full"], ["method.rank=2"], ["method.rank=4", "method.target=mlp"]):
        spec = compose("model=bert", "seed=7", *method)
        model = build_model(spec, tiny_model("bert"), number_of_labels=3)
        heads.append(model.get_parameter("classifier.weight").detach())
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])
    other = build_model(compose("model=bert", "seed=8"), tiny_model("bert"), number_of_labels=3)
    assert not torch.equal(other.get_parameter("classifier.weight"), heads[0])


def test_an_evaluation_in_between_keeps_the_best_step(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.9, 0.2])
    real = member.predict

    def predict_with(task: Task, scores: member.Scores, split: Split, **options: Any) -> object:
        found = real(task, scores, split, **options)
        if len(split) == 40 and (wanted := next(accuracies, None)):  # validation, twice
            found.predicted[:] = found.labels
            found.predicted[: round(40 * (1 - wanted))] = (
                1 - found.labels[: round(40 * (1 - wanted))]
            )
        return found

    monkeypatch.setattr(member, "predict", predict_with)
    result = run(tiny_overrides, tmp_path, "trainer.evaluations=2", "trainer.epochs=2")
    assert result.record["best_step"] == result.record["steps"] // 2
    assert result.record["validation"]["accuracy"] == 0.9


def test_divergence_is_told_from_other_failures(tiny_overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"loss was .* at step \d+ of \d+, at learning rate 1e\+38"):
        run(tiny_overrides, tmp_path, "method.learning_rate=1e38", "trainer.max_grad_norm=1e38")
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


def test_the_model_is_shown_after_every_step(tiny_overrides: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    def watch(step: int, model: torch.nn.Module) -> None:
        weights = [float(p.detach().double().abs().sum()) for p in model.parameters()]
        seen.append((step, sum(weights)))

    spec = compose(*tiny_overrides, "method=full", "method.learning_rate=1e-2")
    job = Job(spec=spec, checkpoint_folder=tmp_path / "a", tracker=NoTracker(), watch=watch)
    [watched] = fit_together([job], device="cpu")
    assert isinstance(watched, FitResult)
    assert [step for step, _ in seen] == list(range(1, watched.record["steps"] + 1))
    assert len({weight for _, weight in seen}) == len(seen)
    alone = fit(spec, checkpoint_folder=tmp_path / "b", tracker=NoTracker())
    assert alone.test is not None
    assert watched.test is not None
    np.testing.assert_array_equal(alone.test.losses, watched.test.losses)


def test_who_watches_ends_its_own_run_alone(tiny_overrides: list[str], tmp_path: Path) -> None:
    def fails(step: int, model: torch.nn.Module) -> None:
        raise RuntimeError(f"seen enough at step {step}")

    specs = [compose(*tiny_overrides, f"method.rank={rank}") for rank in (1, 2)]
    first, second = (
        Job(spec=spec, checkpoint_folder=tmp_path / spec.run_id, tracker=NoTracker(), **more)
        for spec, more in zip(specs, ({"watch": fails}, {}), strict=True)
    )
    failed, done = fit_together([first, second], device="cpu")
    assert isinstance(failed, RuntimeError)
    assert isinstance(done, FitResult)


def test_a_model_without_its_pooler_is_refused(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Under an adapter it would be random and frozen, and another one in a pack."""
    lacking = tmp_path / "lacking"
    shutil.copytree(tiny_model("bert"), lacking)
    weights = load_file(lacking / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks bert\.pooler\.dense\.bias: it would be random"):
        run(tiny_overrides, tmp_path, f"model.source={lacking}")


def test_a_classifier_of_other_classes_gets_a_new_head(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_model("bert"), old)
    load_model(
        Classification, tiny_model("bert"), number_of_labels=3, dropout=None
    ).save_pretrained(old)
    result = run(tiny_overrides, tmp_path / "run", f"model.source={old}")
    assert result.record["test"]["accuracy"] > 0
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    [head] = [saved[name] for name in saved if name.endswith("classifier.weight")]
    assert head.shape == (2, 16)


def test_weights_of_another_model_than_the_configuration_are_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_model("bert"), mixed)
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(InputError, match=r"intermediate.*is stored as \(24,.*makes it \(32,"):
        load_model(Classification, mixed, number_of_labels=2, dropout=None)


def test_a_run_that_chooses_a_rate_keeps_no_model(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    result = run(tiny_overrides, tmp_path, "trainer.read_test=false")
    assert result.test is None
    assert result.record["checkpoint_bytes"] == 0
    assert not list(tmp_path.rglob("*.safetensors"))
