"""Peak memory of runs: measured, and predicted before anything is loaded.

Measured is the GPU's where runs train on one, else the process's. A worker process trains many
runs. Before each, what the last one left is given back to the system and the high-water mark is
set back (Linux), so that a run's number is its own.

    >>> predict_peak(spec, folder, splits).peak(pack_size=4)
    803000000
"""

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_study.data.splits import Split, Splits
from lowrank_study.machine import has_status, status_bytes
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import Batch, training_batches
from lowrank_study.training.models import model_without_weights
from lowrank_study.training.unpadded import part_tokens, unpad, unpadded_scores

_FLOAT = 4
_LIBRARIES = 600_000_000
"""What torch and transformers take where the system doesn't say."""
_FIRST_USE = 110_000_000
"""What training brings in besides tensors: kernels' code and scratch, and freed blocks that the C
library holds back. Between 40 MB after few steps and 190 MB after many was seen."""
_PASSING = 1.25
"""Tensors that come and go, as a multiple of those that are kept for the backward pass."""
_C_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_RESET = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")


def free_memory_bytes(device: torch.device) -> int | None:
    """Return how much memory can still be taken; `None` where the system doesn't say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Free what can be freed, and start measuring anew where the system can."""
    _give_back()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        try:
            _RESET.write_text("5")
        except OSError:  # not permitted in some containers: the mark is then the process's own
            return


def _give_back() -> None:
    """Let the system have what earlier work left behind in this process."""
    gc.collect()
    if _C_LIBRARY is not None and hasattr(_C_LIBRARY, "malloc_trim"):
        _C_LIBRARY.malloc_trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory held since the last reset, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if has_status():
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakPrediction:
    """What a process will hold that trains runs of one kind together, in bytes."""

    shared: int
    """The libraries and the frozen weights."""
    trained: int
    """Of each run: trained parameters, their gradients and Adam's two moments."""
    kept: int
    """Of each run: what autograd keeps of a batch's longest part for the backward pass."""

    def peak(self, pack_size: int) -> int:
        """Return the predicted peak for so many runs."""
        of_a_run = self.trained + int(_PASSING * self.kept)
        return self.shared + _FIRST_USE + pack_size * of_a_run


def predict_peak(spec: RunSpec, folder: Path, splits: Splits) -> PeakPrediction | None:
    """Predict the peak memory of a process that trains runs like this one.

    The model runs on the meta device, which has shapes but no numbers, and what autograd keeps
    of it is counted. `None` where it can't: which experts a token meets, say, depends on numbers.

    Parameters
    ----------
    spec
        One of the runs: the one with the largest rank. Its model must be one that `can_unpad`.
    folder
        Of the pretrained model.
    splits
        The task's texts.
    """
    model = model_without_weights(spec, folder, number_of_labels=len(splits.labels))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    _give_back()
    libraries = status_bytes("VmRSS") if has_status() else _LIBRARIES
    longest = _longest_part(spec, splits.train, part_tokens(model))
    try:
        kept = _kept_for_backward(model, longest)
    except RuntimeError:
        return None
    return PeakPrediction(
        shared=libraries + _FLOAT * frozen, trained=4 * _FLOAT * trained, kept=kept
    )


class _FusedAttention(TorchFunctionMode):
    """Attend by the kernel that keeps no attention weights, as the CPU and GPUs do.

    Left alone, torch computes attention step by step on the meta device, and keeps every step.
    """

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the one function."""
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
    """Count the bytes of distinct tensors, parameters aside, that autograd keeps of a batch."""
    own = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if id(origin) not in own:
            storage = origin.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # or its number would be given to another
        return tensor

    unpad(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        scores = unpadded_scores(model.train(), batch, torch.device("meta"))
    assert scores.requires_grad
    return sum(kept.values())
