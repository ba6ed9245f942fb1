"""Compute the dense update of LoHa, LoKr and VeRA with PEFT itself, one layer at a time.

PEFT's `get_delta_weight` computes the update from the adapter's tensors in a temporary linear
layer of the base's shape, so the formula is PEFT's own.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats import Array, shown
from lowrank_study.errors import InputError

_KEYS = (
    "r", "alpha", "use_effective_conv2d", "decompose_both", "decompose_factor",
    "projection_prng_key", "save_projection",
)  # fmt: skip


def peft_delta(
    config: Mapping[str, Any], parts: Mapping[str, Array], shape: tuple[int, ...], where: str
) -> Array:
    """Return delta_OI of one linear module in float64.

    Only numbers are taken from the config. `parts` are the values by PEFT's parameter names, and
    `shape` is that of the base weight, (out, in).
    """
    import torch

    numbers = _checked_numbers(config, parts, where)
    layer = _layer_of(config["peft_type"], numbers, shape, where)
    held: dict[str, Any] = {}
    for name in layer.adapter_layer_names + layer.other_param_names:
        table = getattr(layer, name)
        if hasattr(table, "keys") and "default" in table and torch.is_tensor(table["default"]):
            held[name] = table["default"]
    if set(parts) != set(held):
        raise InputError(
            f"{where}: has {', '.join(sorted(parts))}, but PEFT expects {', '.join(sorted(held))} "
            f"for a {list(shape)} weight; give the base it was trained on"
        )
    for name, value in parts.items():
        if not _fits(name, value.shape, tuple(held[name].shape)):
            raise InputError(
                f"{where}: {name} is {list(value.shape)}, but a {list(shape)} weight needs "
                f"{list(held[name].shape)}; give the base it was trained on"
            )
    with torch.no_grad():
        for name, value in parts.items():
            held[name].data = torch.from_numpy(value.astype(np.float64))
        delta = layer.get_delta_weight("default")
    return np.asarray(delta.numpy(), np.float64)


def _fits(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a part has the layer's shape; VeRA's shared projections may be larger."""
    if name in ("vera_A", "vera_B") and len(shape) == 2:
        return all(a >= b for a, b in zip(shape, expected, strict=True))
    return shape == expected


def _checked_numbers(
    config: Mapping[str, Any], parts: Mapping[str, Array], where: str
) -> dict[str, int | float | bool]:
    """Return the settings that the formula uses."""
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise InputError(
            f"{where}: rank_pattern or alpha_pattern of {config['peft_type']} can't be read "
            "exactly; merge it into the base with PEFT and compare checkpoints"
        )
    numbers = {key: config[key] for key in _KEYS if config.get(key) is not None}
    if not all(type(value) in (int, float, bool) for value in numbers.values()):
        raise InputError(f"{where}: settings {shown(numbers)} are not all numbers; save it again")
    rank = {"LOHA": "hada_w1_a", "VERA": "vera_lambda_d"}.get(config["peft_type"])
    if rank is not None and parts[rank].shape[-1:] != (config["r"],):
        raise InputError(
            f"{where}: {rank} has shape {list(parts[rank].shape)}, but its config says rank "
            f"{shown(config['r'])}; config and weights are from different runs: save it again"
        )
    return numbers


def _layer_of(
    peft_type: str, numbers: Mapping[str, Any], shape: tuple[int, ...], where: str
) -> Any:
    """Build PEFT's adapted linear layer of a shape, with random parts, in float64."""
    import torch
    from peft import LoHaConfig, LoKrConfig, VeraConfig, get_peft_model
    from torch import nn

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(shape[1], shape[0], bias=False)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x)

    classes = {"LOHA": LoHaConfig, "LOKR": LoKrConfig, "VERA": VeraConfig}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            model = get_peft_model(
                Holder(), classes[peft_type](target_modules=["layer"], **numbers)
            ).double()
    except (ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"{where}: PEFT can't build it ({shown(error, 100)})") from None
    return model.base_model.model.layer
