"""Peak memory of runs: measured during training, and predicted before weights are loaded.

The measured memory is that of the GPU if runs train on one, else that of the process. A worker
process trains many runs. Before each run it frees memory and resets the peak (on Linux), so that
a run's peak is its own.
"""

import functools
import gc
import logging
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_study.data.splits import Split, Splits
from lowrank_study.loaded import splits_of
from lowrank_study.machine import has_status, return_freed_memory, status_bytes
from lowrank_study.methods import Method
from lowrank_study.methods.layers.linear import adapted_modules, frozen_maps
from lowrank_study.methods.layers.modules import task_of
from lowrank_study.methods.layers.products import uses_c, uses_onednn
from lowrank_study.spec import RunSpec
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.batches import Batch, training_batches
from lowrank_study.training.generation import cache_bytes
from lowrank_study.training.models import model_without_weights
from lowrank_study.training.unpadded import (
    part_tokens,
    unpad,
    unpadded_scores,
    vocabulary_size,
)
from lowrank_study.training.vocabulary import logits_bytes

_log = logging.getLogger(__name__)

_FLOAT = 4
_LIBRARIES = 600_000_000
"""Memory of torch and transformers, for systems that don't report the process's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernels:
    """Memory that the code of products needs, as measured."""

    first_use: int
    """Bytes of libraries that training loads first, of generated code and of its buffers."""
    temporary: dict[str, float]
    """Precision → all activations, as a multiple of those that autograd keeps, counted in fp32."""


_C = _Kernels(first_use=20_000_000, temporary={"fp32": 1.6, "bf16": 1.1})
_TORCH = _Kernels(first_use=70_000_000, temporary={"fp32": 1.5, "bf16": 1.25})
_ONEDNN = _Kernels(first_use=170_000_000, temporary={"fp32": 1.9, "bf16": 1.25})
"""oneDNN keeps buffers for every number of tokens."""
_RESET = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the bytes of free memory; None if the system doesn't report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Free unused memory, and reset the peak if the system can."""
    gc.collect()
    return_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        try:
            _RESET.write_text("5")
        except OSError:  # forbidden in some containers: the peak is then that of the whole process
            return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory since the last reset, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if has_status():
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakPrediction:
    """Predicted memory, in bytes, of a process that trains a pack of similar runs."""

    libraries: int
    """The process before it loads a model."""
    kernels: int
    """What the first training steps load and keep, and the logits of some tokens."""
    loaded: int
    """Frozen weights as they are loaded and checked before training, in fp32."""
    frozen: int
    """Frozen weights in training, once for the pack."""
    trained: int
    """For each run: trained parameters, their gradients and Adam's two moments."""
    checked: int
    """For each run: what the check of the computation keeps of the longest text, in fp32."""
    activations: int
    """For each run: activations of the longest part of any batch, and products' buffers."""
    answered: int
    """Once for the pack: what answering the test prompts needs beside the weights."""

    def peak(self, pack_size: int) -> int:
        """Return the predicted peak for a number of runs."""
        training = self.kernels + self.frozen + pack_size * self.activations
        largest = max(training, self.frozen + self.answered) + pack_size * self.trained
        return self.libraries + max(self.peak_of_check(pack_size), largest)

    def peak_of_check(self, pack_size: int) -> int:
        """Return the peak before training, without the libraries."""
        # The check has two gradients and no moments.
        return self.loaded + pack_size * (self.checked + self.trained - self.trained // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The texts whose lengths decide how much memory a run needs."""

    part: Batch
    """The longest part of a training batch."""
    longest: int
    """Tokens of the longest text."""
    shortest: int


def predict_peak(spec: RunSpec) -> PeakPrediction | None:
    """Predict the peak memory of a process that trains runs like this one.

    `spec` is the run with the largest rank, and `can_unpad` must hold for its model. None, with a
    warning, if a shape depends on values, as in a mixture of experts.
    """
    model, splits = model_without_weights(spec), splits_of(spec)
    answered = _answered(spec, model, splits)
    each = (splits.train, splits.validation, splits.test)
    texts = Texts(
        part=_longest_part(spec, splits.train, part_tokens(model, spec.train.precision)),
        longest=splits.longest,
        shortest=min(int(split.lengths.min()) for split in each),
    )
    try:
        return peak_of(model, spec.method, texts, precision=spec.train.precision, answered=answered)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        name = spec.model.name
        _log.warning("%s: memory can't be predicted, so runs train alone: %s", name, reason)
        return None


def peak_of(
    model: nn.Module, method: Method, texts: Texts, *, precision: str, answered: int = 0
) -> PeakPrediction:
    """Predict the peak memory of training a model, which is on the meta device, on some texts.

    The model runs there, which computes only shapes, and the tensors that autograd keeps are
    counted. Afterwards the model is prepared as by `unpad`.

    Args:
        answered: Bytes that answering test prompts needs beside the weights.

    Raises:
        RuntimeError: A shape depends on values.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = _kept_for_backward(model, texts.part)
    kernels = _kernels(precision)
    return PeakPrediction(
        libraries=_libraries(),
        kernels=kernels.first_use + _logits(model, precision),
        loaded=_frozen(model, rounded=False),
        frozen=_frozen(model, rounded=precision == "bf16" and method.rounds_frozen),
        trained=4 * _FLOAT * trained,
        checked=_checked(model, texts, kept / len(texts.part.ids_T)),
        activations=int(kernels.temporary[precision] * kept),
        answered=answered,
    )


def _logits(model: nn.Module, precision: str) -> int:
    """Return the memory of logits, which a model that scores tokens computes for a few of them."""
    scores_tokens = task_of(model).scores_tokens
    return logits_bytes(vocabulary_size(model), precision) if scores_tokens else 0


def _checked(model: nn.Module, texts: Texts, kept: float) -> int:
    """Return the memory of the larger part of `Pack`'s check.

    The stock model reads the longest text alone, and keeps its logits in four tensors. Then the
    longest text is read beside the shortest one.

    Args:
        kept: Bytes of a token that autograd keeps.
    """
    of_token = _kernels("fp32").temporary["fp32"] * kept
    alone = of_token * texts.longest
    if task_of(model).scores_tokens:
        alone += 4 * _FLOAT * vocabulary_size(model) * texts.longest
    beside = of_token * (texts.longest + texts.shortest) + _logits(model, "fp32")
    return int(max(alone, beside))


def _answered(spec: RunSpec, model: nn.Module, splits: Splits) -> int:
    """Return the memory of keys and values, and of merged weights, while prompts are answered."""
    if not (isinstance(spec.task, Generation) and spec.train.read_test):
        return 0
    merged = sum(_FLOAT * module.weight.numel() for _, module in adapted_modules(model))
    return cache_bytes(spec.task, splits, model.config) + merged * (spec.train.precision == "fp32")


def _kernels(precision: str) -> _Kernels:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if uses_c(dtype):
        return _C
    return _ONEDNN if uses_onednn(dtype) else _TORCH


def _frozen(model: nn.Module, *, rounded: bool) -> int:
    """Return the memory of frozen weights, with maps in bf16 or all in fp32.

    A head that is tied to the words shares their memory until it is rounded.
    """
    weights = [each.get_parameter("weight") for each in frozen_maps(model)] if rounded else []
    maps = {id(weight): weight.numel() for weight in weights}
    others = {
        p.untyped_storage()._cdata: p.numel()
        for p in model.parameters()
        if not p.requires_grad and id(p) not in maps
    }
    return 2 * sum(maps.values()) + _FLOAT * sum(others.values())


@functools.cache
def _libraries() -> int:
    """Return the memory of this process, once: finding unused memory takes a while."""
    gc.collect()
    return_freed_memory()
    return status_bytes("VmRSS") if has_status() else _LIBRARIES


class _FusedAttention(TorchFunctionMode):
    """Use the kernel that keeps no attention weights, as on CPUs and GPUs.

    On the meta device, torch would compute attention step by step and keep every step.
    """

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **named)
        attended, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *args, is_causal=named["is_causal"], scale=named["scale"]
        )
        return attended


def _longest_part(spec: RunSpec, split: Split, tokens: int) -> Batch:
    batches = training_batches(
        split, batch_size=spec.train.batch_size, epochs=spec.train.epochs, seed=spec.data_seed
    )
    parts = (part for batch in batches for part in batch.parts(tokens))
    return max(parts, key=lambda part: len(part.ids_T))


def _kept_for_backward(model: nn.Module, batch: Batch) -> int:
    """Return the bytes of the tensors, without parameters, that autograd keeps for a batch."""
    own = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if id(origin) not in own:
            storage = origin.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # a freed storage's address would be used again
        return tensor

    unpad(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        scores = unpadded_scores(model.train(), batch, torch.device("meta"))
    assert scores.requires_grad
    return sum(kept.values())
