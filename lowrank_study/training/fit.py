"""The one training loop, for every method and for any number of runs at once.

>>> result = fit(spec, checkpoint_folder=Path("out"), tracker=NoTracker())
>>> result.record["test"]["accuracy"]
0.794
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_study.data.splits import Splits, with_shuffled_labels
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.errors import InputError
from lowrank_study.left_out import in_words
from lowrank_study.loaded import model_folder, splits_of, weights_sha256
from lowrank_study.methods.layers.linear import round_frozen
from lowrank_study.provenance import provenance
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import Batch, extreme_texts, steps_of, training_batches
from lowrank_study.training.evaluate import autocast
from lowrank_study.training.member import FitResult, Member, Stopwatch, is_evaluated
from lowrank_study.training.memory import peak_memory_bytes, reset_peak_memory
from lowrank_study.training.packing import Pack, share_frozen
from lowrank_study.training.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run that is to be trained, and whom to tell."""

    spec: RunSpec
    checkpoint_folder: Path
    """Where the trained model or adapter is written."""
    tracker: Tracker
    """Takes the curve."""
    on_progress: Callable[[float], None] = lambda share: None
    """Told the share of the run that is done, in [0, 1], after every step."""
    watch: Callable[[int, nn.Module], None] = lambda step, model: None
    """Shown the model after every optimizer step, counted from 1; it is not to change it."""


def fit(
    spec: RunSpec, *, checkpoint_folder: Path, tracker: Tracker, device: str = "auto"
) -> FitResult:
    """Train one run: validation picks the step that is kept, the test split is read once.

    Raises
    ------
    Diverged
        The loss or the gradient became NaN or infinite.
    InputError
        The data, the model or the target is not what the spec says.
    """
    job = Job(spec=spec, checkpoint_folder=checkpoint_folder, tracker=tracker)
    [outcome] = fit_together([job], device=device)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def fit_together(jobs: Sequence[Job], *, device: str) -> list[FitResult | Exception]:
    """Train runs that may be packed (`packing.py`), or one run of any kind.

    Parameters
    ----------
    jobs
        Of one task, base, target, training and data seed.
    device
        `auto`, or torch's name of a device.

    Returns
    -------
    For each job its result, or the exception that ended it, and it alone.
    """
    place = torch_device(device)
    reset_peak_memory(place)
    spec = jobs[0].spec
    folder = model_folder(spec.model)
    splits = splits_of(spec)
    if spec.train.shuffle_labels:
        splits = with_shuffled_labels(splits, spec.data_seed)
    steps = steps_of(splits.train, batch_size=spec.train.batch_size, epochs=spec.train.epochs)
    members: list[Member] = []
    for job in jobs:
        members.append(Member(job.spec, job.tracker, splits, folder, steps, place))
        share_frozen(members[0].model, members[-1].model)
    model_folder(spec.model)  # again: an edit during loading must not go unnoticed
    sample = extreme_texts((splits.train, splits.validation, splits.test), spec.train.batch_size)
    pack = Pack(
        [member.model for member in members],
        device=place,
        pad_id=padding_id(folder),
        sample=sample,
        reference=spec.train.reference,
    )
    if spec.train.precision == "bf16" and spec.method.rounds_frozen:
        round_frozen(members[0].model)
    outcomes: dict[int, FitResult | Exception] = {}

    @contextmanager
    def of_one(number: int) -> Iterator[Member]:
        """What goes wrong inside ends this run, and no other."""
        try:
            yield members[number]
        except Exception as error:
            outcomes[number] = error
            pack.drop(number)

    batches = training_batches(
        splits.train,
        batch_size=spec.train.batch_size,
        epochs=spec.train.epochs,
        seed=spec.data_seed,
    )
    torch.manual_seed(spec.data_seed)  # dropout's masks are those of the data order
    training = Stopwatch()
    for step, batch in enumerate(batches, start=1):
        with training:
            losses = backward(pack, batch, spec, place)
            for number, loss in zip(list(pack.active), losses, strict=True):
                with of_one(number) as member:
                    member.update(loss)
        for number in list(pack.active):
            with of_one(number) as member:
                jobs[number].watch(step, member.model)
                if is_evaluated(step, steps, spec.train.evaluations):
                    member.validate(partial(pack.scores_of, number))
                jobs[number].on_progress(0.9 * step / steps)
        if not pack.active:
            break

    facts: dict[str, Any] = {
        "pack_size": len(jobs),
        "train_seconds": training.seconds / len(jobs),
        "examples_per_second": spec.train.epochs * len(splits.train) * len(jobs) / training.seconds,
        "labels": list(splits.labels),
        "examples": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "left_out": in_words(splits.account.left_out),
        "provenance": _provenance(spec, folder, splits, place),
    }

    for number in list(pack.active):
        with of_one(number) as member:
            folder_of_run = jobs[number].checkpoint_folder
            result = member.finish(partial(pack.scores_of, number), folder_of_run, base=folder)
            facts["peak_memory_bytes"] = peak_memory_bytes(place)
            outcomes[number] = replace(result, record={**result.record, **facts})
            jobs[number].on_progress(1.0)
    return [outcomes[number] for number in range(len(jobs))]


def backward(pack: Pack, batch: Batch, spec: RunSpec, device: torch.device) -> list[float]:
    """Add the gradients of the mean loss over a batch, and return the loss of each active run."""
    losses_R = torch.zeros(len(pack.active))
    for part in pack.parts(batch):
        with autocast(device, spec.train.precision):
            scores_RNC = pack.scores(part)
        losses = [spec.task.loss(scores, part, reduction="sum") for scores in scores_RNC]
        part_R = torch.stack(losses) / spec.task.loss_terms(batch)
        part_R.sum().backward()  # type: ignore[no-untyped-call]
        losses_R += part_R.detach().cpu()
    return losses_R.tolist()


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


def _provenance(
    spec: RunSpec, folder: Path, splits: Splits, device: torch.device
) -> dict[str, str]:
    return {
        **provenance(),
        "weights_sha256": weights_sha256(spec.model, folder),
        "data_sha256": splits.sha256,
        "precision": spec.train.precision,
        "device": device.type,
        "threads": str(torch.get_num_threads()),
    }
