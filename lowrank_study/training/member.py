"""One run during training: its model, optimizer, schedule, learning curve and best step."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_study.data.splits import Split, Splits
from lowrank_study.data.tokenizer import load_tokenizer, padding_id
from lowrank_study.methods import Method
from lowrank_study.methods.layers.linear import adapted_modules, merged
from lowrank_study.methods.layers.modules import head_parameters
from lowrank_study.runs.limits import Limits, first_above
from lowrank_study.spec import RunSpec
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.adamw import clip_gradients
from lowrank_study.training.batches import Batch
from lowrank_study.training.embeddings import clear_gradients
from lowrank_study.training.evaluate import batch_tokens, predict
from lowrank_study.training.generation import answered
from lowrank_study.training.models import build_model
from lowrank_study.training.optim import make_optimizer, make_schedule
from lowrank_study.training.preparation import batch_losses
from lowrank_study.training.tracking import Tracker

Scores = Callable[[Batch], Tensor]


class Diverged(ArithmeticError):
    """Training reached a loss or a gradient that is not finite."""


class Stopped(Exception):
    """The validation loss of a trial was above its limit; `record` says where."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record["message"])
        self.record = record


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A trained model's measurements, and its predictions on the test split."""

    record: dict[str, Any]
    test: Predictions | None
    """None if the test split isn't read."""
    base: Predictions | None
    """The base model's, where the metric compares with them; full fine-tuning measures them."""


class Stopwatch:
    """A context manager that sums up the seconds spent in its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


@dataclass(slots=True)
class _Best:
    """The best step so far, by validation score and then by validation loss."""

    key: tuple[float, float] = (-math.inf, -math.inf)
    step: int = 0
    validation: dict[str, float] | None = None
    state: dict[str, Tensor] | None = None


class Member:
    """One run during training."""

    def __init__(
        self,
        spec: RunSpec,
        tracker: Tracker,
        splits: Splits,
        folder: Path,
        steps: int,
        device: torch.device,
        limits: Limits,
    ) -> None:
        model = build_model(spec, folder, number_of_labels=len(splits.labels))
        self._counts = _parameter_counts(model, spec.method)
        self.model = model.to(device)
        spec.task.name_outputs(self.model.config, splits.labels)
        self._spec, self._tracker, self._splits, self._folder = spec, tracker, splits, folder
        self._steps, self._device, self._limits = steps, device, limits
        losses = batch_losses(self.model, spec, splits.train, device, padding_id(folder))
        spec.method.prepare(self.model.eval(), losses)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(self.model, spec)
        self._schedule = make_schedule(self._optimizer, steps, spec.train)
        self._losses: list[float] = []
        self._curve: list[dict[str, float]] = []
        self._best = _Best()
        self._evaluating = Stopwatch()
        self._base: Predictions | None = None

    def start(self, scores: Scores) -> None:
        """Evaluate the base model, on validation and test, if the metric compares with it."""
        task, train = self._spec.task, self._spec.train
        if task.metric.needs_base and self._spec.method.is_reference and train.read_test:
            with self._evaluating:
                self._base = self._read_test(scores)
                validation = self.read(scores, self._splits.validation).metrics()
            self._keep_point(validation, predicted_tokens=0)

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to the largest norm, and return their norm before."""
        return clip_gradients(self._optimizer, self._trained, self._spec.train.max_grad_norm)

    def update(self, loss: float, norm: float) -> None:
        """Take an optimizer step with the current gradients."""
        self._losses.append(loss)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss was {loss:g} and the gradient's norm {norm:g}")
        self._optimizer.step()
        self._schedule.step()
        clear_gradients(self._trained)

    def _diverged(self, what: str) -> Diverged:
        rate = self._spec.method.learning_rate
        place = f"step {len(self._losses)} of {self._steps}"
        return Diverged(f"{what} at {place}, at learning rate {rate:g}")

    def validate(self, scores: Scores, *, predicted_tokens: int) -> None:
        """Evaluate on validation, and keep the weights if they are the best so far.

        Args:
            scores: Computes the model's scores of a batch.
            predicted_tokens: Tokens that the training batches so far have predicted.

        Raises:
            Diverged: The loss is not finite, as after a last step at far too high a rate.
            Stopped: The loss is above the limit of this step.
        """
        step = len(self._losses)
        with self._evaluating:
            validation = self.read(scores, self._splits.validation).metrics()
        if not math.isfinite(validation["loss"]):
            raise self._diverged(f"the validation loss was {validation['loss']:g}")
        self._keep_point(validation, predicted_tokens=predicted_tokens)
        if above := first_above(self._curve, self._limits):
            raise Stopped(
                {
                    "message": f"stopped at step {step} of {self._steps}: the validation loss "
                    f"{above['loss']:.4g} is above the limit {self._limits[step]:.4g}",
                    "curve": self._curve,
                    "steps": step,
                    "evaluate_seconds": self._evaluating.seconds,
                }
            )
        metric = self._spec.task.metric
        key = (metric.worth(validation[metric.name]), -validation["loss"])
        if key > self._best.key:
            state = _trained_state(self.model) if step < self._steps else None
            self._best = _Best(key, step, validation, state)

    def _keep_point(self, validation: Mapping[str, float], *, predicted_tokens: int) -> None:
        """Add an evaluation on validation to the curve; step 0 is the base model."""
        step, scores_tokens = len(self._losses), self._spec.task.scores_tokens
        training = {
            **({"train_loss": self._recent_loss()} if step else {}),
            **({"predicted_tokens": predicted_tokens} if scores_tokens else {}),
        }
        self._curve.append({"step": step, **training, **validation})
        named = {f"validation_{name}": value for name, value in validation.items()}
        self._tracker.log(step=step, metrics={**training, **named})

    def finish(self, scores: Scores, checkpoint_folder: Path, *, base: Path) -> FitResult:
        """Restore the best step, evaluate it on the test split, and save the trained weights.

        A run that doesn't read the test split only helps to choose a rate, and saves no weights.
        """
        if self._best.state is not None:
            _restore(self.model, self._best.state)
        test, train = None, {}
        if self._spec.train.read_test:
            with self._evaluating:
                test = self._read_test(scores)
                # As many training rows as in validation show the gap to unseen texts.
                seen = self._splits.train.first(len(self._splits.validation))
                train = self.read(scores, seen).metrics()
            self._spec.method.save(self.model, checkpoint_folder, spec=self._spec, base=base)
        files = checkpoint_folder.rglob("*.safetensors")
        record = {
            "test": test.metrics() if test else {},
            **({"base": self._base.metrics()} if self._base else {}),
            **self._of_sets("test_sets", test),
            **self._of_sets("base_sets", self._base),
            "validation": self._best.validation,
            "curve": self._curve,
            "train": {"running_loss": self._recent_loss(), **train},
            "best_step": self._best.step,
            "steps": self._steps,
            **self._counts,
            "checkpoint_bytes": sum(file.stat().st_size for file in files),
            "evaluate_seconds": self._evaluating.seconds,
            "merge_round_trip_error": _merge_round_trip_error(self.model),
        }
        named = test.with_sets(self._splits.test_sets) if test else None
        return FitResult(record=record, test=named, base=self._base)

    def _of_sets(self, name: str, predictions: Predictions | None) -> dict[str, Any]:
        """Return the metrics of each test set, if there are several."""
        sets = predictions.in_sets(self._splits.test_sets) if predictions else {}
        return {name: {of: part.metrics() for of, part in sets.items()}} if sets else {}

    def _read_test(self, scores: Scores) -> Predictions:
        """Return the predictions on the test split, with answers if the task generates some."""
        task, precision = self._spec.task, self._spec.train.precision
        predictions = self.read(scores, self._splits.test)
        if not isinstance(task, Generation):
            return predictions
        with self._merged():
            return answered(
                predictions,
                self._splits.test,
                task=task,
                model=self.model,
                tokenizer=load_tokenizer(self._folder),
                sets=self._splits.test_sets,
                device=self._device,
                precision=precision,
            )

    def _merged(self) -> AbstractContextManager[None]:
        """Merge the adapter, which is faster; in bf16, the weights would lose most of it."""
        return merged(self.model) if self._spec.train.precision == "fp32" else nullcontext()

    def read(self, scores: Scores, split: Split) -> Predictions:
        """Return the predictions on a split."""
        precision = self._spec.train.precision
        with self._merged():
            return predict(
                self._spec.task,
                scores,
                split,
                tokens=batch_tokens(
                    self.model, precision=precision, reference=self._spec.train.reference
                ),
                device=self._device,
                precision=precision,
            )

    def _recent_loss(self) -> float:
        recent = self._losses[-20:]
        return sum(recent) / len(recent)


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the trained parameters, to restore later."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def _restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore parameters from copies taken by `_trained_state`."""
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.copy_(state[name])


def _parameter_counts(model: nn.Module, method: Method) -> dict[str, int]:
    """Count all parameters, the trained ones, and those that the method trains beside the head."""
    trained = {p for p in model.parameters() if p.requires_grad}
    adapter = set() if method.is_reference else trained - head_parameters(model)
    every = {
        p.data_ptr(): p.numel()  # tied weights count once
        for name, p in model.named_parameters()
        if ".original_module." not in name  # PEFT trains a copy of each head beside it
    }
    return {
        "trainable_parameters": sum(p.numel() for p in trained),
        "adapter_parameters": sum(p.numel() for p in adapter),
        "total_parameters": sum(every.values()),
    }


def _merge_round_trip_error(model: nn.Module) -> float | None:
    """Return the largest |((W0 + delta) - delta) - W0| of the adapted maps; None without any."""
    errors = [
        module.round_trip_error()
        for _, module in adapted_modules(model)
        if module.weight.dtype == torch.float32
    ]
    return max(errors) if errors else None
