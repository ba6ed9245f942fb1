"""The one training loop, for every method.

>>> result = fit(spec, checkpoint_folder=Path("out"), tracker=NoTracker())
>>> result.record["test"]["accuracy"]
0.794
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_study import assets
from lowrank_study.errors import InputError
from lowrank_study.provenance import provenance
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import steps_of, training_batches
from lowrank_study.training.data import Splits, load_splits, load_tokenizer
from lowrank_study.training.evaluate import Predictions, autocast, predict, scores
from lowrank_study.training.first_token import read_first_token_only
from lowrank_study.training.lora import lora_modules, merged
from lowrank_study.training.memory import peak_memory_bytes, reset_peak_memory
from lowrank_study.training.models import (
    build_model,
    model_folder,
    restore,
    save_model,
    trainable_state,
)
from lowrank_study.training.optim import make_optimizer, make_schedule
from lowrank_study.training.tracking import Tracker


class Diverged(ArithmeticError):
    """Training reached a loss or a gradient that is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A trained model's measurements, and its predictions on the test split."""

    record: dict[str, Any]
    test: Predictions


@dataclass(slots=True)
class _Best:
    """The best step so far, by validation accuracy and then by validation loss."""

    key: tuple[float, float] = (-1.0, -math.inf)
    step: int = 0
    validation: dict[str, float] | None = None
    state: dict[str, Tensor] | None = None


def fit(
    spec: RunSpec,
    *,
    checkpoint_folder: Path,
    tracker: Tracker,
    device: str = "auto",
    on_progress: Callable[[float], None] = lambda share: None,
) -> FitResult:
    """Train one run: validation picks the step that is kept, the test split is read once.

    Parameters
    ----------
    spec
        The run.
    checkpoint_folder
        Where the trained model or adapter is written.
    tracker
        Takes the curve.
    device
        `auto`, or torch's name of a device.
    on_progress
        Told the share of the run that is done, in [0, 1], after every step.

    Raises
    ------
    Diverged
        The loss or the gradient became NaN or infinite.
    InputError
        The data, the model or the target is not what the spec says.
    """
    place = torch_device(device)
    reset_peak_memory(place)
    folder = model_folder(spec.model)
    splits = load_splits(spec.task, folder)
    pad_id = int(load_tokenizer(folder).pad_token_id)
    model = build_model(spec, folder, number_of_labels=len(splits.labels)).to(place)
    read_first_token_only(model)
    sizes = _parameter_counts(model)

    def read(split_name: str) -> Predictions:
        split = getattr(splits, split_name)
        with merged(model):
            return predict(
                model, split, device=place, precision=spec.train.precision, pad_id=pad_id
            )

    best = _Best()
    train_seconds = evaluate_seconds = 0.0
    losses: list[float] = []
    steps = steps_of(splits.train, batch_size=spec.train.batch_size, epochs=spec.train.epochs)
    evaluate_at = {
        max(1, round(steps * k / spec.train.evaluations))
        for k in range(1, spec.train.evaluations + 1)
    }
    optimizer = make_optimizer(model, spec.method.learning_rate, spec.train)
    trained = [p for p in model.parameters() if p.requires_grad]
    schedule = make_schedule(optimizer, steps, spec.train)
    batches = training_batches(
        splits.train,
        batch_size=spec.train.batch_size,
        epochs=spec.train.epochs,
        seed=spec.seed,
        pad_id=pad_id,
    )
    torch.manual_seed(spec.seed)  # dropout is the same for every method of a seed
    clock = time.perf_counter()
    for step, batch in enumerate(batches, start=1):
        model.train()
        with autocast(place, spec.train.precision):
            logits = scores(model, batch, place)
            loss = nn.functional.cross_entropy(logits.float(), batch.labels_N.to(place))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trained, spec.train.max_grad_norm)
        losses.append(loss.item())
        if not (math.isfinite(losses[-1]) and math.isfinite(norm.item())):
            raise Diverged(
                f"the loss was {losses[-1]:g} and the gradient's norm {norm.item():g} at step "
                f"{step} of {steps}, at learning rate {spec.method.learning_rate:g}"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        on_progress(0.9 * step / steps)
        if step in evaluate_at:
            train_seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            validation = read("validation").metrics()
            recent = sum(losses[-20:]) / len(losses[-20:])
            tracker.log(
                step=step,
                metrics={
                    "train_loss": recent,
                    **{f"validation_{k}": v for k, v in validation.items()},
                },
            )
            key = (validation["accuracy"], -validation["loss"])
            if key > best.key:
                state = trainable_state(model) if step < steps else None
                best = _Best(key, step, validation, state)
            evaluate_seconds += time.perf_counter() - clock
            clock = time.perf_counter()

    if best.state is not None:
        restore(model, best.state)
    clock = time.perf_counter()
    test = read("test")
    evaluate_seconds += time.perf_counter() - clock
    save_model(model, spec, checkpoint_folder, base=folder)
    on_progress(1.0)
    record = {
        "test": test.metrics(),
        "validation": best.validation,
        "train": {"loss": sum(losses[-20:]) / len(losses[-20:])},
        "best_step": best.step,
        "steps": steps,
        "labels": list(splits.labels),
        "examples": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        **sizes,
        "checkpoint_bytes": sum(f.stat().st_size for f in checkpoint_folder.rglob("*.safetensors")),
        "train_seconds": train_seconds,
        "evaluate_seconds": evaluate_seconds,
        "examples_per_second": spec.train.epochs * len(splits.train) / train_seconds,
        "peak_memory_bytes": peak_memory_bytes(place),
        "merge_round_trip_error": _merge_round_trip_error(model),
        "provenance": _provenance(spec, folder, splits, place),
    }
    return FitResult(record=record, test=test)


def torch_device(name: str) -> torch.device:
    """Return torch's device of that name; `auto` is a GPU where there is one.

    Raises
    ------
    InputError
        A name torch does not know, or a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise InputError(
            f"device={name!r} can't be used here: valid are {', '.join(there)}"
        ) from error
    return device


def _parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count parameters; for LoRA the factors' Σ r(d + k) apart from the head."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    factors = sum(m.A_RI.numel() + m.B_OR.numel() for _, m in lora_modules(model))
    return {
        "trainable_parameters": trained,
        "adapter_parameters": factors,
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }


def _merge_round_trip_error(model: nn.Module) -> float | None:
    """Largest |((W0 + delta) - delta) - W0| over the adapted maps; `None` where there are none."""
    errors = [module.round_trip_error() for _, module in lora_modules(model)]
    return max(errors) if errors else None


def _provenance(
    spec: RunSpec, folder: Path, splits: Splits, device: torch.device
) -> dict[str, str]:
    return {
        **provenance(),
        "weights_sha256": assets.sha256_of(folder),
        "data_sha256": splits.sha256,
        "precision": spec.train.precision,
        "device": device.type,
        "threads": str(torch.get_num_threads()),
    }
