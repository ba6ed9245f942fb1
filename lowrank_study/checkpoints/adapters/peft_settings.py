"""Read what an adapter_config.json says about the mathematics of an update.

PEFT imports classes that a config names (`auto_mapping`) and runs its patterns; here a config
is data. An unknown setting that could change the update is refused by name, so that a newer PEFT
can't lead to a wrong number.

    settings = read_settings({"peft_type": "LORA", "r": 8, "lora_alpha": 16}, "adapter_config")
    settings.scalings({"encoder.layer.0.query": 8}, "adapter")[0]     # {"encoder...": 2.0}
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowrank_study.checkpoints.adapters.content import refuse_other_ranks
from lowrank_study.checkpoints.adapters.kinds import KINDS
from lowrank_study.checkpoints.adapters.patterns import match_patterns
from lowrank_study.checkpoints.formats import shown
from lowrank_study.errors import InputError

_HARMLESS = frozenset(
    (
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "target_modules", "exclude_modules", "lora_dropout",
        "fan_in_fan_out", "bias", "modules_to_save", "layers_to_transform", "layers_pattern",
        "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "qalora_group_size", "runtime_config", "lora_bias", "ensure_weight_tying", "rank_dropout",
        "rank_dropout_scale", "module_dropout", "vera_dropout", "init_weights", "token_indices",
        "trainable_token_indices",
    )
)  # fmt: skip
"""Settings that don't change the formula of the update, or are read from the tensors."""

_READ = frozenset(
    (
        "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
        "init_lora_weights", "use_effective_conv2d", "decompose_both", "decompose_factor",
        "projection_prng_key", "save_projection", "d_initial",
    )
)  # fmt: skip
"""Settings that are part of the formula, and known here."""

_BASE_UNTOUCHED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base weight as it is."""

_TAKES_FROM_BASE = ("pissa", "olora")
"""Values of init_lora_weights that subtract a part from the base weight."""

_PROMPTS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT",
)  # fmt: skip
"""Methods that train a prefix of the input or of the keys and values."""

_INPUT_DEPENDENT = ("XLORA", "POLY", "SHADOW")
"""Methods that mix updates by input or by task, so there is no single ΔW."""

_UNMERGEABLE = {
    "alora_invocation_tokens": "applies the factors only after these tokens, where they are plain "
    "LoRA: to measure them, remove the setting from a copy of the folder",
    "layer_replication": "repeats layers of the base, which then has no W0 of the same name; to "
    "measure the factors alone, remove the setting from a copy of the folder and give no base",
    "use_qalora": "pools the inputs of a GPTQ-quantised base, so a stored weight has no ΔW; give "
    "an adapter of another method",
    "arrow_config": "routes each token between adapters, so there is no single ΔW; give the "
    "adapters one by one",
}
"""Settings that PEFT can't merge, with the reason and the remedy."""

PEFT_TYPES = ("LORA", "LOHA", "LOKR", "VERA", "TRAINABLE_TOKENS")

_MERGE = "merge it into the base with PEFT and compare checkpoints"
_MAX_PATTERNS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftSettings:
    """The settings of one adapter, checked."""

    kind: str
    """A key of `KINDS`."""
    config: Mapping[str, Any]
    flags: tuple[str, ...]
    """Remarks for the report."""

    def scalings(self, ranks: Mapping[str, int], where: str) -> tuple[dict[str, float], list[str]]:
        """Return alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023).

        PEFT sorts the patterns when it saves them, and uses the first match when it loads them. A
        module that matches patterns of different alpha may thus have been trained with another
        alpha than it is loaded with; the second part, remarks for the report, says so.
        """
        expected, _ = self._resolve("rank_pattern", "r", ranks, where)
        refuse_other_ranks(ranks, expected, where)
        alphas, unclear = self._resolve("alpha_pattern", "lora_alpha", ranks, where)
        root = math.sqrt if self.config.get("use_rslora") else float
        flags = []
        if unclear:
            flags = [
                f"patterns of different alpha match {len(unclear)} modules, such as "
                f"{shown(unclear[0])}; read as PEFT loads them (first in the file)"
            ]
        return {module: alphas[module] / root(rank) for module, rank in ranks.items()}, flags

    def _resolve(
        self, table: str, default: str, ranks: Mapping[str, int], where: str
    ) -> tuple[dict[str, float], list[str]]:
        patterns, otherwise = self.config.get(table) or {}, float(self.config[default])
        return match_patterns(patterns, otherwise, list(ranks), f"{where}: {table}")

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


def read_settings(config: Mapping[str, Any], where: str) -> PeftSettings:
    """Check a PEFT config and name the kind of adapter it describes."""
    peft_type = config.get("peft_type")
    if peft_type not in PEFT_TYPES:
        raise _unread_method(peft_type, where)
    _refuse_unknown(config, where)
    kind = str(peft_type).lower()
    _check_values(kind, config, where)
    if kind == "lora":
        kind = _lora_kind(config, where)
    flags: tuple[str, ...] = ()
    if kind in _TAKES_FROM_BASE:
        flags = (f"{kind}: the part taken out of the base weight is computed again in float64",)
    return PeftSettings(kind=kind, config=config, flags=flags)


def _unread_method(peft_type: Any, where: str) -> InputError:
    """Return the error for an unsupported method; some methods can't be merged either."""
    if peft_type in _PROMPTS:
        return InputError(
            f"{where}: peft_type {peft_type} trains prompts and changes no weight, so there is no "
            f"update to measure; give an adapter that changes weights ({', '.join(PEFT_TYPES)})"
        )
    if peft_type in _INPUT_DEPENDENT:
        return InputError(
            f"{where}: peft_type {peft_type} changes the weights differently for each input or "
            "task, so there is no single update; give one of the adapters that it mixes, as LORA"
        )
    return InputError(
        f"{where}: peft_type {shown(peft_type)} can't be read exactly (only "
        f"{', '.join(PEFT_TYPES)} are); {_MERGE}"
    )


def _refuse_unknown(config: Mapping[str, Any], where: str) -> None:
    """Refuse settings that can't be merged, or whose effect isn't known."""
    for key, value in config.items():
        if key in _UNMERGEABLE and value:
            raise InputError(f"{where}: the setting {key} = {shown(value, 60)} {_UNMERGEABLE[key]}")
        if key not in _HARMLESS and key not in _READ and value:
            raise InputError(
                f"{where}: the setting {shown(key)} = {shown(value, 60)} changes the update in an "
                f"unknown way; {_MERGE}"
            )


def _check_values(kind: str, config: Mapping[str, Any], where: str) -> None:
    """Refuse settings of the wrong type."""
    for key in KINDS[kind].numbers:
        checked_number(config, key, where)
    for table in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(table) or {}
        if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
            raise InputError(
                f"{where}: {table} is not a table of at most {_MAX_PATTERNS} patterns; "
                "save the adapter again"
            )
        for key in patterns:
            checked_number(patterns, key, f"{where}: {table}")
    for key in ("use_rslora", "use_dora", "fan_in_fan_out"):
        if config.get(key) not in (True, False, None):
            raise InputError(
                f"{where}: {key} is {shown(config[key])}, not true or false; save the adapter again"
            )


def checked_number(config: Mapping[str, Any], key: str, where: str) -> float:
    """Return a setting that must be a number other than 0."""
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-9 < abs(value) < 1e9:
        raise InputError(
            f"{where}: {key} is {shown(value)}, not a number other than 0; save the adapter again"
        )
    return float(value)


def _lora_kind(config: Mapping[str, Any], where: str) -> str:
    """Return `lora`, `dora`, `pissa` or `olora`."""
    start = config.get("init_lora_weights")
    kind = "lora"
    if isinstance(start, str) and start.lower() in _TAKES_FROM_BASE:
        kind = start.lower()
    elif not any(start is value or start == value for value in _BASE_UNTOUCHED):
        raise InputError(
            f"{where}: init_lora_weights {shown(start)} changes the base weights in a way that "
            "can't be repeated exactly; save it with PEFT's "
            "path_initial_model_for_weight_conversion, or merge it in the process that trained "
            "it and compare checkpoints"
        )
    if not config.get("use_dora"):
        return kind
    if kind != "lora":
        raise InputError(f"{where}: DoRA that starts from {kind} can't be read exactly; {_MERGE}")
    return "dora"
