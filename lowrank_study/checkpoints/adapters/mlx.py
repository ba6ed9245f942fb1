"""Read adapters of Apple's MLX (`mlx_lm.lora`): adapters.safetensors and adapter_config.json.

    model.layers.0.self_attn.q_proj.lora_a    A, stored (in, rank)
    model.layers.0.self_attn.q_proj.lora_b    B, stored (rank, out)
    model.layers.0.self_attn.q_proj.m         DoRA's magnitudes

delta = scale * (lora_a @ lora_b)^T, without the transpose for an embedding. Until 2024 the settings
also had an alpha, and the factor was scale * alpha / rank.

Source: https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/tuner/lora.py
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowrank_study.checkpoints.adapters.content import Content, Sorter, refuse_other_ranks
from lowrank_study.checkpoints.adapters.peft_settings import checked_number
from lowrank_study.checkpoints.formats import CONFIG_NAME, shown
from lowrank_study.checkpoints.names import is_vocabulary
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_KINDS = ("lora", "dora", "full")
_PARTS = {".lora_a": "A", ".lora_b": "B", ".m": "magnitude"}


def read_mlx(weights: Weights, config: Mapping[str, Any], where: str) -> Content:
    """Sort the tensors of an adapter that mlx_lm saved."""
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise InputError(
            f"{where}: {CONFIG_NAME}: fine_tune_type {shown(kind)} can't be read exactly (only "
            f"{', '.join(_KINDS)} are); fuse it with mlx_lm.fuse and compare checkpoints"
        )
    needed = {"A", "B", "magnitude"} if kind == "dora" else {"A", "B"}
    sorter = Sorter(weights, where, needed=needed)
    embeddings: set[str] = set()
    saved: dict[str, str] = {}
    for name in weights.names():
        end = next((end for end in _PARTS if name.endswith(end)), None)
        if end is None or kind == "full":
            saved[name] = name
        elif len(weights.shape(name)) > 2:
            sorter.leave_out(name, "factors of a stack of experts")
        else:
            module, part = name.removesuffix(end), _PARTS[end]
            embedding = is_vocabulary(module) and not module.endswith(("lm_head", "output"))
            if embedding:
                embeddings.add(module)
                part = {"A": "B", "B": "A"}.get(part, part)
            sorter.add(module, part, name, transposed=part != "magnitude" and not embedding)
    modules = sorter.whole_modules()
    if not (modules or saved):
        raise InputError(
            f"{where}: holds no factors of an MLX adapter (no lora_a and lora_b); give an adapter "
            "that mlx_lm saved"
        )
    scale, flags = _scale(config, sorter.ranks(modules), where)
    return replace(
        sorter.content(
            "dora" if kind == "dora" else "lora", config, modules, dict.fromkeys(modules, scale)
        ),
        embeddings=frozenset(embeddings),
        saved=saved,
        flags=("MLX adapter", *flags),
    )


def _scale(
    config: Mapping[str, Any], ranks: Mapping[str, int], where: str
) -> tuple[float, list[str]]:
    """Return the factor of all modules, and remarks for the report."""
    if not ranks:
        return 1.0, []
    settings = config.get("lora_parameters")
    if not isinstance(settings, dict):
        raise InputError(
            f"{where}: {CONFIG_NAME}: lora_parameters is {shown(settings, 60)}, so the scale "
            "is unknown; save the adapter again with mlx_lm"
        )
    of_config = f"{where}: {CONFIG_NAME}: lora_parameters"
    scale, rank = (checked_number(settings, key, of_config) for key in ("scale", "rank"))
    refuse_other_ranks(ranks, dict.fromkeys(ranks, rank), where)
    if settings.get("alpha") is None:
        return scale, []
    return scale * (checked_number(settings, "alpha", of_config) / rank), [
        "its config has an alpha (mlx_lm until 2024): read as scale * alpha / rank"
    ]
