"""Normalise and classify the names of tensors and modules.

Training scripts wrap names, and versions of transformers rename modules. Two checkpoints of one
model then seem to share nothing:

    strip_wrappers(["module._orig_mod.encoder.weight"])
    # {"encoder.weight": "module._orig_mod.encoder.weight"}
    canonical("model.language_model.layers.0.block_sparse_moe.experts.1.w1")
    # "layers.0.mlp.experts.1.gate_proj"
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_study.checkpoints.formats import shown
from lowrank_study.errors import InputError

_LEADING = ("module.", "base_model.model.")
"""Wrappers that are stripped only at the beginning; elsewhere these words can be the model's."""

_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Wrappers that are stripped anywhere, because `torch.compile` and FSDP also wrap single blocks."""

_CONTAINERS = ("model", "language_model", "text_model", "thinker", "vlm", "backbone")
"""Leading parts that only show which model wraps the language model."""

_RENAMED = (
    ("block_sparse_moe.", "mlp."),
    ("mlp.input_linear", "mlp.experts.gate_up_proj"),
    ("mlp.output_linear", "mlp.experts.down_proj"),
    ("mlp.gate.", "mlp.router."),
    ("mlp.router.layer", "mlp.router"),
    ("encoder.layer.", "layers."),
    ("attention.attention.", "attention."),
    ("attention.self.", "attention."),
    ("attention.query", "attention.q_proj"),
    ("attention.key", "attention.k_proj"),
    ("attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    (".output.dense", ".mlp.fc2"),
    (".mlp.fc", ".fc"),
    ("out_proj", "o_proj"),
    ("backbone.conv_encoder.", "backbone."),
    ("embed_out.", "lm_head."),
    (".relative_position_bias.relative_position_bias_table", ".relative_position_bias_table"),
)
"""Parts of names that a later version of transformers renames: mixtures of experts, ViT and DETR
with related models, and GPT-NeoX's head."""

_EXPERT_PARTS = {
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "fc1": "gate_up_proj",
    "fc2": "down_proj",
}
_NORM_ENDS = {"gamma": "weight", "beta": "bias"}
"""TensorFlow's names of a normalisation's parameters."""

_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}

_EMBEDDINGS = (
    "embed_tokens", "word_embeddings", "wte", "embed_in", "shared", "tok_embeddings", "token_embd",
    "output_embeddings",
)  # fmt: skip
_HEADS = ("lm_head", "embed_out", "decoder")
"""Last parts of module paths whose rows are tokens of a vocabulary."""

_BUFFERS = (
    "inv_freq", "original_inv_freq", "freqs_cis", "cos_cached", "sin_cached", "masked_bias",
    "attn_mask", "causal_mask", "relative_position_index",
)  # fmt: skip
"""Last parts of names of constants: positions, masks."""


def strip_name(name: str) -> str:
    """Return `name` without wrapper parts; at least one part is kept."""
    stripped = name
    if any(word in name for word in _ANYWHERE):
        parts = [part for part in name.split(".") if part not in _ANYWHERE]
        stripped = ".".join(parts) if parts else name
    while stripped.startswith(_LEADING) and stripped not in _LEADING:
        prefix = next(word for word in _LEADING if stripped.startswith(word))
        stripped = stripped[len(prefix) :]
    return stripped


def strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Map every stripped name to the name in the file."""
    result: dict[str, str] = {}
    for name in names:
        stripped = strip_name(name)
        if stripped in result:
            raise InputError(
                f"tensors {shown(result[stripped])} and {shown(name)} are both "
                f"{shown(stripped)} without wrapper prefixes; save the unwrapped model once"
            )
        result[stripped] = name
    return result


def canonical(name: str) -> str:
    """Return the form of a name that is the same for all versions of a model's code."""
    for before, after in _RENAMED:
        name = name.replace(before, after)
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _CONTAINERS:
        del parts[0]
    if len(parts) > 2 and parts[0].startswith("vision") and parts[1] == "vision_model":
        del parts[1]
    if "experts" in parts:
        parts = [_EXPERT_PARTS.get(part, part) for part in parts]
    if len(parts) > 1 and re.search("norm", parts[-2], re.IGNORECASE):
        parts[-1] = _NORM_ENDS.get(parts[-1], parts[-1])
    parts[-1] = _WEIGHT_NORM.get(parts[-1], parts[-1])
    return ".".join(parts)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to their canonical form; names that would coincide stay unchanged."""
    keys = {name: canonical(name) for name in names}
    counts = Counter(map(module_of, keys.values()))
    return {name: key if counts[module_of(key)] == 1 else name for name, key in keys.items()}


def module_of(tensor: str) -> str:
    """Return the module path of a weight: its name without `.weight`."""
    return tensor.removesuffix(".weight")


def last_part(name: str) -> str:
    """Return the part of a name after its last dot."""
    return name.rpartition(".")[2]


def is_vocabulary(module: str) -> bool:
    """Whether the rows of a module's weight are tokens of a vocabulary, which may be resized.

    GGUF and Llama's own files call the head just "output".
    """
    return module == "output" or last_part(module) in (*_EMBEDDINGS, *_HEADS)


def is_head(module: str) -> bool:
    """Whether a module turns hidden states into scores of tokens; Whisper's is `proj_out`."""
    return module in ("output", "proj_out") or last_part(module) in _HEADS


def may_be_tied(config: Mapping[str, Any]) -> bool:
    """Whether a model's head may be tied: neither its config nor its language model's denies it."""
    inner = config.get("text_config")
    configs = [config, inner if isinstance(inner, dict) else {}]
    said = [each["tie_word_embeddings"] for each in configs if "tie_word_embeddings" in each]
    return True in said or not said


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a constant of the model's code; GPT-2 calls its causal mask `bias`."""
    leaf = last_part(name)
    return leaf in _BUFFERS or (leaf == "bias" and len(shape) == 4 and shape[:2] == (1, 1))
