"""Check that two checkpoints can be compared: one architecture, and both complete models."""

import re
from collections.abc import Mapping
from typing import Any

from lowrank_study.checkpoints.formats import shown
from lowrank_study.checkpoints.matrices import any_is, models_within
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_SIZES = (
    "gguf_architecture", "hidden_size", "n_embd", "num_attention_heads", "n_head",
    "num_key_value_heads", "num_kv_heads", "head_dim", "multi_query", "new_decoder_architecture",
)  # fmt: skip
"""Settings of config.json that must agree: tensors of equal shape may be split differently."""

_ADAPTER_PART = re.compile(
    r"(?:^|\.)(lora_(?:A|B|a|b|down|up|embedding_A|embedding_B|magnitude_vector)|modules_to_save|"
    r"(?:\w+_)?lora(?=\.(?:down|up)\.)|lora_linear_layer|"
    r"original_module|trainable_tokens_(?:delta|original)|hada_w\d_[ab]|lokr_w\d(?:_[ab])?|vera_lambda_[bd]|boft_R|oft_[rR]|ia3_l)"
    r"(?:\.|$)"
)
"""Parts of names that only an adapter's wrapper puts into a model."""

_WITH_ADAPTERS = ("phi4_multimodal", "phi4mm")
"""Models whose own adapters have these names too."""

_Config = Mapping[str, Any]


def shared_config(before: Weights, after: Weights) -> _Config:
    """Return the one config.json by which both checkpoints are read.

    With two configs, a square (in, out) matrix could be read in two orientations.
    """
    configs = before.config, after.config
    outer = _same_part(*configs)
    for key, left, right in (
        ("model_type", *outer),
        *((key, *both) for both in (outer, *_inner_parts(*outer)) for key in _SIZES),
    ):
        _check_size(key, before, after, (left.get(key), right.get(key)))
    for weights in (before, after):
        if not any_is(configs, _WITH_ADAPTERS):
            _refuse_adapter(weights)
    return max(configs, key=_information)


def _information(config: _Config) -> tuple[int, int]:
    """Rank configs by the models that they name, then by their settings."""
    return sum("model_type" in inner for inner in models_within(config)), len(config)


def _check_size(key: str, before: Weights, after: Weights, sizes: tuple[Any, Any]) -> None:
    left, right = sizes
    if isinstance(left, str | int) and isinstance(right, str | int) and left != right:
        raise InputError(
            f"{key} is {shown(left)} in {shown(before.path)} and {shown(right)} in "
            f"{shown(after.path)}; compare two checkpoints of one architecture"
        )


def _inner_parts(before: _Config, after: _Config) -> list[tuple[_Config, _Config]]:
    """Return the configs of the models inside two others, such as both vision towers."""
    both = [(inner, after.get(key)) for key, inner in before.items()]
    return [
        (left, right)
        for left, right in both
        if isinstance(left, dict) and isinstance(right, dict) and "model_type" in left
    ]


def _same_part(before: _Config, after: _Config) -> tuple[_Config, _Config]:
    """Return the configs of the part that both have: one may be a model inside the other."""
    for inner in models_within(before):
        if inner.get("model_type") == after.get("model_type"):
            return inner, after
    for inner in models_within(after):
        if inner.get("model_type") == before.get("model_type"):
            return before, inner
    return before, after


def is_adapter(weights: Weights) -> bool:
    """Whether a file holds only an adapter, by the names of any format."""
    names = weights.names()
    return any(map(_ADAPTER_PART.search, names)) and not any(".base_layer." in n for n in names)


def _refuse_adapter(weights: Weights) -> None:
    """Refuse a model that was saved with its adapter beside the weights it changes.

    Such a file does not contain the settings that merge it, such as alpha.
    """
    names = weights.names()
    found = next((name for name in names if _ADAPTER_PART.search(name)), None)
    if found is None:
        return
    if is_adapter(weights) and all(map(_ADAPTER_PART.search, names)):
        raise InputError(
            f"{shown(weights.path)}: is an adapter (tensor {shown(found)}), not a whole model; "
            "give adapter=PATH base=PATH"
        )
    raise InputError(
        f"{shown(weights.path)}: was saved with its adapter unmerged (tensor {shown(found)}), but "
        "without the adapter's settings, such as alpha; save model.merge_and_unload() from PEFT, "
        "or save the adapter with model.save_pretrained() and give adapter=PATH base=PATH"
    )
