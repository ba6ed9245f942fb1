"""Results of the documents' code listings: each step is written again here and tried."""

import copy
import importlib
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_study.claims.measures.architectures import architecture_of
from lowrank_study.claims.measures.outcome import Observed, Outcome, computed, measure


class _Wrapped(nn.Module):
    """An adapter as a listing builds it: it freezes only the map that it wraps."""

    def __init__(self, original: nn.Linear, rank: int) -> None:
        super().__init__()
        self.original = original.requires_grad_(False)
        self.A = nn.Linear(original.in_features, rank, bias=False)
        self.B = nn.Linear(rank, original.out_features, bias=False)


def _wrap(model: nn.Module, names: Sequence[str], rank: int) -> list[str]:
    """Wrap every `nn.Linear` whose path contains one of `names`, in place; return the paths."""
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wrapped = {name: m for name, m in linear.items() if any(part in name for part in names)}
    with torch.device("meta"):
        for name, module in wrapped.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Wrapped(module, rank))
    return list(wrapped)


@measure
def matched_maps(architecture: str, names: Sequence[str]) -> Outcome:
    """Count the `nn.Linear` modules whose path contains one of `names`."""
    wrapped = _wrap(copy.deepcopy(architecture_of(architecture).model), names, rank=1)
    how = f"nn.Linear modules of {architecture} with {' or '.join(names)} in the path"
    return computed(len(wrapped), how)


@measure
def trainable_besides_adapter(architecture: str, names: Sequence[str], rank: int) -> Outcome:
    """Return the share of pretrained parameters that stay trainable if only the wrappers freeze."""
    model = copy.deepcopy(architecture_of(architecture).model)
    pretrained = sum(parameter.numel() for parameter in model.parameters())
    wrapped = _wrap(model, names, rank)
    wrappers = [module for module in model.modules() if isinstance(module, _Wrapped)]
    adapter = sum(module.A.weight.numel() + module.B.weight.numel() for module in wrappers)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) - adapter
    how = (
        f"{trainable:,} other parameters train after wrapping {len(wrapped)} maps of {architecture}"
    )
    return computed(trainable / pretrained, how)


@measure
def wrapped_again(architecture: str, names: Sequence[str], rank: int) -> Outcome:
    """Count the modules that a second call wraps inside the first call's adapters.

    The paths inside a wrapper contain the name of the wrapped map. The count is 0 if ranks can be
    tried in turn.
    """
    model = copy.deepcopy(architecture_of(architecture).model)
    first = _wrap(model, names, rank)
    second = _wrap(model, names, rank)
    inside = [path for path in second if path.rpartition(".")[0] in first]
    how = f"modules wrapped inside {len(first)} adapters of {architecture} by a second call"
    return computed(len(inside), how)


@measure
def replacement_changes_output(seed: int, width: int, batch: int) -> Outcome:
    """Return the relative change of outputs if a new layer with its own base replaces another.

    Such a layer gets only the widths: its frozen map is random without a bias, and its B is zero.
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
    """Tell whether two zipped `named_parameters()` unpack as (name, (before, after)).

    Each zipped item is ((name, before), (name, after)), so the inner pair has a name first.
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
    taken, unknown = ([n for n in names if (n in known) is wanted] for wanted in (True, False))
    rest = ", ".join(unknown) or "none"
    how = f"the installed {function} takes {', '.join(taken)}; unknown: {rest}"
    return Observed(value=not unknown, how=how)
