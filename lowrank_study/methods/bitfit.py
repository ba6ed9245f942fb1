"""BitFit (Ben Zaken et al. 2022): only biases are trained, and the new head."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowrank_study.methods import OwnVectors

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFit(OwnVectors):
    """Every bias is trained: those of linear maps and those of norms."""

    noun: ClassVar[str] = "biases"
    written_names: ClassVar[Mapping[str, str]] = {"bitfit": "BitFit"}

    @staticmethod
    def vectors(model: "nn.Module") -> "Iterator[nn.Parameter]":
        """Yield every bias."""
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                yield parameter
