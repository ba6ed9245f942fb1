"""Runs trained together give what each gives alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.spec import RunSpec
from lowrank_study.training import packing
from lowrank_study.training.batches import Batch, extreme_texts
from lowrank_study.training.fit import Job, fit_together
from lowrank_study.training.member import Diverged, FitResult, Stopped
from lowrank_study.training.models import build_model
from lowrank_study.training.packing import Pack, share_frozen
from lowrank_study.training.tracking import JsonLinesTracker, Tracker
from lowrank_study.training.unpadded import unpadded_scores

CPU = torch.device("cpu")
MIXED = [
    ["method.rank=1", "method.learning_rate=6e-3", "seed=0"],
    ["method.rank=8", "method.learning_rate=1e-3", "seed=1", "method.alpha=4"],
    ["method.rank=3", "method.learning_rate=3e-3", "seed=2", "method.scaling=alpha_over_sqrt_rank"],
]
EVERY_STEP = [
    "trainer.evaluations=100",
    "trainer.epochs=3",
    "data_seed=0",
    "trainer.precision=fp32",
]


def specs_of(tiny_overrides: list[str], *more: str) -> list[RunSpec]:
    return [compose(*tiny_overrides, *EVERY_STEP, *more, *variant) for variant in MIXED]


def trained(
    specs: Sequence[RunSpec], folder: Path
) -> list[tuple[FitResult | Exception, list[str]]]:
    """Train runs together; give each one's outcome and its curve, a line a step."""
    folder.mkdir()
    places = [folder / str(number) for number in range(len(specs))]
    for place in places:
        place.mkdir()
    jobs = [
        Job(spec=spec, checkpoint_folder=place / "checkpoint", tracker=JsonLinesTracker(place))
        for spec, place in zip(specs, places, strict=True)
    ]
    outcomes = fit_together(jobs, device="cpu")
    for job in jobs:
        job.tracker.__exit__(None, None, None)
    return [
        (outcome, (place / "curve.jsonl").read_text().splitlines())
        for outcome, place in zip(outcomes, places, strict=True)
    ]


def losses(curve: list[str]) -> np.ndarray:
    import json

    lines = [json.loads(line) for line in curve]
    return np.array([[line["train_loss"], line["validation_loss"]] for line in lines])


def check_weights(run: Path, other: Path, *, tolerance: float) -> None:
    """Compare the saved weights of two runs, relative to each tensor's largest entry."""
    mine, theirs = (
        load_file(place / "checkpoint" / "adapter_model.safetensors") for place in (run, other)
    )
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        difference = (weight - theirs[name]).abs().max() / weight.abs().max()
        assert difference < tolerance, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision", "options"),
    [
        ("bert", "bf16", []),
        ("bert", "fp32", ["model.dropout=0.3", "method.dropout=0.2", "method.target=all_linear"]),
        ("roberta", "bf16", ["model.dropout=0.3"]),
        ("bert", "bf16", ["method.target=[word_embeddings,query]"]),
        ("gpt2", "fp32", ["method.target=mlp"]),
        ("llama", "bf16", ["method.target=mlp"]),
        ("opt", "fp32", ["model.dropout=0.3"]),  # its dropout is a function, not a module
    ],
)
def test_each_run_of_a_pack_is_the_run_alone(
    family: str,
    precision: str,
    options: list[str],
    tiny_overrides: list[str],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """In bf16, operations that round elsewhere change weights by up to 2 % of the largest."""
    model = [f"model={family}", f"model.source={tiny_model(family)}", *options]
    specs = specs_of(tiny_overrides, *model, f"trainer.precision={precision}")
    together = trained(specs, tmp_path / "together")
    for number, spec in enumerate(specs):
        [(alone, curve)] = trained([spec], tmp_path / f"alone{number}")
        check_weights(
            tmp_path / "together" / str(number),
            tmp_path / f"alone{number}" / "0",
            tolerance={"fp32": 1e-4, "bf16": 1e-3}[precision],
        )
        packed, packed_curve = together[number]
        assert isinstance(alone, FitResult)
        assert isinstance(packed, FitResult)
        assert len(curve) == alone.record["steps"] >= 24
        np.testing.assert_allclose(losses(packed_curve), losses(curve), rtol=0, atol=1e-5)
        np.testing.assert_allclose(packed.test.losses, alone.test.losses, rtol=0, atol=1e-5)
        assert packed.record["adapter_parameters"] == alone.record["adapter_parameters"]
        assert packed.record["pack_size"] == 3


def test_the_reference_path_gives_equal_results(tiny_overrides: list[str], tmp_path: Path) -> None:
    exact = ["model.dropout=0.0", "trainer.precision=fp32"]
    fast = specs_of(tiny_overrides, *exact)[:1]
    plain = specs_of(tiny_overrides, *exact, "trainer.reference=true")[:1]
    assert fast[0].run_id != plain[0].run_id
    [(_, fast_curve)] = trained(fast, tmp_path / "fast")
    [(_, plain_curve)] = trained(plain, tmp_path / "plain")
    np.testing.assert_allclose(losses(fast_curve), losses(plain_curve), rtol=0, atol=1e-5)


def test_a_diverged_or_failed_run_does_not_affect_the_others(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    first, second, third = specs_of(tiny_overrides)
    hot = compose(
        *tiny_overrides, *EVERY_STEP, "method.learning_rate=1e38", "trainer.max_grad_norm=1e38"
    )
    import dataclasses

    hot = dataclasses.replace(hot, train=first.train)
    (tmp_path / "x").mkdir()
    places = [tmp_path / "x" / str(number) for number in range(4)]
    for place in places:
        place.mkdir()
    (places[2] / "checkpoint").write_text("a file where the folder is to be")
    jobs = [
        Job(spec=spec, checkpoint_folder=place / "checkpoint", tracker=JsonLinesTracker(place))
        for spec, place in zip((first, hot, second, third), places, strict=True)
    ]
    done, diverged, failed, other = fit_together(jobs, device="cpu")
    for job in jobs:
        job.tracker.__exit__(None, None, None)
    assert isinstance(diverged, Diverged)
    assert isinstance(failed, OSError)
    for outcome, spec, place in ((done, first, "p"), (other, third, "q")):
        [(alone, _)] = trained([spec], tmp_path / place)
        assert isinstance(outcome, FitResult)
        assert isinstance(alone, FitResult)
        np.testing.assert_allclose(outcome.test.losses, alone.test.losses, rtol=0, atol=1e-5)


def test_a_run_above_its_limit_is_stopped_and_the_others_go_on(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    specs = specs_of(tiny_overrides)[:2]
    limits = [{3: 9.0, 4: 0.01}, {4: 9.0}]
    jobs = [
        Job(spec=spec, checkpoint_folder=tmp_path / str(n), tracker=Tracker(), limits=limits[n])
        for n, spec in enumerate(specs)
    ]
    stopped, done = fit_together(jobs, device="cpu")
    assert isinstance(stopped, Stopped)
    assert [point["step"] for point in stopped.record["curve"]] == [1, 2, 3, 4]
    assert stopped.record["steps"] == 4
    assert "above the limit 0.01" in str(stopped)
    assert stopped.record["provenance"]
    assert not (tmp_path / "0").exists()
    assert isinstance(done, FitResult)
    assert len(done.record["curve"]) == done.record["steps"]
    [(alone, _)] = trained(specs[1:], tmp_path / "alone")
    assert isinstance(alone, FitResult)
    np.testing.assert_allclose(done.test.losses, alone.test.losses, rtol=0, atol=1e-5)
    for mine, its in zip(done.record["curve"], alone.record["curve"], strict=True):
        np.testing.assert_allclose(mine["loss"], its["loss"], rtol=0, atol=1e-5)
    assert done.record["validation"]["loss"] == min(
        point["loss"] for point in done.record["curve"] if point["step"] == done.record["best_step"]
    )


def test_a_pack_holds_the_frozen_weights_once(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    specs = specs_of(tiny_overrides)
    folder = model_folder(specs[0].model)
    splits = load_splits(specs[0].task, folder)
    models = [build_model(spec, folder, number_of_labels=2) for spec in specs]
    for model in models:
        share_frozen(models[0], model)
    before = {n: p.detach().clone() for n, p in models[0].named_parameters()}
    sample = extreme_texts([splits.train], 4)
    pack = Pack(models, device=CPU, pad_id=0, sample=sample, reference=False)
    distinct = {p.data_ptr() for model in models for p in model.parameters() if not p.requires_grad}
    assert len(distinct) == sum(not p.requires_grad for p in models[0].parameters())
    joint = [p for p in pack._joint.parameters() if not p.requires_grad]
    assert {p.data_ptr() for p in joint} == distinct
    pack.scores(sample).square().sum().backward()
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad or parameter.grad is None


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda scores, training: scores + 1, "scores in evaluation change by 1"),
        (lambda scores, training: scores + training, "scores in training change by 1"),
        (lambda scores, training: scores * 2 - scores.detach(), "the gradient of .* changes by"),
    ],
)
def test_a_model_whose_scores_change_end_to_end_is_refused(
    wrong: Callable[[torch.Tensor, bool], torch.Tensor],
    what: str,
    tiny_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = compose(*tiny_overrides)
    folder = model_folder(spec.model)
    sample = extreme_texts([load_splits(spec.task, folder).train], 4)
    model = build_model(spec, folder, number_of_labels=2)

    def scores(model: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        return wrong(unpadded_scores(model, *arguments), model.training)

    monkeypatch.setattr(packing, "unpadded_scores", scores)
    with pytest.raises(InputError, match=rf"concatenated texts: {what}.* trainer=reference"):
        Pack([model], device=CPU, pad_id=0, sample=sample, reference=False)


def test_texts_that_train_alone_are_checked_beside_a_neighbour(
    tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts are parts of their own, but a validation split may have short ones too."""
    spec = compose(*tiny_overrides)
    folder = model_folder(spec.model)
    sample = extreme_texts([load_splits(spec.task, folder).train], 4)
    model = build_model(spec, folder, number_of_labels=2)
    monkeypatch.setattr(packing, "part_tokens", lambda model, precision: 1)

    def leaking(model: torch.nn.Module, batch: Batch, *arguments: Any) -> torch.Tensor:
        scores_RNC = unpadded_scores(model, batch, *arguments)
        return scores_RNC + scores_RNC.mean(1, keepdim=True) * (len(batch.lengths) > 1)

    monkeypatch.setattr(packing, "unpadded_scores", leaking)
    with pytest.raises(InputError, match="concatenated texts: scores in evaluation change"):
        Pack([model], device=CPU, pad_id=0, sample=sample, reference=False)
