"""Low-rank adaptation (Hu et al. 2021): `W = W0 + scaling · B @ A`, with `W0` frozen.

>>> lora = compose("method=lora", "method.rank=8", "method.alpha=2r").method
>>> lora.scaling
2.0
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowrank_study.errors import InputError
from lowrank_study.methods import Method
from lowrank_study.spec import BaseModel, RunSpec, target_name

if TYPE_CHECKING:
    from torch import nn

    from lowrank_study.config.fields import Fields
    from lowrank_study.methods.layers.lora import LoraLinear

SCALING_RULES = ("alpha_over_rank", "alpha_over_sqrt_rank")
INITS = ("kaiming", "gaussian")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora(Method):
    """Low-rank adaptation, `W = W0 + scaling · B @ A` with `B` (out, rank), `A` (rank, in)."""

    rank: int
    alpha: float
    """A number: rules such as `2r` are resolved when the configuration is read."""
    scaling_rule: str
    """`alpha_over_rank` (LoRA) or `alpha_over_sqrt_rank` (rsLoRA)."""
    dropout: float
    """Dropout on the adapter's input during training."""
    init: str
    """How A starts: `kaiming` (uniform, as in PEFT) or `gaussian` (deviation 1/rank). B is 0."""
    target: tuple[str, ...]
    """A preset's name, or roles, or module paths."""

    rounds_frozen: ClassVar[bool] = True
    written_names: ClassVar[Mapping[str, str]] = {"lora": "LoRA"}
    peft_settings: ClassVar[Mapping[str, Any]] = {}
    """Further settings with which PEFT loads a variant, such as `use_dora`."""

    @classmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read LoRA's settings; `alpha` may be a rule such as `2r`."""
        learning_rate = fields.number("learning_rate", above=0.0)
        target = read_target(fields)
        rank = fields.integer("rank", at_least=1)
        return cls(
            learning_rate=learning_rate,
            rank=rank,
            alpha=_alpha(fields.value("alpha"), rank),
            scaling_rule=fields.one_of("scaling", SCALING_RULES),
            dropout=fields.number("dropout", least=0.0, below=1.0),
            init=fields.one_of("init", INITS),
            target=target,
        )

    @property
    def scaling(self) -> float:
        """The factor before `B @ A`: α/r, or α/√r for rsLoRA."""
        divisor = self.rank if self.scaling_rule == "alpha_over_rank" else self.rank**0.5
        return float(self.alpha / divisor)

    @property
    def target_label(self) -> str:
        """Name of the adapted maps."""
        return target_name(self.target)

    @property
    def lora(self) -> "Lora":
        """The record itself."""
        return self

    @property
    def pack_key(self) -> tuple[Any, ...] | None:
        """Runs in one pack share the adapted maps and the dropout masks; ranks may differ."""
        return self.target, self.dropout

    def layer(self) -> "type[LoraLinear]":
        """Return the class that replaces each adapted map."""
        from lowrank_study.methods.layers.lora import LoraLinear

        return LoraLinear

    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Freeze the model, put factors beside each target, and make the head trainable."""
        from lowrank_study.methods.layers.lora import LoraLinear, add_lora
        from lowrank_study.methods.layers.modules import target_modules, train_head

        # A variant of the layer has none for embeddings.
        is_plain = self.layer() is LoraLinear
        modules = target_modules(model, base, self.target, with_embedding=is_plain)
        add_lora(model, dict.fromkeys(modules, self), layer=self.layer())
        train_head(model)
        return model

    def checkpoint_bytes(self, weight_bytes: int) -> int:
        """Return a quarter of the pretrained weights' size, more than factors and head take."""
        return weight_bytes // 4

    def save(self, model: "nn.Module", folder: Path, *, spec: RunSpec, base: Path) -> None:
        """Save the factors and the head in PEFT's layout.

        The adapter stores the hashes of the files in `base`, and is refused on another base.
        """
        from lowrank_study.methods.layers.lora import save_lora

        save_lora(model, self, folder, base_name=spec.model.name, base=base)


def read_target(fields: "Fields") -> tuple[str, ...]:
    """Read `method.target`; refuse an empty one."""
    target = fields.names("target")
    if not target:
        raise InputError("method.target=[]: name a preset such as attention_qv, or modules")
    return target


def _alpha(value: Any, rank: int) -> float:
    """Return α from a number or a rule: `2r` is twice the rank, `r` the rank itself."""
    rule = re.fullmatch(r"(\d+(?:\.\d+)?)?\s*r", value) if isinstance(value, str) else None
    number = float(rule.group(1) or 1) * rank if rule else value
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < math.inf:
        return float(number)
    raise InputError(f"method.alpha={value!r}: a positive number, or a rule such as 2r, is needed")
