"""Counts of parameters and shapes of maps, from published architectures without their weights.

An architecture is a file of `conf/claim/architecture/`: the published sizes, as transformers'
configuration names them, and the roles of its linear maps. Transformers' own class builds it on
torch's meta device, and the project's own targets choose the maps of an adapter.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowrank_study.claims.measures.outcome import (
    Measured,
    Observed,
    Outcome,
    computed,
    exactly,
    measure,
    ranging,
)
from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.fields import Fields
from lowrank_study.config.run import read_yaml
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import linear_shape
from lowrank_study.methods.layers.modules import target_modules
from lowrank_study.spec import BaseModel, HubRepo

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

    Raises
    ------
    InputError
        No such file, naming those there are.
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
    return Architecture(name=name, model=model, base=base, layers=config.num_hidden_layers)


def adapter_parameters(shapes: Sequence[tuple[int, int]], rank: int) -> int:
    """Count the entries of A (rank, in) and B (out, rank): rank · (in + out) a map."""
    return sum(rank * (width_in + width_out) for width_in, width_out in shapes)


def adapter_of(architecture: str, target: str, rank: int) -> int:
    """Count the parameters of an adapter on an architecture."""
    return adapter_parameters(architecture_of(architecture).shapes(target), rank)


def _settings(architecture: str, target: str, rank: int, maps: int) -> str:
    return f"r = {rank} on {target} of {architecture}, {maps} maps"


@measure
def trainable_parameters(architecture: str, target: str, rank: int) -> Outcome:
    """Count an adapter's parameters."""
    shapes = architecture_of(architecture).shapes(target)
    how = f"counted on the meta device: {_settings(architecture, target, rank, len(shapes))}"
    return computed(adapter_parameters(shapes, rank), how)


@measure
def equal_budgets(architecture: str, settings: Sequence[Sequence[Any]]) -> Outcome:
    """Count the parameters of several adapters, each given as roles and then its rank."""
    counts = []
    for *roles, rank in settings:
        shapes = architecture_of(architecture).shapes(*roles)
        counts.append(adapter_parameters(shapes, rank))
    return computed(counts, f"counted on the meta device of {architecture}, a value a setting")


@measure
def trainable_share(architecture: str, target: str, rank: int) -> Outcome:
    """Give an adapter's parameters as a share of all of the model's."""
    found = architecture_of(architecture)
    shapes = found.shapes(target)
    how = f"{_settings(architecture, target, rank, len(shapes))}; {found.parameters():,} in all"
    return computed(adapter_parameters(shapes, rank) / found.parameters(), how)


@measure
def parameter_reduction(architecture: str, targets: Sequence[str], ranks: Sequence[int]) -> Outcome:
    """Give how many times fewer parameters are trained; a range over settings left open."""
    total = architecture_of(architecture).parameters()
    reductions = [total / adapter_of(architecture, t, rank) for t in targets for rank in ranks]
    named = f"r = {', '.join(map(str, ranks))} on {', '.join(targets)} of {architecture}"
    return ranging(reductions, f"all parameters over the adapter's, {named}")


@measure
def linear_weights(architecture: str, each_layer: bool = False) -> Outcome:
    """Count the weights of all linear maps in the layers or in one, no output embedding."""
    found = architecture_of(architecture)
    shapes = found.shapes("all_linear")
    weights = sum(width_in * width_out for width_in, width_out in shapes)
    of_one = f", over {found.layers} layers" if each_layer else ""
    how = f"{architecture}: {len(shapes)} linear maps in its layers{of_one}"
    return computed(weights / (found.layers if each_layer else 1), how)


@measure
def total_parameters(architecture: str) -> Outcome:
    """Count every parameter of a model."""
    return computed(architecture_of(architecture).parameters(), f"{architecture}, tied ones once")


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
def aspect(architecture: str, roles: Sequence[str]) -> Outcome:
    """Give out / in of the maps of some roles, in the first layer."""
    found = architecture_of(architecture)
    values = []
    for role in roles:
        width_in, width_out = found.shapes(role)[0]
        values.append(exactly(width_out / width_in, role))
    return Measured(values=tuple(values), how=f"out over in of the first layer of {architecture}")


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
def matrix_parameters(out_features: int, in_features: int) -> Outcome:
    """Count the entries of one map."""
    return computed(
        out_features * in_features, f"entries of a {out_features} × {in_features} matrix"
    )


@measure
def factor_parameters(out_features: int, in_features: int, rank: int, maps: int) -> Outcome:
    """Count the entries of the factors of `maps` equal maps."""
    shapes = [(in_features, out_features)] * maps
    return computed(adapter_parameters(shapes, rank), f"r (in + out) with r = {rank}, maps: {maps}")


@measure
def factor_share(
    out_features: int, in_features: int, rank: int, maps: int, of_parameters: float | None
) -> Outcome:
    """Give the factors' entries over a number of parameters; null: over the adapted weights."""
    factors = adapter_parameters([(in_features, out_features)] * maps, rank)
    weights = maps * out_features * in_features if of_parameters is None else of_parameters
    whole = "the weights of the same maps" if of_parameters is None else f"{weights:.3g} parameters"
    return computed(factors / weights, f"{factors:,} over {whole}")


@measure
def factor_reduction(out_features: int, in_features: int, rank: int) -> Outcome:
    """Give how many times fewer entries the factors have than the map."""
    factors = adapter_parameters([(in_features, out_features)], rank)
    return computed(
        out_features * in_features / factors,
        f"{out_features * in_features:,} entries over the factors' {factors:,}",
    )


@measure
def input_axis(out_features: int, in_features: int, rank: int) -> Outcome:
    """Tell which of a map's two widths A's columns have in y = (W + BA) x."""
    A_RI = torch.empty(rank, in_features, device="meta")
    B_OR = torch.empty(out_features, rank, device="meta")
    product = (B_OR @ A_RI) @ torch.empty(in_features, device="meta")
    assert product.shape == (out_features,)
    return Observed(value="input", how=f"BA x with x of {A_RI.shape[1]} entries, A's columns")
