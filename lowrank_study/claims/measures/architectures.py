"""Parameter counts and map shapes of published architectures, without their weights.

Transformers builds a model of the published sizes on torch's meta device.
"""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from lowrank_study.claims.measures.outcome import Observed, Outcome, computed, measure
from lowrank_study.config.architectures import published
from lowrank_study.methods.layers.linear import linear_shape
from lowrank_study.methods.layers.modules import target_modules
from lowrank_study.spec import BaseModel
from lowrank_study.tasks import task_named


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A published model on the meta device, with the roles of its linear maps."""

    model: nn.Module
    base: BaseModel
    layers: int

    def parameters(self) -> int:
        """Count all parameters, tied parameters once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def shapes(self, *target: str) -> list[tuple[int, int]]:
        """Return (in, out) of every linear map of a target."""
        names = target_modules(self.model, self.base, target)
        return [linear_shape(self.model.get_submodule(name)) for name in names]


@functools.cache
def architecture_of(name: str) -> Architecture:
    """Build an architecture from its file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes, base = published(name)
    config = AutoConfig.for_model(**sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.task = task_named("classification")  # its head is all but the backbone
    return Architecture(model=model, base=base, layers=config.num_hidden_layers)


@measure
def map_shape(architecture: str, role: str, stored: bool, fused: int) -> Outcome:
    """Return the shape of a role's map: (out / fused, in), or as its weight is stored.

    `fused` is the number of maps that the module holds side by side.
    """
    found = architecture_of(architecture)
    name = target_modules(found.model, found.base, (role,))[0]
    module = found.model.get_submodule(name)
    width_in, width_out = linear_shape(module)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    shape = list(weight.shape) if stored else [width_out // fused, width_in]
    layout = "as stored" if stored else "(out, in)"
    how = f"{name} of {architecture}, a {type(module).__name__}, {layout}"
    return computed([float(n) for n in shape], how)


@measure
def input_axis(out_features: int, in_features: int, rank: int) -> Outcome:
    """Tell which width A's columns have in y = (W + BA) x."""
    A_RI, B_OR = torch.zeros(rank, in_features), torch.zeros(out_features, rank)
    product = B_OR @ A_RI @ torch.zeros(in_features)
    assert product.shape == (out_features,)
    how = f"BA x has a shape if x has {A_RI.shape[1]} entries, as many as A has columns"
    return Observed(value="input", how=how)
