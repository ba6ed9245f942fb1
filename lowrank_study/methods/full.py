"""Full fine-tuning: every weight is trained, and ΔW is the difference of two checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from lowrank_study.errors import InputError
from lowrank_study.methods import Method
from lowrank_study.spec import BaseModel

if TYPE_CHECKING:
    from torch import nn

    from lowrank_study.checkpoints import Weights
    from lowrank_study.config.fields import Fields
    from lowrank_study.spectra.updates import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class FullFineTuning(Method):
    """Every weight is trained."""

    is_adapter: ClassVar[bool] = False
    is_reference: ClassVar[bool] = True
    written_names: ClassVar[Mapping[str, str]] = {"full": "full fine-tuning"}

    @classmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read the learning rate."""
        return cls(learning_rate=fields.number("learning_rate", above=0.0))

    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Make every weight trainable."""
        return model.requires_grad_(True)

    def multiplications(self, weights: int, widths: int) -> int:
        """Count one pass forward, one back to the activations and one back to the weights."""
        return 3 * weights

    def updates(
        self, checkpoint: Path, *, base: "Weights", roles: Mapping[str, str]
    ) -> "Iterator[Update]":
        """Yield the difference of the two checkpoints, none of whose matrices may be left out."""
        from lowrank_study.checkpoints import open_weights, pair, shown
        from lowrank_study.spectra.updates import update_of_match

        with open_weights(checkpoint) as tuned:
            pairing = pair(base, tuned)
            pairing.refuse_partial()
            for match in pairing.matches:
                if (both := pairing.read(match)) is None:
                    where, why = shown(pairing.after.path), pairing.skipped[match.name]
                    raise InputError(f"{where}: {shown(match.name)}: {why}; train the run again")
                yield update_of_match(match, *both, roles=roles)
