"""Linear maps of a model, and the layers that replace them: an update ΔW beside a frozen weight.

Letters: O out_features, I in_features.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank_study.errors import InputError
from lowrank_study.machine import unload
from lowrank_study.methods.layers.products import linear

_STORED_IN_OUT = (Conv1D, nn.Embedding)
"""Maps that store their weight as (in, out); an embedding maps a vocabulary to features."""


class AdaptedLinear(nn.Module):
    """A frozen linear map with a trainable update; subclasses give `delta_OI` and `forward`.

    Args:
        base: `nn.Linear`, GPT-2's `Conv1D` or `nn.Embedding`. Its weight is frozen; its bias is
            kept as it is.
    """

    packed: ClassVar[type[nn.Module] | None] = None
    """Class that computes the layers of several runs as one (`training/packing.py`), or None."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.merged = False

    @property
    def weight(self) -> Tensor:
        """The frozen weight, as the base stores it."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def weight_OI(self) -> Tensor:
        """The frozen weight as (out, in), detached."""
        return self.as_stored(self.weight.detach())

    @property
    def width(self) -> int:
        """The features that it reads and writes for a token."""
        return sum(linear_shape(self.base))

    def delta_OI(self) -> Tensor:
        """Return the update ΔW, (out, in), detached."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the weight; a second merge changes nothing."""
        if not self.merged:
            self._add_to_weight(self.delta_OI())
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the update again: `(W + delta) - delta`, W up to rounding."""
        if self.merged:
            self._add_to_weight(-self.delta_OI())
            self.merged = False

    @torch.no_grad()
    def round_trip_error(self) -> float:
        """Return max |((W + delta) - delta) - W|, what merging and unmerging would leave behind."""
        if self.merged:
            raise RuntimeError("the weight is merged: call unmerge() first")
        weight = self.weight
        delta = self.as_stored(self.delta_OI()).to(weight.dtype)
        return float((((weight + delta) - delta) - weight).abs().max())

    def as_stored(self, delta_OI: Tensor) -> Tensor:
        """Return a matrix (out, in) as the base stores its weight, or the reverse."""
        return delta_OI.T if isinstance(self.base, _STORED_IN_OUT) else delta_OI

    def _add_to_weight(self, delta_OI: Tensor) -> None:
        """Replace the weight by a sum; changed in place, it would change a tied weight too."""
        weight = self.weight
        weight.data = weight + self.as_stored(delta_OI).to(weight.dtype)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear map that can be adapted."""
    return isinstance(module, (nn.Linear, Conv1D))


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a linear map."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, _STORED_IN_OUT) else (columns, rows)


def check_rank(rank: int, module: nn.Module, name: str) -> None:
    """Refuse a rank above min(in, out) of a linear map, where B @ A would not be low-rank."""
    in_features, out_features = linear_shape(module)
    if not 1 <= rank <= min(in_features, out_features):
        raise InputError(
            f"method.rank={rank}: {name} maps {in_features} to {out_features} features, so "
            f"ranks from 1 to {min(in_features, out_features)} are valid"
        )


def replace_maps(model: nn.Module, layers: Mapping[str, Callable[[nn.Module], nn.Module]]) -> None:
    """Freeze the whole model, and put a new layer in the place of each named linear map."""
    model.requires_grad_(False)
    _separate_tied(model)
    for name, make in layers.items():
        parent_name, _, attribute = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, attribute, make(getattr(parent, attribute)))


def _separate_tied(model: nn.Module) -> None:
    """Give a frozen map that shares an embedding's weight a parameter of its own.

    The two still share memory, but merging an update into the map, or rounding its weight, must not
    change the embedding.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if is_linear(module) and id(weight) in tables and isinstance(weight, Tensor):
            module.weight = nn.Parameter(weight.data, requires_grad=False)


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield every adapted map with its path in the model."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Evaluate with merged weights, then put the original tensors back: bit-identical."""
    originals: list[tuple[AdaptedLinear, Tensor]] = []
    try:
        for _, module in adapted_modules(model):
            if not module.merged:
                originals.append((module, module.weight.data))
                module.merge()
        yield
    finally:
        for module, original in originals:
            module.weight.data = original
            module.merged = False


def cast_once(x: Tensor) -> Tensor:
    """Return an fp32 activation in autocast's type; the maps that read it share the result.

    Autocast alone casts an activation again for each map that reads it: query, key and value.
    """
    if x.is_meta or x.dtype != torch.float32 or not torch.is_autocast_enabled(x.device.type):
        return x
    version = None if x.is_inference() else x._version
    known, cast = getattr(x, "cast_at", (-1, x))
    if known != version:
        cast = x.to(torch.get_autocast_dtype(x.device.type))
        x.cast_at = version, cast  # type: ignore[attr-defined]
    return cast


def share_casts(model: nn.Module) -> None:
    """Let all linear maps of a model cast their inputs by `cast_once`."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = types.MethodType(_cast_and_multiply, module)  # type: ignore[method-assign]


def _cast_and_multiply(self: Any, x: Tensor) -> Tensor:
    return linear(cast_once(x), self.weight, self.bias)


def round_frozen(model: nn.Module) -> None:
    """Keep the frozen maps' weights in bf16, so that autocast need not cast them every step.

    The loaded fp32 weights are parts of one mapped file, which other weights keep open.
    """
    for module in frozen_maps(model):
        loaded = module.weight.data
        assert isinstance(loaded, Tensor)
        module.weight.data = loaded.bfloat16()
        if loaded.is_cpu:
            unload(loaded.data_ptr(), loaded.nbytes)


def frozen_maps(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every linear map whose weight is frozen."""
    for module in model.modules():
        if is_linear(module) and not module.weight.requires_grad:
            yield module
