"""Peak memory of runs: measured during training, and predicted before weights are loaded.

The measured memory is that of the GPU if runs train on one, else that of the process. A worker
process trains many runs. Before each run it frees memory and resets the peak (on Linux), so that
a run's peak is its own.
"""

import ctypes
import functools
import gc
import logging
import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_study.data.splits import Split
from lowrank_study.loaded import splits_of
from lowrank_study.machine import has_status, status_bytes
from lowrank_study.methods.layers.linear import is_linear, linear_shape
from lowrank_study.methods.layers.products import uses_c, uses_onednn
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import Batch, training_batches
from lowrank_study.training.models import model_without_weights
from lowrank_study.training.unpadded import part_tokens, unpad, unpadded_scores

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


_C = _Kernels(first_use=20_000_000, temporary={"fp32": 1.7, "bf16": 1.1})
_TORCH = _Kernels(first_use=170_000_000, temporary={"fp32": 1.25, "bf16": 1.25})
_ONEDNN = _Kernels(first_use=170_000_000, temporary={"fp32": 1.9, "bf16": 1.25})
"""oneDNN keeps buffers for every number of tokens."""
_C_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
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
    _free_unused()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        try:
            _RESET.write_text("5")
        except OSError:  # forbidden in some containers: the peak is then that of the whole process
            return


def _free_unused() -> None:
    """Return memory that earlier runs have freed to the system."""
    gc.collect()
    if _C_LIBRARY is not None and hasattr(_C_LIBRARY, "malloc_trim"):
        _C_LIBRARY.malloc_trim(0)


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
    """What the first training steps load and keep."""
    frozen: int
    """Frozen weights, once for the pack."""
    trained: int
    """For each run: trained parameters, their gradients and Adam's two moments."""
    activations: int
    """For each run: activations of the longest part of any batch, and products' buffers."""

    def peak(self, pack_size: int) -> int:
        """Return the predicted peak for a number of runs."""
        shared = self.libraries + self.kernels + self.frozen
        return shared + pack_size * (self.trained + self.activations)


def predict_peak(spec: RunSpec) -> PeakPrediction | None:
    """Predict the peak memory of a process that trains runs like this one.

    `spec` is the run with the largest rank, and `can_unpad` must hold for its model. The model runs
    on the meta device, which computes only shapes, and the tensors that autograd keeps are counted.
    None, with a warning, if a shape depends on values, as in a mixture of experts.
    """
    model = model_without_weights(spec)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    longest = _longest_part(spec, splits_of(spec).train, part_tokens(model))
    try:
        kept = _kept_for_backward(model, longest)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        name = spec.model.name
        _log.warning("%s: memory can't be predicted, so runs train alone: %s", name, reason)
        return None
    kernels = _kernels(spec.train.precision)
    return PeakPrediction(
        libraries=_libraries(),
        kernels=kernels.first_use,
        frozen=_FLOAT * frozen + _bytes_of_rounded(model, spec),
        trained=4 * _FLOAT * trained,
        activations=int(kernels.temporary[spec.train.precision] * kept),
    )


def _kernels(precision: str) -> _Kernels:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if uses_c(dtype):
        return _C
    return _ONEDNN if uses_onednn(dtype) else _TORCH


def _bytes_of_rounded(model: nn.Module, spec: RunSpec) -> int:
    """Return the bytes of the bf16 copies of frozen maps, made while the originals exist."""
    if spec.train.precision != "bf16" or not spec.method.rounds_frozen:
        return 0
    maps = [module for module in model.modules() if is_linear(module)]
    frozen = [map_ for map_ in maps if not next(map_.parameters()).requires_grad]
    return sum(2 * math.prod(linear_shape(map_)) for map_ in frozen)


@functools.cache
def _libraries() -> int:
    """Return the memory of this process, once: finding unused memory takes a while."""
    _free_unused()
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
