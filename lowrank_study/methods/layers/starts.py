"""Initial values of LoRA's factors that depend on the weights or on training data.

| init      | A0 and B0                                                                            |
| --------- | ------------------------------------------------------------------------------------ |
| `pissa`   | the principal part of W0 = U S Vᵀ: A0 = √(S/s) Vᵀ, B0 = U √(S/s) (Meng et al. 2024)  |
| `olora`   | W0 = Q R: A0 = first rows of R, B0 = first columns of Q (Büyükakyüz 2024)            |
| `eva`     | A0 = principal directions of the map's inputs, B0 = 0 (Paischer et al. 2024)         |
| `lora_ga` | singular vectors of the gradient of W0: A0 from Vᵀ, B0 from U (Wang et al. 2024)     |

s is LoRA's scaling. Unless B0 is zero, the product s B0 A0 is subtracted (`LoraLinear.factors`).

Letters: O out_features, I in_features, R rank, T tokens.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import linear_shape
from lowrank_study.methods.lora import Lora

if TYPE_CHECKING:
    from lowrank_study.methods import Batches
    from lowrank_study.methods.layers.lora import LoraLinear


def _pissa(W0_OI: Tensor, lora: Lora) -> tuple[Tensor, Tensor]:
    """Return A0 and B0 with scaling · B0 A0 = the best approximation of W0 of this rank."""
    U, S, Vh = torch.linalg.svd(W0_OI, full_matrices=False)
    root_R = (S[: lora.rank] / lora.scaling).sqrt()
    return root_R[:, None] * Vh[: lora.rank], U[:, : lora.rank] * root_R


def _olora(W0_OI: Tensor, lora: Lora) -> tuple[Tensor, Tensor]:
    """Return the first rows of R and the first columns of Q."""
    Q, R = torch.linalg.qr(W0_OI)
    return R[: lora.rank], Q[:, : lora.rank]


WEIGHT_STARTS: Mapping[str, Callable[[Tensor, Lora], tuple[Tensor, Tensor]]] = {
    "pissa": _pissa,
    "olora": _olora,
}
"""Functions of the pretrained weight (out, in) that return A0 and B0."""


class _Moments:
    """Sums of the inputs of one map and of their products."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._tokens = 0
        self._sum_I = torch.zeros(in_features, dtype=torch.float64, device=device)
        self._products_II = self._sum_I.outer(self._sum_I)
        self._waiting: list[Tensor] = []

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the inputs of one call; it is a hook before the map's `forward`."""
        self._waiting.append(inputs[0].flatten(0, -2))
        if sum(map(len, self._waiting)) >= len(self._sum_I):
            self._multiply()

    def _multiply(self) -> None:
        """Add the products of many tokens at once, since each sum passes over (in, in)."""
        x_TI = torch.cat(self._waiting).double()
        self._waiting.clear()
        self._tokens += len(x_TI)
        self._sum_I += x_TI.sum(0)
        self._products_II.addmm_(x_TI.T, x_TI)

    def directions_RI(self, rank: int) -> Tensor:
        """Return the principal directions of the inputs, the strongest first."""
        if self._waiting:
            self._multiply()
        centred_II = self._products_II - self._sum_I.outer(self._sum_I) / self._tokens
        vectors_II: Tensor = torch.linalg.eigh(centred_II).eigenvectors
        return vectors_II.T.flip(0)[:rank]


@torch.no_grad()
def _eva(model: nn.Module, lora: Lora, batches: "Batches") -> None:
    """Set A to the principal directions of each map's inputs, as PEFT does with rho = 1.

    The directions are exact: they come from the covariance of all tokens, in float64.
    """
    layers = _layers(model)
    moments = [_Moments(layer.A_RI.shape[1], layer.A_RI.device) for layer in layers]
    hooks = [
        layer.register_forward_pre_hook(of.add) for layer, of in zip(layers, moments, strict=True)
    ]
    for losses in batches:
        for _ in losses:
            pass
    for hook in hooks:
        hook.remove()
    for layer, of in zip(layers, moments, strict=True):
        layer.A_RI.copy_(of.directions_RI(len(layer.A_RI)))


def _lora_ga(model: nn.Module, lora: Lora, batches: "Batches") -> None:
    """Start at singular vectors of the gradient of each W0, times out^¼ / √γ.

    A0 takes the first R right vectors and B0 the next R left ones, so that the first step of LoRA
    is close to that of full fine-tuning. The factor is the one of the paper and of its authors'
    code; PEFT 0.21 multiplies only B0 by it, and by the gradient's singular values.
    """
    assert lora.stable_gamma is not None
    layers = _layers(model)
    for layer, gradient_OI in zip(layers, _gradients(model, layers, batches), strict=True):
        rank = layer.A_RI.shape[0]
        U, _, Vh = torch.linalg.svd(gradient_OI.double(), full_matrices=False)
        factor = len(U) ** 0.25 / lora.stable_gamma**0.5
        layer.start_at(factor * Vh[:rank], factor * U[:, rank : 2 * rank])


def _gradients(model: nn.Module, layers: "list[LoraLinear]", batches: "Batches") -> list[Tensor]:
    """Return the gradient of the loss by each W0, (out, in), summed over the batches."""
    weights = [layer.weight.requires_grad_(True) for layer in layers]
    sums = [torch.zeros_like(weight) for weight in weights]
    gradients_of = partial(
        torch.autograd.grad, inputs=weights, allow_unused=True, materialize_grads=True
    )
    for losses in batches:
        for loss in losses:
            for total, gradient in zip(sums, gradients_of(loss), strict=True):
                total += gradient
    for weight in weights:
        weight.requires_grad_(False)
    return [layer.as_stored(total) for layer, total in zip(layers, sums, strict=True)]


def check_start(lora: Lora, base: nn.Module, name: str) -> None:
    """Refuse a rank for which a map has too few singular vectors."""
    in_features, out_features = linear_shape(base)
    most = min(in_features, out_features) // 2
    if lora.init == "lora_ga" and lora.rank > most:
        raise InputError(
            f"method.rank={lora.rank}: init=lora_ga needs {2 * lora.rank} singular vectors, and "
            f"{name} maps {in_features} to {out_features} features, so ranks from 1 to {most} are "
            "valid"
        )


def _layers(model: nn.Module) -> "list[LoraLinear]":
    from lowrank_study.methods.layers.lora import lora_modules

    return [layer for _, layer in lora_modules(model)]


DATA_STARTS: Mapping[str, Callable[[nn.Module, Lora, "Batches"], None]] = {
    "eva": _eva,
    "lora_ga": _lora_ga,
}
"""Functions that set the initial values of an attached model's factors from training batches."""
