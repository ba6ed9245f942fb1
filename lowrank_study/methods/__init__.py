"""What a fine-tuning method is, and how its class is found.

Each module here, such as `lora.py`, holds one method: a frozen record of its settings that also
knows how to train, save, measure and cost it. The module has the name that `method.name` gives in
YAML, so a new method is one module and one file in `conf/method/`; there is no list to edit.

    >>> method_named("lora")
    <class 'lowrank_study.methods.lora.Lora'>

These modules import torch only inside functions, because composing a configuration and listing
runs must stay fast. The modules of `layers/` hold the torch code.
"""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowrank_study.errors import InputError
from lowrank_study.spec import BaseModel, RunSpec, TrainSpec, Variant, class_in

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lowrank_study.checkpoints import Weights
    from lowrank_study.config.fields import Fields
    from lowrank_study.methods.lora import Lora
    from lowrank_study.spectra.updates import Update

    Batches = Iterable[Iterable[torch.Tensor]]

_ACTIVATION_RANKS = 64
"""Cost of the passes over an adapted map's activations, expressed as additional rank.
Measured on one core with MiniLM, ranks 1 to 128, on two maps a layer and on all maps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Variant, ABC):
    """How a model is fine-tuned. The defaults are those of an adapter in PEFT's layout."""

    learning_rate: float

    is_adapter: ClassVar[bool] = True
    """Whether it trains new parameters beside frozen weights."""
    is_baseline: ClassVar[bool] = False
    """Whether it trains only the new head, so that there is no update ΔW."""
    needs_weights: ClassVar[bool] = False
    """Whether it can't be attached to a model without weights, on the meta device."""
    is_reference: ClassVar[bool] = False
    """Whether adapters are compared with it. It measures the base model before it is trained."""
    rounds_frozen: ClassVar[bool] = False
    """Whether bf16 training may keep the frozen weights in bf16."""
    written_names: ClassVar[Mapping[str, str]] = {}
    """How prose writes a `name`; others are written in capitals."""

    @classmethod
    @abstractmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read the method from the `method` part of a configuration."""

    @abstractmethod
    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Set up a pretrained model with its new head for training, and return it.

        Raises:
            InputError: A target matches no linear map, or a setting doesn't fit the model.
        """

    def prepare(self, model: "nn.Module", batches: "Batches") -> None:
        """Set initial values that depend on training data; most methods have none.

        Args:
            model: The attached model in evaluation mode.
            batches: For each training batch, in the order of training, the losses of its texts,
                which add up to the batch's mean loss. A loss is computed when it is read.
        """

    @property
    def name(self) -> str:
        """Short name, as in a run's id; by default that of the module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """Name in tables; it shows the settings that have no column of their own."""
        return self.name

    @property
    def target_label(self) -> str | None:
        """Name of the adapted maps, as in `attention_qv` or `query+value`."""
        return None

    @property
    def lora(self) -> "Lora | None":
        """The LoRA with the rank and scaling of this method's update; None for other updates."""
        return None

    @property
    def pulls_to_start(self) -> bool:
        """Whether weight decay pulls the adapter towards its initial values instead of zero."""
        return False

    @property
    def adapter_rank(self) -> int | None:
        """Rank of the update, the same for every map; None if it isn't set."""
        return None if self.lora is None else self.lora.rank

    @property
    def computed_rank(self) -> int:
        """Rank of the product that each step computes for an adapted map."""
        return self.adapter_rank or 0

    @property
    def stem(self) -> str:
        """The method's part of a run's id, as in `lora_r8_attention_qv`."""
        rank = None if self.adapter_rank is None else f"r{self.adapter_rank}"
        return "_".join(part for part in (self.name, rank, self.target_label) if part is not None)

    @property
    def pack_key(self) -> tuple[Any, ...] | None:
        """The settings that runs must share to train in one pack; None if none can be packed."""
        return None

    def learning_rate_of(self, parameter: str) -> float:
        """Return the peak learning rate of a trained parameter outside the head."""
        return self.learning_rate

    def head_learning_rate(self, train: TrainSpec) -> float | None:
        """Return the peak learning rate of the new head; None for the method's own."""
        return train.head_learning_rate

    def multiplications(self, weights: int, widths: int) -> int:
        """Count the multiplications of one training step for each token.

        Args:
            weights: Number of weights of the model's linear maps.
            widths: Sum of (in + out) over the adapted maps.
        """
        return 2 * weights + 3 * widths * (self.computed_rank + _ACTIVATION_RANKS)

    def checkpoint_bytes(self, weight_bytes: int) -> int:
        """Return an upper bound of a checkpoint's size, from the size of the pretrained weights."""
        return 2 * weight_bytes  # the pretrained weights may be stored in 16 bits

    def save(self, model: "nn.Module", folder: Path, *, spec: RunSpec, base: Path) -> None:
        """Save what was trained, so that it can be loaded on the pretrained model in `base`."""
        model.save_pretrained(folder)  # type: ignore[operator]

    @property
    def why_no_updates(self) -> str | None:
        """The reason why the updates can't be read as exact matrices; None if they can."""
        return None

    def updates(
        self, checkpoint: Path, *, base: "Weights", roles: Mapping[str, str]
    ) -> "Iterator[Update]":
        """Yield `W - W0` of every matrix that a saved run changed and the base has.

        The new head has no W0 to compare with, and is left out.

        Raises:
            InputError: The checkpoint can't be read, or a matrix can't be compared.
        """
        from lowrank_study.checkpoints import open_adapter
        from lowrank_study.spectra.adapter_updates import updates_of_adapter

        with open_adapter(checkpoint) as adapter:
            adapter.refuse_partial()
            yield from updates_of_adapter(adapter, base=base, roles=roles, skipped={})


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnVectors(Method):
    """Training of some vectors of the model itself, which is saved whole; no matrix changes."""

    is_adapter: ClassVar[bool] = False
    noun: ClassVar[str]
    """What is trained, in the plural."""

    @classmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read the learning rate."""
        return cls(learning_rate=fields.number("learning_rate", above=0.0))

    @staticmethod
    @abstractmethod
    def vectors(model: "nn.Module") -> "Iterator[nn.Parameter]":
        """Yield the trained vectors of a pretrained model, with or without those of its head."""

    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Freeze everything but the vectors and the head.

        Raises:
            InputError: The pretrained model has none of them.
        """
        from lowrank_study.methods.layers.modules import head_parameters, train_head

        model.requires_grad_(False)
        train_head(model)
        if not (vectors := {*self.vectors(model)} - head_parameters(model)):
            raise InputError(
                f"method={self.name} trains {self.noun}, but {base.name} has none: choose another "
                "method"
            )
        for vector in vectors:
            vector.requires_grad_(True)
        return model

    @property
    def why_no_updates(self) -> str:
        """The reason why there is no ΔW."""
        return f"only {self.noun} are trained, which are vectors: no matrix changes"


def method_names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def method_named(name: str) -> type[Method]:
    """Return the class of a method by its name in YAML."""
    found: type[Method] = class_in(f"{__name__}.{name}", Method)
    return found


def method_of_kind(kind: str) -> type[Method]:
    """Return the class of a method by the name of the class, which a stored run keeps."""
    return {found.__name__: found for found in map(method_named, method_names())}[kind]
