"""The one training loop, for every method and for any number of runs at once.

>>> result = fit(spec, checkpoint_folder=Path("out"), tracker=Tracker())
>>> result.record["test"]["accuracy"]
0.794
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_study.data.splits import Split, with_shuffled_labels
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.errors import InputError
from lowrank_study.left_out import in_words
from lowrank_study.loaded import model_folder, splits_of, weights_sha256
from lowrank_study.machine import keep_freed_memory, return_freed_memory
from lowrank_study.methods.layers.linear import round_frozen
from lowrank_study.provenance import provenance
from lowrank_study.runs.limits import Limits
from lowrank_study.spec import RunSpec
from lowrank_study.tasks import Predictions
from lowrank_study.training import kernels
from lowrank_study.training.batches import Batch, extreme_texts, steps_of, training_batches
from lowrank_study.training.evaluate import autocast
from lowrank_study.training.member import FitResult, Member, Stopped, Stopwatch
from lowrank_study.training.memory import peak_memory_bytes, reset_peak_memory
from lowrank_study.training.packing import Pack, share_frozen
from lowrank_study.training.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run to train, with its checkpoint folder and callbacks."""

    spec: RunSpec
    checkpoint_folder: Path
    """Folder to which the trained model or adapter is saved."""
    tracker: Tracker
    """Stores the learning curve."""
    limits: Limits = field(default_factory=dict)
    """Limits of the validation loss, above which the run is stopped."""
    on_progress: Callable[[float], None] = lambda share: None
    """Called after every step with the finished share of the run, in [0, 1]."""
    watch: Callable[[int, nn.Module], None] = lambda step, model: None
    """Called after every step, counted from 1, with the model, which it must not change."""


def fit(
    spec: RunSpec, *, checkpoint_folder: Path, tracker: Tracker, device: str = "auto"
) -> FitResult:
    """Train one run, keep the step that is best on validation, and evaluate it on the test split.

    Raises:
        Diverged: The loss or the gradient became NaN or infinite.
        InputError: The data, the model or the target doesn't fit the specification.
    """
    job = Job(spec=spec, checkpoint_folder=checkpoint_folder, tracker=tracker)
    [outcome] = fit_together([job], device=device)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def fit_together(jobs: Sequence[Job], *, device: str) -> list[FitResult | Exception]:
    """Train one run of any kind, or a pack of runs (`packing.py`).

    Args:
        jobs: Runs that share task, model, target, training settings and data seed.

    Returns:
        For each job its result, or the exception that ended only this run.
    """
    place = torch_device(device)
    reset_peak_memory(place)
    session = Session(jobs, place)
    seconds = session.train()
    session.finish(seconds)
    return [session.outcomes[number] for number in range(len(jobs))]


class Session:
    """Runs that train together; an exception in one of them ends only that one."""

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        """Load the models and data of all runs, and check the computation."""
        keep_freed_memory()
        self.outcomes: dict[int, FitResult | Exception] = {}
        self._jobs, self._device = jobs, device
        self._spec = spec = jobs[0].spec
        self._folder = model_folder(spec.model)
        splits = splits_of(spec)
        if spec.train.shuffle_labels:
            splits = with_shuffled_labels(splits, spec.data_seed)
        self._splits = splits
        self._steps = steps_of(
            splits.train, batch_size=spec.train.batch_size, epochs=spec.train.epochs
        )
        self._members: list[Member] = []
        for job in jobs:
            member = Member(
                job.spec, job.tracker, splits, self._folder, self._steps, device, job.limits
            )
            self._members.append(member)
            share_frozen(self._members[0].model, member.model)
        model_folder(spec.model)  # again, to notice a file that was edited during loading
        every = (splits.train, splits.validation, splits.test)
        self._pack = Pack(
            [member.model for member in self._members],
            device=device,
            pad_id=padding_id(self._folder),
            sample=extreme_texts(every, spec.train.batch_size),
            reference=spec.train.reference,
        )
        if spec.train.precision == "bf16" and spec.method.rounds_frozen:
            round_frozen(self._members[0].model)
        return_freed_memory()  # of the check

    @contextmanager
    def _member(self, number: int) -> Iterator[Member]:
        """Yield a run; an exception inside ends this run and no other."""
        try:
            yield self._members[number]
        except Exception as error:
            self.outcomes[number] = error
            self._pack.drop(number)

    def train(self) -> float:
        """Train until the last step or until no run is left; return the seconds of training."""
        spec, pack = self._spec, self._pack
        evaluated = spec.train.evaluated_steps(self._steps)
        for number in list(pack.active):
            with self._member(number) as member:
                member.start(partial(pack.scores_of, number))
        torch.manual_seed(spec.data_seed)  # for dropout
        training, predicted_tokens = Stopwatch(), 0
        for step, batch in enumerate(self.batches(), start=1):
            with training:
                self.step(batch)
            predicted_tokens += int(batch.scored_T.sum())
            if step in evaluated:
                return_freed_memory()
            for number in list(pack.active):
                with self._member(number) as member:
                    self._jobs[number].watch(step, member.model)
                    if step in evaluated:
                        scores = partial(pack.scores_of, number)
                        member.validate(scores, predicted_tokens=predicted_tokens)
                    self._jobs[number].on_progress(0.9 * step / self._steps)
            if not pack.active:
                break
        return training.seconds

    def batches(self) -> Iterator[Batch]:
        """Yield the training batches of all epochs."""
        return training_batches(
            self._splits.train,
            batch_size=self._spec.train.batch_size,
            epochs=self._spec.train.epochs,
            seed=self._spec.data_seed,
        )

    def step(self, batch: Batch) -> list[float]:
        """Take one optimizer step of every active run, and return their losses before it."""
        numbers = list(self._pack.active)
        losses_R = backward(self._pack, batch, self._spec, self._device)
        norms_R = torch.stack([self._members[number].clip_gradients() for number in numbers])
        # Reading both at once waits for a GPU only once a step.
        losses, norms = torch.stack([losses_R, norms_R]).tolist()
        for number, loss, norm in zip(numbers, losses, norms, strict=True):
            with self._member(number) as member:
                member.update(loss, norm)
        return list(losses)

    def read(self, split: Split) -> Predictions:
        """Return the predictions of the first run on a split."""
        return self._members[0].read(partial(self._pack.scores_of, 0), split)

    def finish(self, seconds: float) -> None:
        """Evaluate and save every run that is left."""
        facts = self._shared_facts(seconds)
        for outcome in self.outcomes.values():
            if isinstance(outcome, Stopped):
                outcome.record |= facts
        for number in list(self._pack.active):
            with self._member(number) as member:
                job, scores = self._jobs[number], partial(self._pack.scores_of, number)
                result = member.finish(scores, job.checkpoint_folder, base=self._folder)
                facts["peak_memory_bytes"] = peak_memory_bytes(self._device)
                self.outcomes[number] = replace(result, record={**result.record, **facts})
                job.on_progress(1.0)

    def _shared_facts(self, seconds: float) -> dict[str, Any]:
        """Return what the records of all these runs have in common."""
        splits, runs = self._splits, len(self._jobs)
        named = {name: getattr(splits, name) for name in ("train", "validation", "test")}
        examples = {name: split.examples for name, split in named.items()}
        tokens = {name: int(split.scored.sum()) for name, split in named.items()}
        return {
            "pack_size": runs,
            "train_seconds": seconds / runs,
            "examples_per_second": self._spec.train.epochs * len(splits.train) * runs / seconds,
            "labels": list(splits.labels),
            "examples": examples,
            **({"predicted_tokens": tokens} if tokens["train"] else {}),
            "left_out": in_words(splits.account.left_out),
            "provenance": {
                **provenance(),
                "weights_sha256": weights_sha256(self._spec.model, self._folder),
                "data_sha256": splits.sha256,
                "precision": self._spec.train.precision,
                "device": self._device.type,
                "threads": str(torch.get_num_threads()),
                "kernels": kernels.in_use(self._device),
            },
        }


def backward(pack: Pack, batch: Batch, spec: RunSpec, device: torch.device) -> Tensor:
    """Add the gradients of a batch's mean loss, and return the loss of each active run, (R,)."""
    losses_R = torch.zeros(len(pack.active), device=device)
    for part in pack.parts(batch, spec.train.precision):
        with autocast(device, spec.train.precision):
            scores_RNC = pack.scores(part)
        part = replace(part, labels_N=part.labels_N.to(device, non_blocking=True))
        losses = [spec.task.loss(scores, part, reduction="sum") for scores in scores_RNC]
        part_R = torch.stack(losses) / spec.task.loss_terms(batch)
        part_R.sum().backward()  # type: ignore[no-untyped-call]
        losses_R += part_R.detach()
    return losses_R


def torch_device(name: str) -> torch.device:
    """Return torch's device by its name; `auto` is a GPU if there is one."""
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
