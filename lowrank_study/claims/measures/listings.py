"""What the documents' listings do when they run: each step of theirs made anew and tried."""

import copy
import importlib
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_study.claims.measures.architectures import architecture_of
from lowrank_study.claims.measures.outcome import Observed, Outcome, computed, measure


class _Wrapped(nn.Module):
    """An adapter as a listing under test makes it: it freezes the map that it wraps, only."""

    def __init__(self, original: nn.Linear, rank: int) -> None:
        super().__init__()
        self.original = original.requires_grad_(False)
        self.A = nn.Linear(original.in_features, rank, bias=False)
        self.B = nn.Linear(rank, original.out_features, bias=False)


def _wrap(model: nn.Module, names: Sequence[str], rank: int) -> list[str]:
    """Wrap every `nn.Linear` whose path holds one of `names`, in place; return their paths."""
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wrapped = {name: m for name, m in linear.items() if any(part in name for part in names)}
    with torch.device("meta"):
        for name, module in wrapped.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Wrapped(module, rank))
    return list(wrapped)


@measure
def trainable_besides_adapter(architecture: str, names: Sequence[str], rank: int) -> Outcome:
    """Give the share of the pretrained parameters that stay trainable if only wrappers freeze.

    The model's maps whose path holds one of `names` are wrapped in place, nothing else is done.
    """
    model = copy.deepcopy(architecture_of(architecture).model)
    pretrained = sum(parameter.numel() for parameter in model.parameters())
    wrapped = _wrap(model, names, rank)
    adapter = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, _Wrapped)
        for parameter in (module.A.weight, module.B.weight)
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) - adapter
    how = f"{len(wrapped)} maps of {architecture} wrapped; {trainable:,} other parameters train"
    return computed(trainable / pretrained, how)


@measure
def wrapped_again(architecture: str, names: Sequence[str], rank: int) -> Outcome:
    """Count what a second call wraps of the first one's adapters: 0 if ranks can be tried in turn.

    Paths inside a wrapper hold the name of the map that it took the place of.
    """
    model = copy.deepcopy(architecture_of(architecture).model)
    first = _wrap(model, names, rank)
    second = _wrap(model, names, rank)
    inside = [path for path in second if path.rpartition(".")[0] in first]
    how = f"{len(first)} maps of {architecture} wrapped, then again: what is wrapped inside them"
    return computed(len(inside), how)


@measure
def replacement_changes_output(seed: int, width: int, batch: int) -> Outcome:
    """Give the relative change of the outputs if a layer with its own base takes another's place.

    Such a layer is made of the widths alone: its frozen map is drawn anew and has no bias, and its
    B is zero.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        original, base = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        x = torch.randn(batch, width)
        wanted, found = original(x), base(x)
    how = f"‖change‖ over ‖output‖ of a {width} × {width} map, before any training"
    return computed(float((found - wanted).norm() / wanted.norm()), how)


@measure
def paired_listing_unpacks() -> Outcome:
    """Tell whether unpacking two zipped `named_parameters()` as (name, (before, after)) works.

    Each zipped item is ((name, before), (name, after)), so that the inner pair is a name and
    a tensor.
    """
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    pairs = zip(before.named_parameters(), after.named_parameters(), strict=True)
    _, (first, second) = next(pairs)
    works = isinstance(first, Tensor) and isinstance(second, Tensor)
    return Observed(value=works, how=f"the inner pair is a {type(first).__name__} and a tensor")


@measure
def batched_listing_computes(batch: int, sequence: int, width: int) -> Outcome:
    """Tell whether `W @ x`, W (width, width), maps a batch of shape (batch, sequence, width)."""
    try:
        torch.zeros(width, width) @ torch.zeros(batch, sequence, width)
    except RuntimeError as error:
        return Observed(value=False, how=str(error).partition("\n")[0].rstrip("."))
    return Observed(value=True, how="the product has a shape")


@measure
def takes_names(function: str, names: Sequence[str]) -> Outcome:
    """Tell whether a function or class of an installed library takes some names by keyword."""
    module, _, name = function.rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    missing = [each for each in names if each not in known]
    how = f"{function} as installed: {', '.join(missing) or 'none'} unknown of {', '.join(names)}"
    return Observed(value=not missing, how=how)
