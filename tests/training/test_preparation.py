"""Runs whose initial values depend on training data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_study.config.run import compose
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.methods.layers.lora import lora_modules
from lowrank_study.training.batches import training_batches
from lowrank_study.training.fit import Job, Session, fit_together
from lowrank_study.training.member import FitResult
from lowrank_study.training.models import build_model
from lowrank_study.training.preparation import batch_losses
from lowrank_study.training.tracking import Tracker
from lowrank_study.training.unpadded import padded_scores

CPU = torch.device("cpu")
VARIANTS = ("lora", "rslora", "loraplus", "pissa", "olora", "eva", "lora_ga")


@pytest.mark.parametrize("causal", [False, True])
def test_the_losses_of_texts_add_up_to_that_of_their_batch(
    causal: bool, tiny_overrides: list[str], causal_overrides: Callable[..., list[str]]
) -> None:
    spec = compose(*(causal_overrides() if causal else tiny_overrides), "model.dropout=0.0")
    split, folder = splits_of(spec).train, model_folder(spec.model)
    model = build_model(spec, folder, number_of_labels=0 if causal else 2).eval()
    batches = training_batches(split, batch_size=spec.train.batch_size, epochs=1, seed=0)
    texts = batch_losses(model, spec, split, CPU, 0)
    for batch, losses, _ in zip(batches, texts, range(2), strict=False):
        [scores] = padded_scores(model, batch, CPU, 0)
        expected = spec.task.loss(scores, batch, reduction="sum") / spec.task.loss_terms(batch)
        found = torch.stack(list(losses))
        assert len(found) == len(batch.lengths)
        torch.testing.assert_close(found.sum(), expected, rtol=1e-5, atol=1e-5)


def test_every_variant_trains_alone_as_in_one_pack(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    exact = ["trainer.evaluations=100", "trainer.epochs=1", "trainer.weight_decay=0.1"]
    specs = [
        compose(*tiny_overrides, *exact, f"method={method}", f"method.rank={rank}")
        for method, rank in zip(VARIANTS, (2, 3, 3, 2, 5, 4, 2), strict=True)
    ]

    def trained(name: str, *numbers: int) -> tuple[list[FitResult], list[nn.Module]]:
        models: dict[int, nn.Module] = {}

        def keep(number: int, step: int, model: nn.Module) -> None:
            models[number] = model

        jobs = [
            Job(
                spec=specs[number],
                checkpoint_folder=tmp_path / f"{name}{number}",
                tracker=Tracker(),
                watch=partial(keep, number),
            )
            for number in numbers
        ]
        outcomes = fit_together(jobs, device="cpu")
        results = [outcome for outcome in outcomes if isinstance(outcome, FitResult)]
        assert len(results) == len(jobs), outcomes
        return results, [models[number] for number in numbers]

    results, models = trained("together", *range(len(specs)))
    for number, (packed, of_pack) in enumerate(zip(results, models, strict=True)):
        [alone], [of_run] = trained("alone", number)
        curves = [
            [
                point["validation_loss"] if "validation_loss" in point else point["loss"]
                for point in each.record["curve"]
            ]
            for each in (packed, alone)
        ]
        torch.testing.assert_close(*map(torch.tensor, curves), rtol=0, atol=1e-5)
        for (_, mine), (_, other) in zip(lora_modules(of_pack), lora_modules(of_run), strict=True):
            delta_OI = other.delta_OI()
            assert (mine.delta_OI() - delta_OI).norm() < 1e-3 * delta_OI.norm()
            assert delta_OI.any()
    losses = {round(result.record["curve"][-1]["loss"], 7) for result in results}
    assert len(losses) == len(VARIANTS)


@pytest.mark.parametrize("method", ["eva", "lora_ga"])
def test_a_run_is_prepared_before_its_optimizer_is_made(
    method: str, tiny_overrides: list[str], tmp_path: Path
) -> None:
    spec = compose(*tiny_overrides, f"method={method}", "method.rank=3")
    session = Session([Job(spec=spec, checkpoint_folder=tmp_path, tracker=Tracker())], CPU)
    [member] = session._members
    for _, layer in lora_modules(member.model):
        directions_RR = layer.A_RI @ layer.A_RI.T  # orthogonal, which random factors are not
        assert directions_RR[0, 0] > 0.9 if method == "eva" else layer.B_OR.any()
        torch.testing.assert_close(directions_RR, directions_RR[0, 0] * torch.eye(3))
    groups = [group for group in member._optimizer.param_groups if "starts" in group]
    assert bool(groups) is (method == "lora_ga")
    for group in groups:
        for parameter, start in zip(group["params"], group["starts"], strict=True):
            assert torch.equal(parameter, start)
