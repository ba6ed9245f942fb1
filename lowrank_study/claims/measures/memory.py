"""Sums of memory and compute, with their accounting stated: what is kept per parameter.

Training keeps weights, gradients and the optimizer's state. Activations and temporary buffers
are left out, as the documents leave them out; they are on top. GB are 1e9 bytes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_study.claims.measures.architectures import (
    adapter_of,
    adapter_parameters,
    architecture_of,
)
from lowrank_study.claims.measures.outcome import Outcome, computed, measure, ranging


def _parameters(size: Mapping[str, Any]) -> tuple[float, str]:
    """Give a model's parameters: counted of an architecture, or as a document rounds them."""
    if "architecture" in size:
        name = str(size["architecture"])
        return float(architecture_of(name).parameters()), name
    return float(size["parameters"]), f"{float(size['parameters']):.3g} parameters"


def _adapter(adapter: Mapping[str, Any]) -> tuple[float, str]:
    name, target, rank = str(adapter["architecture"]), str(adapter["target"]), int(adapter["rank"])
    return float(adapter_of(name, target, rank)), f"r = {rank} on {target} of {name}"


def full_bytes(size: Mapping[str, Any], weights: float, gradients: float, state: float) -> float:
    """Give the bytes that full fine-tuning keeps, without activations."""
    return _parameters(size)[0] * (weights + gradients + state)


def lora_bytes(
    size: Mapping[str, Any],
    base_weights: float,
    adapter: Mapping[str, Any],
    weights: float,
    gradients: float,
    state: float,
) -> float:
    """Give the bytes that LoRA keeps: a frozen base, and an adapter that is trained."""
    trained = _adapter(adapter)[0] * (weights + gradients + state)
    return _parameters(size)[0] * base_weights + trained


@measure
def full_memory(size: Mapping[str, Any], weights: float, gradients: float, state: float) -> Outcome:
    """Give the bytes of full fine-tuning; `weights`, `gradients`, `state` are per parameter."""
    how = f"{_parameters(size)[1]} at {weights:g} + {gradients:g} + {state:g} bytes"
    return computed(full_bytes(size, weights, gradients, state), f"{how}, without activations")


@measure
def lora_memory(
    size: Mapping[str, Any],
    base_weights: float,
    adapter: Mapping[str, Any],
    weights: float,
    gradients: float,
    state: float,
) -> Outcome:
    """Give the bytes of LoRA: the frozen base at `base_weights` a parameter, and the adapter."""
    how = (
        f"{_parameters(size)[1]} at {base_weights:g} bytes, {_adapter(adapter)[1]} at "
        f"{weights:g} + {gradients:g} + {state:g}, without activations"
    )
    return computed(lora_bytes(size, base_weights, adapter, weights, gradients, state), how)


@measure
def memory_ratio(full: Mapping[str, Any], lora: Mapping[str, Any]) -> Outcome:
    """Give full fine-tuning's bytes over LoRA's."""
    ratio = full_bytes(**full) / lora_bytes(**lora)
    return computed(ratio, "weights, gradients and optimizer state, without activations")


@measure
def memory_follows_parameters(
    architecture: str, full: Mapping[str, Any], lora: Mapping[str, Any]
) -> Outcome:
    """Give how far memory shrinks as a share of how far trainable parameters do: 1 in proportion.

    (full bytes / LoRA bytes) / (all parameters / trained ones).
    """
    memory = full_bytes(**full) / lora_bytes(**lora)
    trained, named = _adapter(lora["adapter"])
    reduction = architecture_of(architecture).parameters() / trained
    how = f"{named}: memory {memory:.3g}× less, trained parameters {reduction:.4g}× fewer"
    return computed(memory / reduction, how)


@measure
def state_over_weights(
    weights: float, gradients: float, state: float, with_weights: bool
) -> Outcome:
    """Give what training keeps in units of the weights' own size."""
    kept = gradients + state + (weights if with_weights else 0.0)
    how = f"bytes a parameter: weights {weights:g}, gradients {gradients:g}, Adam {state:g}"
    return computed(kept / weights, how)


@measure
def devices_needed(gigabytes: float, device_gigabytes: float) -> Outcome:
    """Count the devices whose memories together hold so much."""
    how = f"{gigabytes:g} GB over {device_gigabytes:g} GB each, rounded up; nothing else on them"
    return computed(math.ceil(gigabytes / device_gigabytes), how)


@measure
def model_bytes(size: Mapping[str, Any], bytes_each: float) -> Outcome:
    """Give a model's size on disk."""
    return computed(
        _parameters(size)[0] * bytes_each, f"{_parameters(size)[1]} at {bytes_each:g} bytes"
    )


@measure
def adapter_bytes(
    architecture: str, targets: Sequence[str], ranks: Sequence[int], bytes_each: Sequence[float]
) -> Outcome:
    """Give an adapter's size on disk: a range over the settings that a claim leaves open."""
    counts = [adapter_of(architecture, target, rank) for target in targets for rank in ranks]
    sizes = [count * each for count in counts for each in bytes_each]
    how = (
        f"r = {', '.join(map(str, ranks))} on {', '.join(targets)} of {architecture} at "
        f"{' or '.join(f'{each:g}' for each in bytes_each)} bytes a parameter"
    )
    return ranging(sizes, how)


@measure
def adapters_against_copies(
    size: Mapping[str, Any], bytes_each: float, adapter: Mapping[str, Any], tasks: int
) -> Outcome:
    """Give the bytes of so many tuned copies over one base with so many adapters."""
    base = _parameters(size)[0] * bytes_each
    each, named = _adapter(adapter)
    how = f"{tasks} copies over one base with {tasks} adapters, {named}, {bytes_each:g} bytes"
    return computed(tasks * base / (base + tasks * each * bytes_each), how)


def nf4_bits(block: int, second_block: int | None) -> float:
    """Give the bits of a weight in NF4 with its share of the constants, one in 32 bits a block.

    4 + 32 / block; with double quantisation 4 + 8 / block + 32 / (block · second_block)
    (Dettmers et al. 2023, section 3).
    """
    constant = 32 / block if second_block is None else 8 / block + 32 / (block * second_block)
    return 4 + constant


@measure
def nf4_bytes(size: Mapping[str, Any], block: int, second_block: int | None) -> Outcome:
    """Give a model's bytes in NF4; all weights are counted, embeddings too."""
    bits = nf4_bits(block, second_block)
    return computed(_parameters(size)[0] * bits / 8, f"{_parameters(size)[1]} at {bits:.3f} bits")


@measure
def qlora_memory(
    size: Mapping[str, Any],
    block: int,
    second_block: int | None,
    adapter: Mapping[str, Any],
    weights: float,
    gradients: float,
    state: float,
) -> Outcome:
    """Give the bytes of an adapter trained on a base in NF4, as `lora_memory`."""
    bits = nf4_bits(block, second_block)
    how = (
        f"{_parameters(size)[1]} at {bits:.3f} bits, {_adapter(adapter)[1]} at "
        f"{weights:g} + {gradients:g} + {state:g} bytes, without activations"
    )
    return computed(lora_bytes(size, bits / 8, adapter, weights, gradients, state), how)


@measure
def step_flops_ratio(architecture: str, target: str, rank: int) -> Outcome:
    """Give the matrix products of a LoRA step over those of a full step.

    Per weight of a linear map a token takes 2 FLOPs forward, 2 for the gradient of its input
    and 2 for that of the weight itself, which a frozen one is spared: (4 N + 6 n) / 6 N.
    """
    weights, step = _lora_step(architecture, target, rank)
    how = f"linear maps of {architecture}, r = {rank} on {target}; attention products left out"
    return computed(step / (6 * weights), how)


@measure
def step_flops_by_rank(architecture: str, target: str, rank: int, over: int) -> Outcome:
    """Give the matrix products of a LoRA step at one rank over those at another."""
    steps = [_lora_step(architecture, target, each)[1] for each in (rank, over)]
    how = f"linear maps of {architecture}, r = {rank} over r = {over} on {target}"
    return computed(steps[0] / steps[1], how)


def _lora_step(architecture: str, target: str, rank: int) -> tuple[int, int]:
    """Give the weights of all linear maps, and a LoRA step's FLOPs a token: 4 N + 6 n."""
    shapes = architecture_of(architecture).shapes("all_linear")
    weights = sum(width_in * width_out for width_in, width_out in shapes)
    factors = adapter_parameters(architecture_of(architecture).shapes(target), rank)
    return weights, 4 * weights + 6 * factors
