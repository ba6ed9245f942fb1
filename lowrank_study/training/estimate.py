"""Estimate the memory of training a model by a method, from the model's configuration alone.

    >>> request = read_request(composed("estimate_memory", "architecture=llama_65b"))
    >>> estimate(request).peak
    264000000000

The model is built on the meta device, which holds only shapes, so that models fit that are larger
than this machine. Neither weights nor data are read. `memory.py` says what is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lowrank_study.config.architectures import published
from lowrank_study.config.fields import Fields
from lowrank_study.config.run import PRECISIONS, read_model
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.methods import Method, method_named, method_names
from lowrank_study.spec import BaseModel, HubRepo
from lowrank_study.tasks import Task, task_named, task_names
from lowrank_study.training.batches import Batch
from lowrank_study.training.memory import PeakPrediction, Texts, peak_of
from lowrank_study.training.models import set_dropout, shapes_of
from lowrank_study.training.unpadded import can_unpad, part_tokens

_CLASSES = 2
"""Classes of a classifier; more would change its memory by next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The training whose memory is asked for."""

    base: BaseModel
    config: Any
    """The model's configuration in transformers."""
    method: Method
    task: type[Task]
    length: int
    """Tokens of each text."""
    precision: str
    available: float | None
    """Bytes of memory that the training should fit into; None if that isn't asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes of memory beside the libraries, by what takes them."""

    training: Mapping[str, int]
    """Parts that are in memory at the same time during training."""
    check: int
    """Weights as they are loaded and checked before training, with what the check computes."""

    @property
    def peak(self) -> int:
        """The largest memory at any time."""
        return max(sum(self.training.values()), self.check)


def read_request(config: Mapping[str, Any]) -> Request:
    """Read the settings of `conf/estimate_memory.yaml`.

    Raises:
        InputError: A value is invalid, or the model's configuration can't be read.
    """
    top = Fields("", config)
    method = top.part("method")
    name = top.optional_text("architecture")
    sizes, base = (None, read_model(top.part("model"))) if name is None else published(name)
    precisions = tuple(each for each in PRECISIONS if each != "auto")
    gigabytes = top.optional_number("memory", above=0.0)
    return Request(
        base=base,
        config=_configuration(sizes, base),
        method=method_named(method.one_of("name", method_names())).from_fields(
            method, head_learning_rate=None
        ),
        task=task_named(top.one_of("kind", task_names())),
        length=top.integer("length", at_least=2),
        precision=top.one_of("precision", precisions),
        available=None if gigabytes is None else 1e9 * gigabytes,
    )


def estimate(request: Request) -> Estimate:
    """Estimate the memory of training a single run.

    Raises:
        InputError: The method or the model can't be built or run without weights.
    """
    if request.method.needs_weights:
        raise InputError(
            f"method={request.method.name}: PEFT builds it from weights, so its memory can't be "
            "estimated; choose another method"
        )
    try:
        request.task.configure(request.config, _CLASSES)
        if request.base.dropout is not None:
            set_dropout(request.config, request.base.dropout)
        model = shapes_of(request.task, request.config)
        with torch.device("meta"):
            model = request.method.attach(model, request.base)
        if not can_unpad(model):
            raise RuntimeError("texts would be padded")
        texts = _texts(request, part_tokens(model, request.precision))
        predicted = peak_of(model, request.method, texts, precision=request.precision)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"the memory of {request.base.name} can't be estimated: {reason}"
        ) from error
    return _by_part(predicted)


def _by_part(predicted: PeakPrediction) -> Estimate:
    quarter = predicted.trained // 4
    return Estimate(
        training={
            "frozen weights": predicted.frozen,
            "trained weights": quarter,
            "gradients": quarter,
            "Adam's two moments": 2 * quarter,
            "activations": predicted.activations,
            "logits and buffers": predicted.kernels,
        },
        check=predicted.peak_of_check(1),
    )


def _configuration(sizes: Mapping[str, Any] | None, base: BaseModel) -> Any:
    """Return the configuration of a model; no weights are fetched from the hub."""
    from transformers import AutoConfig

    if sizes is not None:
        return AutoConfig.for_model(**sizes)
    source = base.source
    try:
        if isinstance(source, HubRepo):
            return AutoConfig.from_pretrained(source.repo_id, revision=source.revision)
        return AutoConfig.from_pretrained(model_folder(base))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"the configuration of {base.name} can't be read: {reason}") from error


def _texts(request: Request, part: int) -> Texts:
    """Return the texts of one part of a training batch, all of the same length."""
    length, count = request.length, max(1, part // request.length)
    tokens = count * length
    batch = Batch(
        rows=np.arange(count),
        lengths=(length,) * count,
        ids_T=torch.zeros(tokens, dtype=torch.long),
        types_T=torch.zeros(tokens, dtype=torch.long),
        labels_N=torch.zeros(count, dtype=torch.long),
        scored_T=torch.arange(tokens) % length > 0,
    )
    return Texts(part=batch, longest=length, shortest=length)
