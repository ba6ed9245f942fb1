"""LayerNorm tuning (Zhao et al. 2024): only norms are trained, and the new head."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowrank_study.methods import OwnVectors

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNormTuning(OwnVectors):
    """Weights and biases of every LayerNorm or RMSNorm are trained."""

    noun: ClassVar[str] = "norms"
    written_names: ClassVar[Mapping[str, str]] = {"layernorm": "LayerNorm tuning"}

    @staticmethod
    def vectors(model: "nn.Module") -> "Iterator[nn.Parameter]":
        """Yield the weight and the bias of every norm.

        Each family of models has its own class of RMSNorm; all are called so.
        """
        for module in model.modules():
            if type(module).__name__.endswith("Norm"):
                yield from module.parameters(recurse=False)
