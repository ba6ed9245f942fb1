"""Low-rank adaptation (Hu et al. 2021): `W = W0 + scaling · B @ A`, with `W0` frozen.

>>> lora = compose("method=lora", "method.rank=8", "method.alpha=2r").method
>>> lora.scaling
2.0

rsLoRA, LoRA+, PiSSA, OLoRA, EVA and LoRA-GA are presets of it in `conf/method/`, which differ in
the scaling, the learning rate of B, or the initial values of A and B.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowrank_study.errors import InputError
from lowrank_study.methods import Method
from lowrank_study.spec import BaseModel, RunSpec, path_matches, target_name

if TYPE_CHECKING:
    from torch import nn

    from lowrank_study.config.fields import Fields
    from lowrank_study.methods import Batches
    from lowrank_study.methods.layers.lora import LoraLinear

SCALING_RULES = ("alpha_over_rank", "alpha_over_sqrt_rank")
INITS = ("kaiming", "gaussian", "pissa", "olora", "eva", "lora_ga")
_RANDOM_INITS = ("kaiming", "gaussian")
_DATA_INITS = ("eva", "lora_ga")
_MOVED_INITS = ("pissa", "olora", "lora_ga")


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
    """How A and B start: one of `INITS`, see `layers/starts.py`."""
    init_batches: int | None
    """Training batches that `eva` and `lora_ga` read before training; None for other inits."""
    stable_gamma: float | None
    """γ of `lora_ga`, whose factors start at (out^¼ / √γ) times singular vectors."""
    learning_rate_ratio: float | None
    """Learning rate of B divided by that of A, as in LoRA+; None for equal rates."""
    rank_pattern: Mapping[str, int] | None
    """Ranks of some maps: a preset, a role or the end of a module path → rank. The longest path
    counts, and a preset counts least."""
    alpha_pattern: Mapping[str, float] | None
    """α of some maps, given as in `rank_pattern`."""
    names_scaling: bool | None
    """Whether `name` shows rsLoRA's scaling. None for older runs, which are named `lora`."""
    target: tuple[str, ...]
    """A preset's name, or roles, or module paths."""

    rounds_frozen: ClassVar[bool] = True
    inits: ClassVar[tuple[str, ...]] = INITS
    """The valid values of `init`. A variant whose layer ignores `factors` can't have all."""
    written_names: ClassVar[Mapping[str, str]] = {
        "lora": "LoRA",
        "rslora": "rsLoRA",
        "loraplus": "LoRA+",
        "pissa": "PiSSA",
        "olora": "OLoRA",
        "eva": "EVA",
        "lora_ga": "LoRA-GA",
    }
    peft_settings: ClassVar[Mapping[str, Any]] = {}
    """Further settings with which PEFT loads a variant, such as `use_dora`."""

    @classmethod
    def from_fields(cls, fields: "Fields", *, head_learning_rate: float | None) -> Self:
        """Read LoRA's settings; `alpha` may be a rule such as `2r`."""
        learning_rate = fields.number("learning_rate", above=0.0)
        target = read_target(fields)
        rank = fields.integer("rank", at_least=1)
        init = fields.one_of("init", cls.inits)
        _check_applies(fields, "init_batches", init, _DATA_INITS)
        _check_applies(fields, "stable_gamma", init, ("lora_ga",))
        ranks, alphas = _patterns(fields)
        return cls(
            learning_rate=learning_rate,
            rank=rank,
            alpha=_alpha(fields.value("alpha"), rank),
            scaling_rule=fields.one_of("scaling", SCALING_RULES),
            dropout=fields.number("dropout", least=0.0, below=1.0),
            init=init,
            init_batches=fields.optional_integer("init_batches", at_least=1),
            stable_gamma=fields.optional_number("stable_gamma", above=0.0),
            learning_rate_ratio=fields.optional_number("learning_rate_ratio", above=0.0),
            rank_pattern=ranks or None,
            alpha_pattern=alphas or None,
            names_scaling=fields.value("names_scaling") and fields.flag("names_scaling"),
            target=target,
        )

    @property
    def name(self) -> str:
        """Name of the variant, as in `lora`, `pissa` or `rslora_eva`."""
        module = type(self).__module__.rpartition(".")[2]
        parts = [] if module == "lora" else [module]
        parts += ["rslora"] if self.names_scaling and self.uses_rslora else []
        parts += [] if self.init in _RANDOM_INITS else [self.init]
        parts += ["loraplus"] if self.learning_rate_ratio is not None else []
        return "_".join(parts) or "lora"

    @property
    def label(self) -> str:
        """The name with the settings that have no column of their own."""
        shown = [] if self.learning_rate_ratio is None else [f"ratio={self.learning_rate_ratio:g}"]
        for name in ("rank_pattern", "alpha_pattern"):
            if pattern := getattr(self, name):
                listed = ", ".join(f"{key}: {value:g}" for key, value in pattern.items())
                shown.append(f"{name}={{{listed}}}")
        return f"{self.name} ({', '.join(shown)})" if shown else self.name

    @property
    def stem(self) -> str:
        """The method's part of a run's id; mixed ranks are shown as in `r2to8`."""
        ranks = [self.rank, *(self.rank_pattern or {}).values()]
        rank = f"r{self.rank}" if self.rank_pattern is None else f"r{min(ranks)}to{max(ranks)}"
        return "_".join((self.name, rank, self.target_label))

    @property
    def computed_rank(self) -> int:
        """The largest rank, twice where a start is subtracted."""
        return max([self.rank, *(self.rank_pattern or {}).values()]) * (
            2 if self.moves_start else 1
        )

    @property
    def uses_rslora(self) -> bool:
        """Whether the scaling is α/√r."""
        return self.scaling_rule == "alpha_over_sqrt_rank"

    @property
    def moves_start(self) -> bool:
        """Whether A and B start at a product B0 A0 that is subtracted again."""
        return self.init in _MOVED_INITS

    @property
    def pulls_to_start(self) -> bool:
        """Whether weight decay pulls towards A0 and B0, where ΔW = 0, instead of zero."""
        return self.moves_start

    @property
    def scaling(self) -> float:
        """The factor before `B @ A`: α/r, or α/√r for rsLoRA."""
        return float(self.alpha / (self.rank**0.5 if self.uses_rslora else self.rank))

    @property
    def target_label(self) -> str:
        """Name of the adapted maps."""
        return target_name(self.target)

    @property
    def lora(self) -> "Lora | None":
        """The record itself, if one rank and one scaling hold for every map."""
        return None if self.rank_pattern or self.alpha_pattern else self

    @property
    def pack_key(self) -> tuple[Any, ...] | None:
        """Runs in one pack share the adapted maps and the dropout masks; ranks may differ."""
        return self.target, self.dropout

    def learning_rate_of(self, parameter: str) -> float:
        """Return the learning rate; LoRA+ multiplies that of B."""
        is_B = parameter.endswith(".B_OR")
        return self.learning_rate * (self.learning_rate_ratio or 1.0 if is_B else 1.0)

    def layer(self) -> "type[LoraLinear]":
        """Return the class that replaces each adapted map."""
        from lowrank_study.methods.layers.lora import LoraLinear

        return LoraLinear

    def attach(self, model: "nn.Module", base: BaseModel) -> "nn.Module":
        """Freeze the model, put factors beside each target, and make the head trainable."""
        from lowrank_study.methods.layers.lora import LoraLinear, add_lora
        from lowrank_study.methods.layers.modules import target_modules, train_head

        # The variants are defined for linear maps only.
        is_plain = self.layer() is LoraLinear and self.init in _RANDOM_INITS
        with_embedding = is_plain and self.learning_rate_ratio is None
        modules = target_modules(model, base, self.target, with_embedding=with_embedding)
        self._check_patterns(modules, base)
        loras = {module: self._at(module, base) for module in modules}
        add_lora(model, loras, layer=self.layer())
        train_head(model)
        return model

    def prepare(self, model: "nn.Module", batches: "Batches") -> None:
        """Set the initial values that depend on data, from the first training batches."""
        from lowrank_study.methods.layers.starts import DATA_STARTS

        if self.init in DATA_STARTS:
            DATA_STARTS[self.init](model, self, islice(batches, self.init_batches))

    def _at(self, module: str, base: BaseModel) -> "Lora":
        """Return the LoRA of one map, with the rank and α that the patterns give it."""

        def exactness(key: str) -> tuple[bool, int, str]:
            return key not in base.target_presets, base.roles.get(key, key).count("."), key

        def value_of(pattern: Mapping[str, Any] | None, otherwise: Any) -> Any:
            keys = [key for key in pattern or {} if _names(key, module, base)]
            return pattern[max(keys, key=exactness)] if pattern and keys else otherwise

        rank = value_of(self.rank_pattern, self.rank)
        alpha = value_of(self.alpha_pattern, self.alpha)
        return replace(self, rank=rank, alpha=alpha, rank_pattern=None, alpha_pattern=None)

    def _check_patterns(self, modules: Sequence[str], base: BaseModel) -> None:
        """Refuse a pattern that names none of the adapted maps."""
        for setting in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, setting) or {}:
                if not any(_names(key, module, base) for module in modules):
                    keys = [*base.target_presets, *base.roles]
                    valid = [each for each in keys if any(_names(each, m, base) for m in modules)]
                    raise InputError(
                        f"method.{setting}: {key!r} names none of the adapted maps. Valid are "
                        f"{', '.join(valid)}, and ends of module paths such as {modules[0]}"
                    )

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


def _names(key: str, module: str, base: BaseModel) -> bool:
    """Return whether a preset, a role or the end of a path names a module."""
    roles = base.target_presets.get(key, (key,))
    return any(path_matches(module, base.roles.get(role, role)) for role in roles)


def _check_applies(fields: "Fields", setting: str, init: str, valid: Sequence[str]) -> None:
    """Refuse a setting of some inits if it is given for another one, or missing for these."""
    value = fields.value(setting)
    if value is not None and init not in valid:
        raise InputError(
            f"method.{setting}={value!r}: init={init} doesn't use it. Set it to null, or choose "
            f"method={' or method='.join(valid)}"
        )
    if value is None and init in valid:
        raise InputError(
            f"method.init={init} needs method.{setting}: give it, or choose method={init}, which "
            "has a default"
        )


def _patterns(fields: "Fields") -> tuple[dict[str, int], dict[str, float]]:
    """Return the ranks and α of the patterns; where `alpha` is a rule, it follows each rank."""
    part, given = fields.optional_part("rank_pattern"), fields.optional_part("alpha_pattern")
    ranks = {key: part.integer(key, at_least=1) for key in part.settings}
    alphas = {key: given.number(key, above=0.0) for key in given.settings}
    if isinstance(rule := fields.value("alpha"), str):
        alphas |= {key: _alpha(rule, rank) for key, rank in ranks.items() if key not in alphas}
    return ranks, alphas


def _alpha(value: Any, rank: int) -> float:
    """Return α from a number or a rule: `2r` is twice the rank, `r` the rank itself."""
    rule = re.fullmatch(r"(\d+(?:\.\d+)?)?\s*r", value) if isinstance(value, str) else None
    number = float(rule.group(1) or 1) * rank if rule else value
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < math.inf:
        return float(number)
    raise InputError(f"method.alpha={value!r}: a positive number, or a rule such as 2r, is needed")
