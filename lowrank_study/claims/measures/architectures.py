"""Counts of parameters and shapes of maps, from published architectures without their weights.

An architecture is a file of `conf/claim/architecture/`: the published sizes, as transformers'
configuration names them, and the roles of its linear maps. Transformers' own class builds it on
torch's meta device, and the project's own targets choose the maps of an adapter.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lowrank_study.claims.measures.outcome import (
    Observed,
    Outcome,
    computed,
    measure,
)
from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.fields import Fields
from lowrank_study.config.run import read_yaml
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import linear_shape
from lowrank_study.methods.layers.modules import target_modules
from lowrank_study.spec import BaseModel, HubRepo
from lowrank_study.tasks import task_named

FOLDER = CONF_FOLDER / "claim" / "architecture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A published model on the meta device, and where its linear maps stand."""

    name: str
    model: nn.Module
    base: BaseModel
    layers: int

    def parameters(self) -> int:
        """Count every parameter; tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def shapes(self, *target: str) -> list[tuple[int, int]]:
        """Return (in, out) of every linear map that a target names."""
        names = target_modules(self.model, self.base, target)
        return [linear_shape(self.model.get_submodule(name)) for name in names]


@functools.cache
def architecture_of(name: str) -> Architecture:
    """Build an architecture from its file.

    Raises:
        InputError: There is no such file; the message lists the valid ones.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    if name not in known:
        raise InputError(f"architecture {name!r}: valid are {', '.join(known)}")
    fields = Fields(f"{name}: ", read_yaml(FOLDER / f"{name}.yaml"))
    if "like" in fields.settings:  # the roles of a model of the suite
        roles = Fields(
            f"{name}: ", read_yaml(CONF_FOLDER / "model" / f"{fields.text('like')}.yaml")
        )
    else:
        roles = fields
    base = BaseModel(
        name=name,
        source=HubRepo(repo_id=name, subset=None, revision=None),
        roles=roles.part("roles").texts(),
        target_presets={
            preset: roles.part("targets").names(preset) for preset in roles.part("targets").settings
        },
        dropout=None,
    )
    config = AutoConfig.for_model(**fields.part("config").mapping())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.task = task_named("classification")  # its head is all but the backbone
    return Architecture(name=name, model=model, base=base, layers=config.num_hidden_layers)


@measure
def map_shape(architecture: str, role: str, stored: bool, fused: int) -> Outcome:
    """Give the shape of a role's map: (out, in), or as its weight is stored.

    `fused` is how many maps are kept side by side in one, so that each has out / fused rows.
    """
    found = architecture_of(architecture)
    name = target_modules(found.model, found.base, (role,))[0]
    module = found.model.get_submodule(name)
    width_in, width_out = linear_shape(module)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    shape = list(weight.shape) if stored else [width_out // fused, width_in]
    how = f"{name} of {architecture}, a {type(module).__name__}, "
    return computed([float(n) for n in shape], how + ("as stored" if stored else "(out, in)"))


@measure
def matched_maps(architecture: str, names: Sequence[str]) -> Outcome:
    """Count the `nn.Linear` modules whose path holds one of some names."""
    model = architecture_of(architecture).model
    matched = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(wanted in name for wanted in names)
    ]
    return computed(
        len(matched), f"nn.Linear with {' or '.join(names)} in its path, {architecture}"
    )


@measure
def input_axis(out_features: int, in_features: int, rank: int) -> Outcome:
    """Tell which of a map's two widths A's columns have in y = (W + BA) x."""
    A_RI = torch.empty(rank, in_features, device="meta")
    B_OR = torch.empty(out_features, rank, device="meta")
    product = (B_OR @ A_RI) @ torch.empty(in_features, device="meta")
    assert product.shape == (out_features,)
    return Observed(value="input", how=f"BA x with x of {A_RI.shape[1]} entries, A's columns")
