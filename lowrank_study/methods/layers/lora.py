"""LoRA's layer: a frozen linear map plus a trainable product of two thin matrices.

    y = x Wᵀ + b + scaling · (x Aᵀ) Bᵀ        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at zero, so that training starts at the pretrained model (Hu et al. 2021, section 4.1).
Where the factors start at another product, it is subtracted: `LoraLinear.factors`.

Letters: O out_features, I in_features, R rank, K columns of a product, T tokens of a run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lowrank_study.checkpoints import save_adapter
from lowrank_study.hashing import sha256_of_file
from lowrank_study.methods.layers.linear import (
    AdaptedLinear,
    cast_once,
    check_rank,
    linear_shape,
    replace_maps,
)
from lowrank_study.methods.layers.modules import head_names, in_head, task_of
from lowrank_study.methods.layers.products import multiply
from lowrank_study.methods.layers.starts import WEIGHT_STARTS, check_start
from lowrank_study.methods.lora import Lora


class PackedLora(nn.Module):
    """The adapted map of several runs: y = x Wᵀ + b + scaling_r · (x A_rᵀ) B_rᵀ for run r."""

    def __init__(self, loras: Sequence[nn.Module], active: list[int]) -> None:
        super().__init__()
        self.loras = nn.ModuleList(loras)
        self._active = active

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, ..., in) to (R, ..., out), or (R N, ..., in) to (R N, ..., out)."""
        return _mapped([self.loras[number] for number in self._active], x)  # type: ignore[misc]


def _mapped(loras: Sequence["LoraLinear"], x: Tensor) -> Tensor:
    """Return the outputs of some runs that share the base; see `PackedLora`."""
    first = loras[0]
    x = cast_once(x)
    y: Tensor = first.base(x.flatten(0, -2))
    dropped = functional.dropout(x, first.dropout, first.training)
    of_runs = dropped.reshape(len(loras), -1, x.shape[-1])
    groups = [list(group) for _, group in groupby(loras, lambda lora: lora.width_of_product)]
    if x.is_cuda:  # it would wait for the launches of each group
        groups = [list(loras)]
    factors = [factor for group in groups for factor in _stacked(group)]
    y = _AddLowRank.apply(y, of_runs, *factors)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


def _stacked(loras: Sequence["LoraLinear"]) -> tuple[Tensor, Tensor]:
    """Return the factors of some runs, (R, K, in) and scaled (R, K, out).

    Smaller ranks are filled up with zeros, whose gradients are zero.
    """
    factors = [lora.factors() for lora in loras]
    rank = max(A_RI.shape[0] for A_RI, _ in factors)
    rank += rank % 2  # for native code
    A_RKI = torch.stack([_filled(A_RI, rank) for A_RI, _ in factors])
    scaled = [B_OR.T * lora.scaling for lora, (_, B_OR) in zip(loras, factors, strict=True)]
    B_RKO = torch.stack([_filled(B_RO, rank) for B_RO in scaled])
    return A_RKI, B_RKO


class _AddLowRank(torch.autograd.Function):
    """y_r ← y_r + (x_r A_rᵀ) B_r for each run r, in place: one pass over y.

    y is (R T, out) and x (R, T, in). For each group of runs of one rank follow its factors, A
    (R, K, in) and B (R, K, out). They may be fp32 if y is bf16: they are rounded, and their
    gradients are fp32.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, *factors: Tensor) -> Tensor:
        """Return y, changed in place."""
        lows = []
        of_groups = _of_groups(factors, x, y.view(*x.shape[:2], -1))
        for A_RKI, B_RKO, x_RTI, y_RTO in of_groups:
            lows.append(multiply(x_RTI, A_RKI.mT))
            multiply(lows[-1], B_RKO, onto=y_RTO)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, *lows, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x and all factors."""
        x, *saved = ctx.saved_tensors
        lows, factors = saved[: len(saved) // 3], saved[len(saved) // 3 :]
        of_runs = grad_y.contiguous().view(*x.shape[:2], -1)
        grads_x, grads = [], []
        of_groups = _of_groups(factors, x, of_runs)
        for low_RTK, (A_RKI, B_RKO, x_RTI, grad_RTO) in zip(lows, of_groups, strict=True):
            grad_low = multiply(grad_RTO, B_RKO.mT)
            if ctx.needs_input_grad[1]:
                grads_x.append(multiply(grad_low, A_RKI))
            grads.append(multiply(grad_low.mT, x_RTI, dtype=A_RKI.dtype))
            grads.append(multiply(low_RTK.mT, grad_RTO, dtype=B_RKO.dtype))
        return grad_y, torch.cat(grads_x) if grads_x else None, *grads


def _of_groups(
    factors: Sequence[Tensor], x_RTI: Tensor, y_RTO: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the factors A and B of each group of runs, and its parts of x and y."""
    start = 0
    for A_RKI, B_RKO in zip(factors[::2], factors[1::2], strict=True):
        runs = slice(start, start + len(A_RKI))
        yield A_RKI, B_RKO, x_RTI[runs], y_RTO[runs]
        start = runs.stop


def _filled(factor: Tensor, rank: int) -> Tensor:
    missing = rank - factor.shape[0]
    return functional.pad(factor, (0, 0, 0, missing)) if missing else factor


class LoraLinear(AdaptedLinear):
    """A linear map with a low-rank update beside it."""

    packed: ClassVar[type[nn.Module] | None] = PackedLora

    def __init__(self, base: nn.Module, lora: Lora, name: str) -> None:
        super().__init__(base)
        in_features, out_features = linear_shape(base)
        check_rank(lora.rank, base, name)
        check_start(lora, base, name)
        device = self.weight.device
        self.A_RI = nn.Parameter(torch.zeros(lora.rank, in_features, device=device))
        self.B_OR = nn.Parameter(torch.zeros(out_features, lora.rank, device=device))
        self.A0_RI: Tensor | None
        self.B0_OR: Tensor | None
        self.register_buffer("A0_RI", None, persistent=False)
        self.register_buffer("B0_OR", None, persistent=False)
        self.lora = lora
        self.scaling = lora.scaling
        self.dropout = lora.dropout
        self.start(lora)

    def start(self, lora: Lora) -> None:
        """Set the initial values of the factors that don't depend on data."""
        if lora.init == "gaussian":
            nn.init.normal_(self.A_RI, std=1 / lora.rank)
        else:
            nn.init.kaiming_uniform_(self.A_RI, a=math.sqrt(5))
        if lora.moves_start:
            of_weight = WEIGHT_STARTS.get(lora.init)
            if of_weight is not None and not self.weight.is_meta:
                self.start_at(*of_weight(self.weight_OI.float(), lora))
            else:
                self.start_at(self.A_RI, self.B_OR)

    @torch.no_grad()
    def start_at(self, A_RI: Tensor, B_OR: Tensor) -> None:
        """Start at these factors, whose product is subtracted: the model doesn't change."""
        self.A_RI.copy_(A_RI)
        self.B_OR.copy_(B_OR)
        self.A0_RI, self.B0_OR = self.A_RI.detach().clone(), self.B_OR.detach().clone()

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (K, in) and B (out, K) of the update ΔW = scaling · B @ A.

        From a start that isn't zero, the update is `B A - B0 A0 = (B - B0) A + B0 (A - A0)`, which
        has twice the rank. In this form it is exactly zero at the start, and keeps its relative
        accuracy when it is rounded.
        """
        if self.A0_RI is None or self.B0_OR is None:
            return self.A_RI, self.B_OR
        A_KI = torch.cat([self.A_RI, self.A_RI - self.A0_RI])
        return A_KI, torch.cat([self.B_OR - self.B0_OR, self.B0_OR], dim=1)

    @property
    def width_of_product(self) -> int:
        """The rank of the product in `factors`."""
        return self.A_RI.shape[0] * (1 if self.A0_RI is None else 2)

    def forward(self, x_I: Tensor) -> Tensor:
        """Return `base(x) + scaling · (x Aᵀ) Bᵀ`; x is (..., in), the result (..., out)."""
        evaluates = not (self.merged or torch.is_grad_enabled() or x_I.is_meta)
        if evaluates and torch.is_autocast_enabled(x_I.device.type):
            return _mapped([self], x_I)  # as a pack does, with fewer passes over (..., out)
        y_O: Tensor = self.base(x_I)
        if self.merged:
            return y_O
        dropped_I = functional.dropout(x_I, self.dropout, self.training)
        A_KI, B_OK = self.factors()
        low_K = functional.linear(dropped_I, A_KI)
        if low_K.dtype != y_O.dtype or low_K.dtype != B_OK.dtype:  # autocast casts B itself
            return y_O + functional.linear(low_K, B_OK) * self.scaling
        # One call instead of a product, a scaling and a sum: fewer passes over (..., out).
        summed_O = torch.addmm(y_O.flatten(0, -2), low_K.flatten(0, -2), B_OK.T, alpha=self.scaling)
        return summed_O.view_as(y_O)

    def delta_OI(self) -> Tensor:
        """Return the update `scaling · B @ A`, (out, in), detached."""
        A_KI, B_OK = self.factors()
        return (B_OK.detach() @ A_KI.detach()) * self.scaling

    def further_tensors(self) -> dict[str, Tensor]:
        """Return what a variant of LoRA trains besides A and B, by PEFT's names."""
        return {}


class PackedLoraEmbedding(PackedLora):
    """The adapted token embedding of several runs."""

    def forward(self, ids_RT: Tensor) -> Tensor:
        """Look up the token ids of each run, (R, T) → (R, T, out)."""
        runs = [self.loras[number] for number in self._active]
        return torch.stack([lora(ids_T) for lora, ids_T in zip(runs, ids_RT, strict=True)])


class LoraEmbedding(LoraLinear):
    """A token embedding with a low-rank update beside it, as in PEFT.

    A (rank, vocabulary) starts at zero and B (out, rank) at random. Dropout has no input here.
    """

    packed: ClassVar[type[nn.Module] | None] = PackedLoraEmbedding

    @property
    def width(self) -> int:
        """The features that it writes: a token reads one column of A."""
        return self.B_OR.shape[0]

    def start(self, lora: Lora) -> None:
        """Draw B from the standard normal distribution."""
        nn.init.normal_(self.B_OR)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of the table plus those of its update; ids (...) → (..., out)."""
        base: Any = self.base
        y_O: Tensor = base(ids)
        if self.merged:
            return y_O
        low_R = functional.embedding(ids, self.A_RI.T, padding_idx=base.padding_idx)
        # Gemma and BART scale what they look up.
        scaling = self.scaling * getattr(base, "embed_scale", 1.0)
        return y_O + functional.linear(low_R, self.B_OR) * scaling


def add_lora(
    model: nn.Module, loras: Mapping[str, Lora], *, layer: type[LoraLinear] = LoraLinear
) -> None:
    """Freeze the whole model, and put a LoRA layer in the place of each named linear map.

    A token embedding gets a `LoraEmbedding`.
    """

    def beside(base: nn.Module, lora: Lora, name: str) -> LoraLinear:
        kind = LoraEmbedding if isinstance(base, nn.Embedding) else layer
        return kind(base, lora, name)

    replace_maps(
        model, {name: partial(beside, lora=lora, name=name) for name, lora in loras.items()}
    )


def lora_modules(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield every LoRA layer with its path in the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def save_lora(model: nn.Module, lora: Lora, folder: Path, *, base_name: str, base: Path) -> None:
    """Save the factors and the head in PEFT's layout; see `Lora.save`."""
    heads, modules = head_names(model), dict(lora_modules(model))
    saved = {name: value for name, value in model.state_dict().items() if in_head(name, heads)}
    for path, module in modules.items():
        saved |= {f"{path}.{name}": value for name, value in module.further_tensors().items()}
    # Factors of more columns keep their scaling by an α that grows with the rank.
    more = 2 if lora.moves_start else 1
    grown = math.sqrt(more) if lora.uses_rslora else more
    save_adapter(
        folder,
        factors={name: each.factors() for name, each in modules.items()},
        embeddings=[name for name, each in modules.items() if isinstance(each, LoraEmbedding)],
        saved_modules=saved,
        modules_to_save=heads,
        rank=more * lora.rank,
        alpha=grown * lora.alpha,
        rank_pattern={name: more * each.lora.rank for name, each in modules.items()},
        alpha_pattern={name: grown * each.lora.alpha for name, each in modules.items()},
        use_rslora=lora.uses_rslora,
        dropout=lora.dropout,
        target_modules=sorted(modules),
        base_model_name=base_name,
        task_type=task_of(model).peft_task_type,
        fan_in_fan_out=any(isinstance(each.base, Conv1D) for each in modules.values()),
        base_sha256=[sha256_of_file(file) for file in sorted(base.glob("*.safetensors"))],
        settings=lora.peft_settings,
    )
