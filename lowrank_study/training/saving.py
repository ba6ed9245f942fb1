"""Save and load a trained model: all of it, or its adapter in PEFT's layout.

>>> save_model(model, spec, Path("checkpoint"), base=folder)
>>> load_adapter(fresh, Path("checkpoint"))
"""

import math
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank_study.checkpoints import open_adapter, save_adapter
from lowrank_study.errors import InputError
from lowrank_study.hashing import sha256_of_file
from lowrank_study.methods.lora_layers import add_lora, is_linear, lora_modules
from lowrank_study.spec import Lora, RunSpec
from lowrank_study.training.models import head_names, in_head, train_head


def save_model(model: nn.Module, spec: RunSpec, folder: Path, *, base: Path) -> None:
    """Save a trained model completely, or its adapter with the head in PEFT's layout.

    Parameters
    ----------
    model
        The trained model.
    spec
        The specification of its run.
    folder
        The folder to write to.
    base
        Folder of the pretrained model: the adapter stores the hashes of its files, and is refused
        on another base.
    """
    match spec.method:
        case Lora() as lora:
            heads = head_names(model)
            modules = dict(lora_modules(model))
            saved = {
                name: value.detach()
                for name, value in model.state_dict().items()
                if in_head(name, heads)
            }
            save_adapter(
                folder,
                factors={
                    name: (module.A_RI.detach(), module.B_OR.detach())
                    for name, module in modules.items()
                },
                saved_modules=saved,
                modules_to_save=heads,
                rank=lora.rank,
                alpha=lora.alpha,
                use_rslora=lora.scaling_rule == "alpha_over_sqrt_rank",
                dropout=lora.dropout,
                target_modules=sorted(modules),
                base_model_name=spec.model.name,
                task_type="SEQ_CLS",
                fan_in_fan_out=any(isinstance(m.base, Conv1D) for m in modules.values()),
                base_sha256=[sha256_of_file(file) for file in sorted(base.glob("*.safetensors"))],
            )
        case _:
            model.save_pretrained(folder)  # type: ignore[operator]


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put a saved LoRA adapter, ours or PEFT's, onto a freshly loaded model.

    Raises
    ------
    InputError
        The adapter is of another kind, or contains modules or shapes that the model lacks.
    """
    with open_adapter(folder) as adapter:
        adapter.refuse_partial()
        if adapter.kind != "lora":
            raise InputError(f"{folder}: a {adapter.kind} adapter; load it with PEFT")
        linear = {name for name, module in model.named_modules() if is_linear(module)}
        if unknown := sorted(set(adapter.modules()) - linear):
            raise InputError(f"{folder}: adapts {unknown[0]!r}, not a linear map of the model")
        factors = {name: adapter.factors(name) for name in adapter.modules()}
        saved = {name: torch.from_numpy(adapter.read(name)) for name in adapter.saved_weights()}
    if unknown := sorted(set(saved) - set(model.state_dict())):
        raise InputError(f"{folder}: it saves {unknown[0]!r}, which the model lacks")
    model.load_state_dict(saved, strict=False)
    add_lora(model, {name: _lora_of(f.A_RI.shape[0], f.scaling) for name, f in factors.items()})
    with torch.no_grad():
        for name, module in lora_modules(model):
            module.A_RI.copy_(torch.from_numpy(factors[name].A_RI))
            module.B_OR.copy_(torch.from_numpy(factors[name].B_OR))
    train_head(model)


def _lora_of(rank: int, scaling: float) -> Lora:
    """The properties that a saved adapter states; it does not state how it was trained."""
    return Lora(
        learning_rate=math.nan,
        rank=rank,
        alpha=scaling * rank,
        scaling_rule="alpha_over_rank",
        dropout=0.0,
        init="kaiming",
        target=(),
    )
