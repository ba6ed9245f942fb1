"""Modules of a model: the new head, and the linear maps that a target names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import is_linear
from lowrank_study.spec import BaseModel, path_matches

if TYPE_CHECKING:
    from lowrank_study.tasks import Task


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the modules of the new head, according to the model's task.

    Every weight that a checkpoint lacks is in one of them, since `load_model` refuses any other
    gap. A method that trains and saves these modules leaves no random weight.
    """
    return task_of(model).head_names(model)


def task_of(model: nn.Module) -> "type[Task]":
    """Return the kind of task that a model was loaded for."""
    loaded: Any = model
    task: type[Task] = loaded.task
    return task


def in_head(name: str, heads: Sequence[str]) -> bool:
    """Return whether a module or weight, given by its path in the model, is part of a head."""
    return name.partition(".")[0] in heads


def head_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the trained parameters of the new head, also for a model adapted by PEFT."""
    within_peft = getattr(model, "get_base_model", None)
    classifier: nn.Module = within_peft() if within_peft else model
    heads = [classifier.get_submodule(name) for name in head_names(classifier)]
    return {p for head in heads for p in head.parameters() if p.requires_grad}


def train_head(model: nn.Module) -> None:
    """Make the new head trainable."""
    for name in head_names(model):
        model.get_submodule(name).requires_grad_(True)


def target_modules(
    model: nn.Module, base: BaseModel, target: Sequence[str], *, setting: str = "method.target"
) -> list[str]:
    """Return the paths of the linear maps that a target names.

    Args:
        target: Presets, roles, or ends of module paths (`*` stands for the layer's number).
    """
    heads = head_names(model)
    linear = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and not in_head(name, heads)
    ]
    chosen: set[str] = set()
    for wanted in target:
        for role in base.target_presets.get(wanted, (wanted,)):
            matched = _matching(linear, base, role)
            if not matched:
                raise _no_target(linear, base, f"{setting}={wanted!r}", role)
            chosen.update(matched)
    return [name for name in linear if name in chosen]


def _matching(linear: Sequence[str], base: BaseModel, role: str) -> list[str]:
    return [name for name in linear if path_matches(name, base.roles.get(role, role))]


def _no_target(linear: Sequence[str], base: BaseModel, setting: str, role: str) -> InputError:
    """Return an error with the reason, and the names that are valid for this model."""
    roles = [name for name in base.roles if _matching(linear, base, name)]
    presets = [name for name, of in base.target_presets.items() if set(of) <= set(roles)]
    endings = {
        ".".join("*" if part.isdigit() else part for part in name.split(".")[-2:])
        for name in linear
    }
    valid = ", ".join([*presets, *roles, *sorted(endings)[:16]])
    why = (
        f": the model configuration places the role {role} at {base.roles[role]!r}, which fits "
        "another architecture"
        if role in base.roles
        else ""
    )
    return InputError(
        f"{setting} matches no linear map of {base.name}{why}. Valid are {valid}; "
        "give one or a list, as in [a,b]"
    )
