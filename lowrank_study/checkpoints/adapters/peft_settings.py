"""What an adapter_config.json says about the mathematics, and nothing else of it.

PEFT imports classes that a config names (`auto_mapping`) and runs its patterns; here a config
is data. A setting that changes the update in a way not known here is refused by its name, so
that a newer PEFT can't lead to a wrong number.

    settings = read_settings({"peft_type": "LORA", "r": 8, "lora_alpha": 16}, "adapter_config")
    settings.scalings({"encoder.layer.0.query": 8}, "adapter")[0]     # {"encoder...": 2.0}
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.errors import InputError

_HARMLESS = frozenset(
    (
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
        "lora_bias",
        "ensure_weight_tying",
        "rank_dropout",
        "rank_dropout_scale",
        "module_dropout",
        "vera_dropout",
        "init_weights",
        "token_indices",
        "trainable_token_indices",
    )
)
"""Settings that leave the formula of the update as it is, or are read from the tensors."""

_READ = frozenset(
    (
        "r",
        "lora_alpha",
        "alpha",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "use_effective_conv2d",
        "decompose_both",
        "decompose_factor",
        "projection_prng_key",
        "save_projection",
        "d_initial",
    )
)
"""Settings that are part of the formula, and known here."""

_BASE_UNTOUCHED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base weight as it is."""

_PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "CARTRIDGE",
    "ADAPTION_PROMPT",
)
"""Methods that train a prefix of the input or of the keys and values."""

_INPUT_DEPENDENT = ("XLORA", "POLY", "SHADOW")
"""Methods that mix updates by input or by task, so there is no single ΔW."""

_UNMERGEABLE = {
    "alora_invocation_tokens": "applies the factors only after these tokens; there they are plain "
    "LoRA: to measure them, remove the setting from a copy of the folder",
    "layer_replication": "repeats layers of the base, which then has no W0 of the same name; to "
    "measure the factors alone, remove the setting from a copy of the folder and give no base",
    "use_qalora": "pools the inputs of a GPTQ-quantised base, so a stored weight has no ΔW; give "
    "an adapter of another method",
    "arrow_config": "routes each token between adapters, so there is no single ΔW; give the "
    "adapters one by one",
}
"""Settings that PEFT can't merge, with the reason and the remedy."""

KINDS = ("LORA", "LOHA", "LOKR", "VERA", "TRAINABLE_TOKENS")
_STEPS = 5e6
_MAX_PATTERNS = 10_000
_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one adapter, checked."""

    kind: str
    """`lora`, `dora`, `pissa`, `olora`, `loha`, `lokr`, `vera`, `trainable_tokens`."""
    config: Mapping[str, Any]
    """The whole adapter_config.json."""
    flags: tuple[str, ...]
    """What a report has to say."""

    def scalings(self, ranks: Mapping[str, int], where: str) -> tuple[dict[str, float], list[str]]:
        """Return alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023).

        Args:
            ranks: module to the rank of its factors.
            where: opens the errors.

        Returns:
            The scalings, and remarks for the report. PEFT sorts the patterns when it saves them,
            and uses the first match when it loads them. A module that matches patterns of
            different alpha may thus have been trained with another alpha than it is loaded with.

        Raises:
            InputError: the config gives a module another rank.
        """
        expected, _ = self._resolve("rank_pattern", "r", list(ranks), where)
        for module, rank in ranks.items():
            if rank != expected[module]:
                raise InputError(
                    f"{where}: module {shown(module)} has factors of rank {rank}, but its config "
                    f"says {expected[module]:g}; config and weights are from different runs: "
                    "save it again"
                )
        alphas, unclear = self._resolve("alpha_pattern", "lora_alpha", list(ranks), where)
        root = math.sqrt if self.config.get("use_rslora") else float
        flags = []
        if unclear:
            flags = [
                f"patterns of different alpha match {len(unclear)} modules, such as "
                f"{shown(unclear[0])}; read as PEFT loads them (first in the file)"
            ]
        return {module: alphas[module] / root(rank) for module, rank in ranks.items()}, flags

    def token_indices(self, name: str, where: str) -> list[int]:
        """Return which rows of the embedding `name` were trained."""
        given = self.config.get("token_indices") or self.config.get("trainable_token_indices")
        if isinstance(given, dict):
            module = name.removesuffix(".weight")
            keys = [key for key in given if module == key or module.endswith(f".{key}")]
            given = given[keys[0]] if len(keys) == 1 else None
        if not isinstance(given, list) or not all(type(i) is int and i >= 0 for i in given):
            raise InputError(
                f"{where}: the config doesn't say which tokens of {shown(name)} were trained; "
                "save the adapter again"
            )
        return given

    def _resolve(
        self, table: str, default: str, modules: Sequence[str], where: str
    ) -> tuple[dict[str, float], list[str]]:
        """Look every module up in a pattern table by PEFT's precedence: the first match decides.

        Also returns the modules that other patterns match with another value.
        """
        patterns: list[_Pattern] = []
        deadline = time.thread_time() + _SECONDS
        for key, value in (self.config.get(table) or {}).items():
            patterns.append(_Pattern.compile(key, float(value), f"{where}: {table}"))
            if time.thread_time() > deadline:
                raise InputError(f"{where}: {table}: {shown(key)} {_SLOW}")
        values: dict[str, float] = {}
        unclear: list[str] = []
        for module in modules:
            matching: list[float] = []
            for pattern in patterns:
                if not module.endswith(pattern.tail):
                    continue
                if pattern.steps(module) > _STEPS or time.thread_time() > deadline:
                    raise InputError(f"{where}: {table}: {shown(pattern.key)} {_SLOW}")
                if pattern.regex.match(module):
                    matching.append(pattern.value)
            values[module] = matching[0] if matching else float(self.config[default])
            if len(set(matching)) > 1:
                unclear.append(module)
        return values, unclear


_SLOW = "could take too long to match; write the module names out in it"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """A pattern of a config and how long it may take to match: a hostile one takes years."""

    key: str
    regex: re.Pattern[str]
    repeats: int
    """Parts that may match more or less: each can multiply the steps by the name's length."""
    branches: int
    """Product of the numbers of alternatives."""
    tail: str
    """What every match ends with, to pass over most names quickly."""
    value: float

    @classmethod
    def compile(cls, key: str, value: float, where: str) -> Self:
        r"""Compile as PEFT does, `(.*\.)?(key)$`; nested repeats and lookarounds are refused."""
        bare = key.replace("(?:", "(")
        if len(key) > 500 or re.search(r"\)[*+{?]|\(\?|\\[1-9]", bare):
            raise InputError(f"{where}: the pattern {shown(key)} {_SLOW}")
        try:
            regex = re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError, RecursionError):
            raise InputError(
                f"{where}: {shown(key)} is not a valid pattern; correct it in the config"
            ) from None
        return cls(
            key=key,
            regex=regex,
            repeats=len(re.findall(r"[*+?]|\{\d*,\d*\}", bare)),
            branches=math.prod(part.count("|") + 1 for part in re.split(r"[()]", bare)),
            tail="" if re.search(r"[|\\]", key) else re.findall(r"\w*$", key)[0],
            value=value,
        )

    def steps(self, name: str) -> float:
        """Bound on the steps of matching `name`."""
        return self.branches * float(max(2, len(name))) ** min(self.repeats + 1, 20)


def checked_number(config: Mapping[str, Any], key: str, where: str) -> float:
    """Return a setting that must be a number other than 0.

    Raises:
        InputError: it is not a number, or it is 0.
    """
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-9 < abs(value) < 1e9:
        raise InputError(
            f"{where}: {key} is {shown(value)}, not a number other than 0; save the adapter again"
        )
    return float(value)


def _unread_method(peft_type: Any, where: str) -> InputError:
    """Return the error for an unsupported method; some methods can't be merged either."""
    if peft_type in _PROMPTS:
        return InputError(
            f"{where}: peft_type {peft_type} trains prompts and changes no weight, so there is no "
            f"update to measure; give an adapter that changes weights ({', '.join(KINDS)})"
        )
    if peft_type in _INPUT_DEPENDENT:
        return InputError(
            f"{where}: peft_type {peft_type} changes the weights differently for each input or "
            "task, so there is no single update; give one of the adapters that it mixes, as LORA"
        )
    return InputError(
        f"{where}: peft_type {shown(peft_type)} can't be read exactly (only "
        f"{', '.join(KINDS)} are); merge it into the base with PEFT and compare checkpoints"
    )


def read_settings(config: Mapping[str, Any], where: str) -> Settings:
    """Check a PEFT config and name the kind of adapter it describes.

    Raises:
        InputError: a method or setting whose update isn't computed exactly here.
    """
    peft_type = config.get("peft_type")
    if peft_type not in KINDS:
        raise _unread_method(peft_type, where)
    for key, value in config.items():
        if key in _UNMERGEABLE and value:
            raise InputError(f"{where}: the setting {key} = {shown(value, 60)} {_UNMERGEABLE[key]}")
        if key not in _HARMLESS and key not in _READ and value:
            raise InputError(
                f"{where}: the setting {shown(key)} = {shown(value, 60)} changes the update in a "
                "way that isn't known here; merge it into the base with PEFT and compare "
                "checkpoints"
            )
    kind = str(peft_type).lower()
    if kind in ("lora", "loha", "lokr"):
        checked_number(config, "lora_alpha" if kind == "lora" else "alpha", where)
    if kind not in ("trainable_tokens",):
        checked_number(config, "r", where)
    for table in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(table) or {}
        if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
            raise InputError(
                f"{where}: {table} is no table of at most {_MAX_PATTERNS} patterns; "
                "save the adapter again"
            )
        for key in patterns:
            checked_number(patterns, key, f"{where}: {table}")
    for key in ("use_rslora", "use_dora", "fan_in_fan_out"):
        if config.get(key) not in (True, False, None):
            raise InputError(f"{where}: {key} is {shown(config[key])}, not true or false")
    start = config.get("init_lora_weights")
    if kind == "lora":
        if isinstance(start, str) and start.lower() in ("pissa", "olora"):
            kind = start.lower()
        elif not any(start is value or start == value for value in _BASE_UNTOUCHED):
            raise InputError(
                f"{where}: init_lora_weights {shown(start)} changes the base weights in a way that "
                "can't be repeated exactly; save it with PEFT's "
                "path_initial_model_for_weight_conversion, or merge it in the process that trained "
                "it and compare checkpoints"
            )
        if config.get("use_dora"):
            if kind != "lora":
                raise InputError(
                    f"{where}: DoRA begun from {kind} can't be read exactly; merge it into the "
                    "base with PEFT and compare checkpoints"
                )
            kind = "dora"
    begun: tuple[str, ...] = ()
    if kind in ("pissa", "olora"):
        begun = (f"{kind}: the part taken out of the base weight is computed again in float64",)
    return Settings(kind=kind, config=config, flags=begun)
