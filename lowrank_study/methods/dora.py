"""DoRA (Liu et al. 2024): LoRA changes the direction of each row of W0, and its length is trained.

W = m ∘ (W0 + scaling · B @ A) / ‖W0 + scaling · B @ A‖, with one norm and one entry of m for each
output. m starts at the norms of the rows of W0, so training starts at the pretrained model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_study.methods.lora import Lora

if TYPE_CHECKING:
    from lowrank_study.methods.layers.lora import LoraLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class Dora(Lora):
    """LoRA with a trained norm of every row."""

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "gaussian")
    written_names: ClassVar[Mapping[str, str]] = {"dora": "DoRA"}
    peft_settings: ClassVar[Mapping[str, Any]] = {"use_dora": True}

    def layer(self) -> "type[LoraLinear]":
        """Return the class that replaces each adapted map."""
        from lowrank_study.methods.layers.dora import DoraLinear

        return DoraLinear
