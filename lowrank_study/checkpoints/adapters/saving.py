"""Write a LoRA adapter that PEFT loads, completely or not at all.

    save_adapter(
        "adapter", factors={"encoder.layer.0.attention.self.query": (A_RI, B_OR)},
        saved_modules={"classifier.weight": weight, "classifier.bias": bias},
        rank=8, alpha=16, use_rslora=False, dropout=0.0, target_modules=["query", "value"],
        base_model_name="model", task_type="SEQ_CLS",
    )

Axis suffixes: O out features, I in features, R adapter rank.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lowrank_study.checkpoints.formats import CONFIG_NAME, shown
from lowrank_study.errors import InputError
from lowrank_study.files import write_whole

if TYPE_CHECKING:  # reading needs no torch, whose import takes seconds
    import torch

WEIGHTS_NAME = "adapter_model.safetensors"
"""The file with the tensors of a PEFT adapter."""

BASE_HASH = "base_sha256"
"""Key in the weights' metadata for the hashes of the base model's files."""

_PREFIX = "base_model.model."


def save_adapter(
    folder: str | Path,
    *,
    factors: Mapping[str, "tuple[torch.Tensor, torch.Tensor]"],
    saved_modules: "Mapping[str, torch.Tensor]",
    modules_to_save: Sequence[str],
    rank: int,
    alpha: float,
    use_rslora: bool,
    dropout: float,
    target_modules: Sequence[str],
    base_model_name: str,
    task_type: str | None,
    embeddings: Collection[str] = (),
    rank_pattern: Mapping[str, int] = MappingProxyType({}),
    alpha_pattern: Mapping[str, float] = MappingProxyType({}),
    fan_in_fan_out: bool = False,
    base_sha256: Sequence[str] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT writes them.

    delta = scaling * B @ A with scaling = alpha / rank, or alpha / sqrt(rank) for rsLoRA. A folder
    that holds an adapter, and factors that PEFT would not load, are refused.

    Args:
        factors: module path in the base model to (A_RI, B_OR); the dtype is kept.
        saved_modules: further tensors by their name in the adapted model, such as a trained head's.
        modules_to_save: the modules of the tensors in `saved_modules` that were trained in full.
        rank_pattern: module path to a rank other than `rank`; `alpha_pattern` does so for α.
        dropout: only recorded, as are `base_model_name` and `task_type`.
        target_modules: PEFT's setting; must match the modules of `factors`.
        embeddings: the modules of `factors` that are embeddings, whose "in" is the vocabulary.
        fan_in_fan_out: whether the base stores (in, out), as GPT-2's Conv1D does.
        base_sha256: SHA-256 of the base model's files; `open_adapter` then refuses other bases.
        settings: further settings of PEFT's LoRA, such as use_dora.
    """
    _check_factors(factors, {**dict.fromkeys(factors, rank), **rank_pattern}, target_modules)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _written(alpha),
        "use_rslora": use_rslora,
        "lora_dropout": dropout,
        "target_modules": sorted(target_modules),
        "modules_to_save": sorted(modules_to_save) or None,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "init_lora_weights": True,
        "rank_pattern": {name: of for name, of in rank_pattern.items() if of != rank},
        "alpha_pattern": {name: _written(of) for name, of in alpha_pattern.items() if of != alpha},
        **settings,
    }
    tensors = _named_tensors(factors, embeddings, saved_modules)
    _write(Path(folder), tensors, config, base_sha256)


def _write(
    folder: Path,
    tensors: "Mapping[str, torch.Tensor]",
    config: Mapping[str, Any],
    base_sha256: Sequence[str],
) -> None:
    """Write each file by one rename, the config last: a folder with a config is complete."""
    from safetensors.torch import save

    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if (folder / name).exists():
            raise InputError(f"{shown(folder)}: holds {name} already; choose another folder")
    metadata = {"format": "pt"}
    if base_sha256:
        metadata[BASE_HASH] = ",".join(sorted(base_sha256))
    write_whole(folder / WEIGHTS_NAME, save(tensors, metadata=metadata))
    write_whole(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())


def _written(alpha: float) -> float:
    """Return α as PEFT writes it, without a fraction of zero."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _check_factors(
    factors: Mapping[str, "tuple[torch.Tensor, torch.Tensor]"],
    ranks: Mapping[str, int],
    target_modules: Sequence[str],
) -> None:
    for module, (A_RI, B_OR) in factors.items():
        rank = ranks[module]
        if A_RI.ndim != 2 or B_OR.ndim != 2 or A_RI.shape[0] != rank or B_OR.shape[1] != rank:
            raise InputError(
                f"module {shown(module)}: factors A {tuple(A_RI.shape)} and B {tuple(B_OR.shape)} "
                f"are not (rank, in) and (out, rank) of rank {rank}; give them in these shapes"
            )
        if not any(module == target or module.endswith(f".{target}") for target in target_modules):
            raise InputError(
                f"module {shown(module)} is not one of the target modules "
                f"{', '.join(map(shown, target_modules))}; add it there, or PEFT does not load it"
            )


def _named_tensors(
    factors: Mapping[str, "tuple[torch.Tensor, torch.Tensor]"],
    embeddings: Collection[str],
    saved_modules: "Mapping[str, torch.Tensor]",
) -> "dict[str, torch.Tensor]":
    """Return contiguous copies of all tensors, under PEFT's names."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for module, (A_RI, B_OR) in factors.items():
        name = "lora_embedding_{}" if module in embeddings else "lora_{}.weight"
        tensors[f"{_PREFIX}{module}.{name.format('A')}"] = A_RI
        tensors[f"{_PREFIX}{module}.{name.format('B')}"] = B_OR
    for name, weight in saved_modules.items():
        tensors[f"{_PREFIX}{name}"] = weight
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
