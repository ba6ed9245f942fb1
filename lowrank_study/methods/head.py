"""A linear probe: only the new head is trained, on the features of the pretrained model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from lowrank_study.errors import InputError
from lowrank_study.methods import Method
from lowrank_study.spec import BaseModel, TrainSpec

if TYPE_CHECKING:
    from torch import nn

    from lowrank_study.checkpoints import Weights
    from lowrank_study.config.fields import Fields
    from lowrank_study.spectra.updates import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly(Method):
    """Only the new head is trained, so there is no ΔW: the baseline for adapters."""

    is_adapter: ClassVar[bool] = False
    is_baseline: ClassVar[bool] = True
    written_names: ClassVar[Mapping[str, str]] = {"head": "a linear probe"}

    @classmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read the learning rate, which is the head's if that is given."""
        learning_rate = fields.number("learning_rate", above=0.0)
        return cls(learning_rate=head_learning_rate or learning_rate)

    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Freeze everything but the head.

        Raises:
            InputError: The task has no new head.
        """
        from lowrank_study.methods.layers.modules import head_names, task_of, train_head

        if not head_names(model):
            raise InputError(
                f"method=head trains only a new head, but {task_of(model).model_noun} has none: "
                "choose method=lora or method=full"
            )
        model.requires_grad_(False)
        train_head(model)
        return model

    def head_learning_rate(self, train: TrainSpec) -> float | None:
        """Return None: the method's own rate is the head's."""
        return None

    def multiplications(self, weights: int, widths: int) -> int:
        """Count one pass forward; nothing is passed back through the frozen maps."""
        return weights

    def updates(
        self, checkpoint: Path, *, base: "Weights", roles: Mapping[str, str]
    ) -> "Iterator[Update]":
        """Yield nothing."""
        yield from ()
