"""Modules of a model: the new head, and the linear maps that a target names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import adapted_modules, is_linear
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
    model: nn.Module,
    base: BaseModel,
    target: Sequence[str],
    *,
    setting: str = "method.target",
    with_embedding: bool = False,
) -> list[str]:
    """Return the paths of the linear maps that a target names.

    Args:
        target: Presets, roles, or ends of module paths (`*` stands for the layer's number).
        with_embedding: Whether the token embedding is valid too.
    """
    heads, embedding = head_names(model), token_embedding(model) if with_embedding else None
    linear = [
        name
        for name, module in model.named_modules()
        if (is_linear(module) and not in_head(name, heads)) or name == embedding
    ]
    chosen: set[str] = set()
    for wanted in target:
        for role in base.target_presets.get(wanted, (wanted,)):
            matched = _matching(linear, base, role)
            if not matched:
                raise _no_target(linear, base, f"{setting}={wanted!r}", role, embedding)
            chosen.update(matched)
    return [name for name in linear if name in chosen]


def token_embedding(model: nn.Module) -> str | None:
    """Return the path of the token embedding; None if no single module looks the tokens up.

    In T5 and BART, encoder and decoder share one table.
    """
    loaded: Any = model
    try:
        table: nn.Module = loaded.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model that reads no tokens
        return None
    names: list[str] = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and module.weight is getattr(table, "weight", None)
    ]
    computes_more = type(table).forward is not nn.Embedding.forward
    if len(names) != 1 or (computes_more and not hasattr(table, "embed_scale")):
        return None
    return names[0]


def adapted_tied(model: nn.Module) -> list[str]:
    """Return which of a token embedding and an output head are adapted, if they were tied."""
    loaded: Any = model
    if not (task_of(model).scores_tokens and loaded.config.get_text_config().tie_word_embeddings):
        return []
    tied = (loaded.get_input_embeddings(), loaded.get_output_embeddings())
    return [name for name, module in adapted_modules(model) if module in tied]


def _matching(linear: Sequence[str], base: BaseModel, role: str) -> list[str]:
    return [name for name in linear if path_matches(name, base.roles.get(role, role))]


def _no_target(
    linear: Sequence[str], base: BaseModel, setting: str, role: str, embedding: str | None
) -> InputError:
    """Return an error with the reason, and the names that are valid for this model."""
    roles = [name for name in base.roles if _matching(linear, base, name)]
    presets = [name for name, of in base.target_presets.items() if set(of) <= set(roles)]
    endings = {
        ".".join("*" if part.isdigit() else part for part in name.split(".")[-2:])
        for name in linear
        if name != embedding
    }
    tables = [] if embedding is None else [embedding.rpartition(".")[2]]
    valid = ", ".join([*presets, *roles, *sorted(endings)[:16], *tables])
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
