"""Read a LoRA converted for llama.cpp (`convert_lora_to_gguf.py`): GGUF, general.type adapter.

    blk.0.attn_q.weight.lora_a    A (rank, in)
    blk.0.attn_q.weight.lora_b    B (out, rank)
    token_embd.weight.lora_a      B of an embedding's update, stored (tokens, rank)
    token_embd.weight.lora_b      A of it, stored (dimensions, rank)

llama.cpp's factor is adapter.lora.alpha / rank, or 1 if alpha is 0 or missing. Names and the order
of rows (of Llama's query and key) are those of a converted base, so only a base in GGUF can be
compared.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py, and
llama-adapter.h.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowrank_study.checkpoints.adapters.content import Content, Sorter
from lowrank_study.checkpoints.formats import shown
from lowrank_study.checkpoints.names import module_of
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_PARTS = {".lora_a": "A", ".lora_b": "B"}
_EMBEDDING = "token_embd"


def read_gguf_lora(weights: Weights, config: Mapping[str, Any], where: str) -> Content:
    """Sort the tensors of a LoRA in GGUF; the file itself contains the settings."""
    settings = weights.metadata
    _refuse_other_types(settings, where)
    sorter = Sorter(weights, where, needed={"A", "B"})
    for name in weights.names():
        end = next((end for end in _PARTS if name.endswith(end)), None)
        if end is None:
            sorter.leave_out(name, "not a factor of a LoRA; llama.cpp ignores it too")
        elif len(weights.shape(name)) > 2:
            sorter.leave_out(name, "factors of a stack of experts")
        else:
            module = module_of(name.removesuffix(end))
            part = _PARTS[end]
            if module == _EMBEDDING:
                sorter.add(module, "B" if part == "A" else "A", name, transposed=part == "B")
            else:
                sorter.add(module, part, name)
    modules = sorter.whole_modules()
    if not modules:
        raise InputError(
            f"{where}: holds no factors that can be read (no lora_a and lora_b); give a LoRA that "
            "convert_lora_to_gguf.py wrote"
        )
    ranks = sorter.ranks(modules)
    alpha = settings.get("adapter.lora.alpha")
    if alpha is not None and (type(alpha) not in (int, float) or not abs(alpha) < 1e9):
        raise InputError(
            f"{where}: adapter.lora.alpha is {shown(alpha)}, not a number below 1e9; "
            "convert the adapter again"
        )
    scalings = {module: alpha / rank if alpha else 1.0 for module, rank in ranks.items()}
    return replace(
        sorter.content("gguf", config, modules, scalings),
        embeddings=frozenset({_EMBEDDING} & modules.keys()),
        assumed=() if alpha else ("no alpha in the file: taken as its rank, as llama.cpp does",),
    )


def _refuse_other_types(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a GGUF file that isn't a plain LoRA."""
    if settings.get("general.type") != "adapter":
        raise InputError(
            f"{where}: is a whole model in GGUF (general.type "
            f"{shown(settings.get('general.type'))}), not an adapter; compare it with its base as "
            "two checkpoints"
        )
    form = settings.get("adapter.type")
    if "adapter.alora.invocation_tokens" in settings:
        form = "alora (applied only after its invocation tokens)"
    if form != "lora":
        raise InputError(
            f"{where}: is an adapter of type {shown(form)}, not lora; give the PEFT folder that it "
            "was converted from"
        )
