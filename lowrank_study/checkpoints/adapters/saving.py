"""Writing a LoRA adapter that PEFT loads, whole or not at all.

    save_adapter(
        "adapter", factors={"encoder.layer.0.attention.self.query": (A_RI, B_OR)},
        saved_modules={"classifier.weight": weight, "classifier.bias": bias},
        rank=8, alpha=16, use_rslora=False, dropout=0.0, target_modules=["query", "value"],
        base_model_name="model", task_type="SEQ_CLS",
    )

Axis suffixes: O out features, I in features, R adapter rank.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.errors import InputError
from lowrank_study.files import write_whole

if TYPE_CHECKING:  # reading needs no torch, whose import takes seconds
    import torch

WEIGHTS_NAME = "adapter_model.safetensors"
"""The file PEFT keeps an adapter's tensors in."""

CONFIG_NAME = "adapter_config.json"
"""The file PEFT keeps an adapter's settings in."""

BASE_HASH = "base_sha256"
"""Key in the weights' metadata under which the base model's files are named by their hash."""


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
    fan_in_fan_out: bool = False,
    base_sha256: Sequence[str] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT writes them.

    delta = scaling * B @ A with scaling = alpha / rank, or alpha / sqrt(rank) for rsLoRA. Each
    file appears by one rename, the config last: a folder with a config is complete.

    Args:
        folder: created where needed; must not hold an adapter already.
        factors: module path in the base model to (A_RI, B_OR), of shapes (rank, in) and
            (out, rank); saved in the dtype they have.
        saved_modules: further tensors by their name in the adapted model, such as the full trained
            weights of a head.
        modules_to_save: the modules those parameters belong to, by PEFT's setting of that name.
        rank: R, the same for all modules.
        alpha: numerator of the scaling.
        use_rslora: divide by sqrt(rank) rather than rank.
        dropout: recorded only; it isn't part of the update.
        target_modules: as PEFT's setting; has to match the modules of `factors`.
        base_model_name: what the adapter belongs to.
        task_type: PEFT's, such as "SEQ_CLS", or None.
        fan_in_fan_out: True where the base stores (in, out), as GPT-2's Conv1D does.
        base_sha256: SHA-256 of the base model's files; `open_adapter` then refuses other bases.
        settings: further settings of PEFT's LoRA, such as use_dora.

    Raises:
        InputError: the folder holds an adapter, a factor has another rank or shape, or
            `target_modules` doesn't match a module of `factors`.
    """
    import torch
    from safetensors.torch import save

    folder = Path(folder)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if (folder / name).exists():
            raise InputError(f"{shown(folder)}: holds {name} already; choose another folder")
    tensors: dict[str, torch.Tensor] = {}
    for module, (A_RI, B_OR) in factors.items():
        if A_RI.ndim != 2 or B_OR.ndim != 2 or A_RI.shape[0] != rank or B_OR.shape[1] != rank:
            raise InputError(
                f"module {shown(module)}: factors A {tuple(A_RI.shape)} and B {tuple(B_OR.shape)} "
                f"are not (rank, in) and (out, rank) of rank {rank}; give them so"
            )
        if not any(module == target or module.endswith(f".{target}") for target in target_modules):
            raise InputError(
                f"module {shown(module)} is not one of the target modules "
                f"{', '.join(map(shown, target_modules))}; PEFT would not load it: name it there"
            )
        tensors[f"base_model.model.{module}.lora_A.weight"] = A_RI
        tensors[f"base_model.model.{module}.lora_B.weight"] = B_OR
    for name, weight in saved_modules.items():
        tensors[f"base_model.model.{name}"] = weight
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": use_rslora,
        "lora_dropout": dropout,
        "target_modules": sorted(target_modules),
        "modules_to_save": sorted(modules_to_save) or None,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        **settings,
    }
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    metadata = {"format": "pt"}
    if base_sha256:
        metadata[BASE_HASH] = ",".join(sorted(base_sha256))
    write_whole(folder / WEIGHTS_NAME, save(copies, metadata=metadata))
    write_whole(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())
