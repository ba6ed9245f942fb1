"""DoRA's layer: LoRA's output, scaled for each output by a trained norm over the current one.

    y = g ∘ (x W0ᵀ + scaling · (x Aᵀ) Bᵀ) + b        g = m / ‖W0 + scaling · B A‖, m (out) trained

The norm of a row is a constant in the backward pass (Liu et al. 2024, section 4.3). It comes from
thin factors: ‖w + s·b A‖² = ‖w‖² + 2s·(A w)·b + s²·b (A Aᵀ) bᵀ for a row w of W0 and b of B.

Letters: R runs, O out_features, I in_features, K rank.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_study.methods.layers.lora import LoraLinear, PackedLora
from lowrank_study.methods.lora import Lora


class PackedDora(PackedLora):
    """The adapted map of several runs, each with its own norms."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, ..., in) to (R, ..., out), or (R N, ..., in) to (R N, ..., out)."""
        y: Tensor = super().forward(x)
        runs: list[Any] = [self.loras[number] for number in self._active]
        scaled = [run.rescaled(part) for run, part in zip(runs, y.chunk(len(runs)), strict=True)]
        return torch.cat(scaled)


class DoraLinear(LoraLinear):
    """A linear map whose rows have a low-rank change of direction and a trained norm."""

    packed: ClassVar[type[nn.Module] | None] = PackedDora

    def __init__(self, base: nn.Module, lora: Lora, name: str) -> None:
        super().__init__(base, lora, name)
        norm_O = self.weight_OI.float().norm(dim=1)
        self.norm_O: Tensor
        self.register_buffer("norm_O", norm_O, persistent=False)
        self.magnitude_O = nn.Parameter(norm_O.clone())

    def forward(self, x_I: Tensor) -> Tensor:
        """Return the adapted map of x (..., in), (..., out)."""
        y_O: Tensor = super().forward(x_I)
        return y_O if self.merged else self.rescaled(y_O)

    def rescaled(self, y_O: Tensor) -> Tensor:
        """Multiply LoRA's output, with its bias, by g; the bias itself is not scaled."""
        gain_O = self.magnitude_O / self._norm_O()
        bias_O: Any = self.base.bias
        scaled_O = y_O * gain_O  # in fp32: bf16 would round g to steps of 0.8 %
        if bias_O is not None:
            scaled_O = scaled_O + (1.0 - gain_O) * bias_O
        return scaled_O.to(y_O.dtype)

    @torch.no_grad()
    def _norm_O(self) -> Tensor:
        """Return the norm of each row of W0 + scaling · B @ A, in the dtype of the factors."""
        A_KI, B_OK = self.A_RI, self.B_OR
        with torch.autocast(A_KI.device.type, enabled=False):
            crossed_O = ((self.weight_OI.to(A_KI.dtype) @ A_KI.T) * B_OK).sum(1)
            squared_O = ((B_OK @ (A_KI @ A_KI.T)) * B_OK).sum(1)
        before_O = self.norm_O.square()
        return (before_O + 2 * self.scaling * crossed_O + self.scaling**2 * squared_O).sqrt()

    def delta_OI(self) -> Tensor:
        """Return the update g ∘ (W0 + scaling · B @ A) - W0, (out, in), detached."""
        weight_OI, low_OI = self.weight_OI, super().delta_OI()
        if self.merged:  # the weight is g ∘ (W0 + low), and has no W0 to compute g from
            return weight_OI * (1.0 - 1.0 / self._merged_gain_O1) + low_OI
        gain_O1 = self._gain_O1()
        return weight_OI * (gain_O1 - 1.0) + gain_O1 * low_OI

    def merge(self) -> None:
        """Add the update to the weight; see `AdaptedLinear.merge`."""
        if not self.merged:
            self._merged_gain_O1 = self._gain_O1()
        super().merge()

    @torch.no_grad()
    def _gain_O1(self) -> Tensor:
        return (self.magnitude_O / self._norm_O())[:, None]

    def further_tensors(self) -> dict[str, Tensor]:
        """Return m by PEFT's name."""
        return {"lora_magnitude_vector": self.magnitude_O.detach()}
