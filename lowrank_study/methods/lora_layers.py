"""Low-rank adaptation: a frozen linear map plus a trainable product of two thin matrices.

    y = x Wᵀ + b + scaling · (x Aᵀ) Bᵀ        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at zero, so that training starts at the pretrained model (Hu et al. 2021, section 4.1).

    >>> add_lora(model, {"encoder.layer.0.attention.self.query": lora})
    >>> train(model)
    >>> merge_lora(model)              # W += scaling · B @ A: no cost at inference
    >>> unmerge_lora(model)            # back to W, up to rounding

Letters: O out_features, I in_features, R rank.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lowrank_study.errors import InputError
from lowrank_study.spec import Lora


class LoraLinear(nn.Module):
    """A linear map with a low-rank update beside it.

    Parameters
    ----------
    base
        `nn.Linear`, or GPT-2's `Conv1D`, which stores its weight as (in, out). Its weight is
        frozen; its bias is kept as it is.
    lora
        Rank, scaling, dropout and initialisation.

    Raises
    ------
    InputError
        The rank is above min(in, out), where B @ A would no longer be low-rank.
    """

    def __init__(self, base: nn.Module, lora: Lora, name: str) -> None:
        super().__init__()
        in_features, out_features = linear_shape(base)
        check_rank(lora.rank, base, name)
        self.base = base.requires_grad_(False)
        weight = base.weight
        assert isinstance(weight, Tensor)
        self.A_RI = nn.Parameter(torch.empty(lora.rank, in_features, device=weight.device))
        self.B_OR = nn.Parameter(torch.zeros(out_features, lora.rank, device=weight.device))
        if lora.init == "gaussian":
            nn.init.normal_(self.A_RI, std=1 / lora.rank)
        else:
            nn.init.kaiming_uniform_(self.A_RI, a=math.sqrt(5))
        self.scaling = lora.scaling
        self.dropout = lora.dropout
        self.merged = False

    def forward(self, x_I: Tensor) -> Tensor:
        """Return `base(x) + scaling · (x Aᵀ) Bᵀ`; x is (..., in), the result (..., out)."""
        y_O: Tensor = self.base(x_I)
        if self.merged:
            return y_O
        dropped_I = functional.dropout(x_I, self.dropout, self.training)
        low_R = functional.linear(dropped_I, self.A_RI)
        if low_R.dtype != y_O.dtype or low_R.dtype != self.B_OR.dtype:  # autocast casts B itself
            return y_O + functional.linear(low_R, self.B_OR) * self.scaling
        # One call instead of a product, a scaling and a sum: fewer passes over (..., out).
        summed_O = torch.addmm(
            y_O.flatten(0, -2), low_R.flatten(0, -2), self.B_OR.T, alpha=self.scaling
        )
        return summed_O.view_as(y_O)

    def delta_OI(self) -> Tensor:
        """Return the update `scaling · B @ A`, (out, in), detached."""
        return (self.B_OR.detach() @ self.A_RI.detach()) * self.scaling

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
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        if self.merged:
            raise RuntimeError("the weight is merged: its original is not there to compare with")
        delta = self._as_stored(self.delta_OI()).to(weight.dtype)
        return float((((weight + delta) - delta) - weight).abs().max())

    def _as_stored(self, delta_OI: Tensor) -> Tensor:
        return delta_OI.T if isinstance(self.base, Conv1D) else delta_OI

    def _add_to_weight(self, delta_OI: Tensor) -> None:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        weight += self._as_stored(delta_OI).to(weight.dtype)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map that can be adapted."""
    return isinstance(module, (nn.Linear, Conv1D))


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a linear map."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def check_rank(rank: int, module: nn.Module, name: str) -> None:
    """Refuse a rank above min(in, out) of a linear map, where B @ A would not be low-rank.

    Raises
    ------
    InputError
        Naming the map and the ranks that are valid for it.
    """
    in_features, out_features = linear_shape(module)
    if not 1 <= rank <= min(in_features, out_features):
        raise InputError(
            f"method.rank={rank}: {name} maps {in_features} to {out_features} features, so "
            f"ranks from 1 to {min(in_features, out_features)} are valid"
        )


def add_lora(model: nn.Module, loras: Mapping[str, Lora]) -> None:
    """Freeze the whole model and put a `LoraLinear` in the place of each named linear map.

    Parameters
    ----------
    model
        Changed in place.
    loras
        Module path → its LoRA: ranks may differ from map to map.
    """
    model.requires_grad_(False)
    for name, lora in loras.items():
        parent_name, _, attribute = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, attribute, LoraLinear(getattr(parent, attribute), lora, name))


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Evaluate with merged weights, then put the original tensors back: bit-identical.

    Merging costs one small product a map, and saves two thin ones a batch.
    """
    originals: list[tuple[LoraLinear, Tensor]] = []
    try:
        for _, module in lora_modules(model):
            weight = module.base.weight
            assert isinstance(weight, Tensor)
            if not module.merged:
                originals.append((module, weight.data))
                weight.data = weight.data.clone()
                module.merge()
        yield
    finally:
        for module, original in originals:
            assert isinstance(module.base.weight, Tensor)
            module.base.weight.data = original
            module.merged = False


def lora_modules(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield every adapted map with its path in the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def merge_lora(model: nn.Module) -> None:
    """Merge every adapted map of the model."""
    for _, module in lora_modules(model):
        module.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Unmerge every adapted map of the model."""
    for _, module in lora_modules(model):
        module.unmerge()
