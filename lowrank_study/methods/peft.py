"""Any other adapter, built and saved by the PEFT library.

>>> compose("method=peft", "method.peft_type=LORA", "method.options={use_dora: true}").method.name
'peft_dora'
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowrank_study.methods import Method
from lowrank_study.methods.lora import Lora, read_target
from lowrank_study.spec import BaseModel, target_name

if TYPE_CHECKING:
    from torch import nn

    from lowrank_study.config.fields import Fields

LORA_DEFAULTS: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "use_rslora": False,
    "lora_dropout": 0.0,
    "init_lora_weights": True,
}
"""PEFT's defaults for LoRA, used for options that are not given."""
_SHOWN_OF_LORA = ("r", "lora_alpha", "use_dora", "use_rslora", "init_lora_weights")
"""Options of LoRA that the name or a column of its own shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftMethod(Method):
    """An adapter of the PEFT library."""

    peft_type: str
    """PEFT's name of the method, as in `IA3` or `LOHA`."""
    target: tuple[str, ...]
    options: Mapping[str, Any]
    """Further arguments of that method's PEFT configuration."""

    needs_weights: ClassVar[bool] = True  # PEFT can't build some kinds on the meta device
    written_names: ClassVar[Mapping[str, str]] = {
        "peft_lora": "PEFT's LoRA",
        "peft_dora": "PEFT's DoRA",
        "peft_rslora": "PEFT's rsLoRA",
        "peft_pissa": "PEFT's PiSSA",
        "peft_olora": "PEFT's OLoRA",
    }

    @classmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read kind and options; options that are not part of a run's id are checked by PEFT."""
        learning_rate = fields.number("learning_rate", above=0.0)
        target = read_target(fields)
        options = fields.optional_part("options")
        if "r" in options.settings:
            options.integer("r", at_least=0)
        if "lora_alpha" in options.settings:
            options.number("lora_alpha", above=0.0)
        return cls(
            learning_rate=learning_rate,
            peft_type=fields.text("peft_type").upper(),
            target=target,
            options=options.mapping(),
        )

    @property
    def lora(self) -> Lora | None:
        """Rank and scaling of PEFT's LoRA and its variants, if one rank holds for every module."""
        if self.peft_type != "LORA" or self.options.get("rank_pattern"):
            return None
        options = {**LORA_DEFAULTS, **self.options}
        return Lora(
            learning_rate=self.learning_rate,
            rank=options["r"],
            alpha=float(options["lora_alpha"]),
            scaling_rule="alpha_over_sqrt_rank" if options["use_rslora"] else "alpha_over_rank",
            dropout=options["lora_dropout"],
            init=str(options["init_lora_weights"]),
            init_batches=None,
            stable_gamma=None,
            learning_rate_ratio=None,
            rank_pattern=None,
            alpha_pattern=None,
            names_scaling=None,
            target=self.target,
        )

    @property
    def name(self) -> str:
        """PEFT's name in lower case, or that of a variant of LoRA, as in `peft_rslora_pissa`."""
        if self.peft_type != "LORA":
            return self.peft_type.lower()
        start = self.options.get("init_lora_weights")
        variants = [name for name in ("dora", "rslora") if self.options.get(f"use_{name}")]
        variants += [start] if isinstance(start, str) else []
        return "_".join(["peft", *(variants or ["lora"])])

    @property
    def pulls_to_start(self) -> bool:
        """Whether weight decay pulls towards the initial values: always, since ΔW = 0 there."""
        return True

    @property
    def label(self) -> str:
        """The name with the options that have no column, so that different methods differ."""
        shown = () if self.lora is None else _SHOWN_OF_LORA
        options = ", ".join(
            f"{option}={json.dumps(value, sort_keys=True)}"
            for option, value in sorted(self.options.items())
            if option not in shown
        )
        return f"{self.name} ({options})" if options else self.name

    @property
    def target_label(self) -> str:
        """Name of the adapted maps."""
        return target_name(self.target)

    @property
    def why_no_updates(self) -> str | None:
        """The reason why this kind's updates can't be read as exact matrices."""
        from lowrank_study.checkpoints.adapters.peft_settings import PEFT_TYPES

        if self.peft_type in PEFT_TYPES:
            return None
        return f"the updates of peft_type={self.peft_type} can't be read as exact matrices"

    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Let PEFT put its adapter on the targets."""
        from lowrank_study.methods.layers.peft_kinds import add_peft

        return add_peft(model, self, base)
