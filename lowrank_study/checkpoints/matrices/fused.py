"""Layout of query, key and value in one fused tensor, as each model's own code reads them.

    pieces("qkv_proj", "layers.0.self_attn.qkv_proj", 16, [{"model_type": "phi3", ...}])
    # (1, [("query", 0, 8), ("key", 8, 12), ("value", 12, 16)])

Most models store all rows of the query, then those of key and value. Others store query, key and
value of each attention head together, so the rows form groups.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from lowrank_study.checkpoints.formats.source_file import shown

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose linear maps are stored (in, out)."""

_LEAVES = (
    "c_attn",
    "query_key_value",
    "qkv_proj",
    "qkv",
    "Wqkv",
    "wqkv",
    "W_pack",
    "in_proj_weight",
    "attn_qkv",
)
"""Last parts of names under which any model stores query, key and value together."""

Pieces = tuple[int, list[tuple[str, int, int]]]
"""Number of groups of rows, and for each part its name, first and last row in a group."""
Models = Sequence[Mapping[str, Any]]
"""The config of a model, and those of the models nested in it."""

Sizes = Callable[[str], int]
_Layout = Callable[[Sizes, Mapping[str, Any], int], tuple[int, tuple[str, ...], list[int]] | None]

_LEVELS = 3
"""Deepest nesting of models: a decoder in a thinker in a talking model."""

_QKV = ("query", "key", "value")


def models_within(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a config and those of the models nested in it, such as a vision tower's."""
    found = level = [config]
    for _ in range(_LEVELS):
        level = [inner for outer in level for inner in outer.values() if _is_model(inner)]
        found = found + level
    return found


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("model_type"), str)


def is_fused(leaf: str, models: Models) -> bool:
    """Whether query, key and value share a tensor whose name ends with `leaf`."""
    return leaf in _LEAVES or any((leaf, _model_type(model)) in _LAYOUTS for model in models)


def pieces(leaf: str, module: str, out: int, models: Models) -> Pieces | None:
    """Return the rows of each part of a fused tensor, or None if the layout is unknown.

    Args:
        leaf: last part of the module path.
        module: the module path.
        out: rows of the tensor.
        models: from `models_within`.
    """
    if leaf == "in_proj_weight":  # torch.nn.MultiheadAttention, in any model
        return _checked(_thirds(lambda key: 0, {}, out), out)
    if leaf == "c_attn" and "crossattention" in module.split("."):
        halves = any(_model_type(model) in CONV1D_MODELS for model in models)
        return _checked((1, _QKV[1:], [out // 2] * 2), out) if halves else None
    for model in models:
        layout = _LAYOUTS.get((leaf, _model_type(model)))
        if layout is not None:
            return _checked(layout(_sizes_of(model), model, out), out)
    return None


def unknown_layout(models: Models) -> str:
    """Return the note on a fused tensor that is measured as one matrix."""
    return (
        "query, key and value fused in one tensor, measured as one matrix: how to split it isn't "
        f"known for model_type {shown(models[0].get('model_type'))}"
    )


def _model_type(settings: Mapping[str, Any]) -> str:
    model_type = settings.get("model_type")
    architecture = settings.get("architecture")
    if model_type in (None, "timm_wrapper") and isinstance(architecture, str):
        return "timm" if architecture.startswith(_TIMM_THIRDS) else ""
    return model_type if isinstance(model_type, str) else ""


def _sizes_of(settings: Mapping[str, Any]) -> Sizes:
    def size(key: str) -> int:
        value = settings.get(key)
        return value if type(value) is int and value > 0 else 0

    return size


def _checked(found: tuple[int, tuple[str, ...], list[int]] | None, out: int) -> Pieces | None:
    if found is None:
        return None
    groups, names, sizes = found
    if not groups or groups * sum(sizes) != out or 0 in sizes:
        return None
    ends = list(accumulate(sizes))
    return groups, [
        (name, end - width, end) for name, width, end in zip(names, sizes, ends, strict=True)
    ]


def _heads(size: Sizes) -> int:
    return size("num_attention_heads") or size("n_head") or size("n_heads")


def _head(size: Sizes) -> int:
    """Return the rows of one attention head; 0 if unknown."""
    hidden = size("hidden_size") or size("n_embd") or size("d_model")
    heads = _heads(size)
    return size("head_dim") or size("kv_channels") or (hidden // heads if heads else 0)


def _thirds(size: Sizes, settings: Mapping[str, Any], out: int) -> tuple[int, Any, list[int]]:
    return 1, _QKV, [out // 3] * 3


def _by_head(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    heads = _heads(size)
    return (heads, _QKV, [out // heads // 3] * 3) if heads else None


def _query_then_key_value(size: Sizes, key_heads: int) -> Any:
    head = _head(size)
    return 1, _QKV, [_heads(size) * head, key_heads * head, key_heads * head]


def _by_key_head(size: Sizes, key_heads: int) -> Any:
    """Return the layout in groups: query heads, their key head, its value head."""
    if not key_heads:
        return None
    head = _head(size)
    return key_heads, _QKV, [_heads(size) // key_heads * head, head, head]


def _phi3(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    return _query_then_key_value(size, size("num_key_value_heads") or _heads(size))


def _falcon(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    if settings.get("new_decoder_architecture"):
        return _by_key_head(size, size("num_kv_heads"))
    if settings.get("multi_query", True):
        return _query_then_key_value(size, 1)
    return _by_head(size, settings, out)


def _bigcode(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    if settings.get("multi_query", True):
        return _query_then_key_value(size, 1)
    return _by_head(size, settings, out)


def _chatglm(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    if settings.get("multi_query_attention"):
        return _query_then_key_value(size, size("multi_query_group_num"))
    return _by_head(size, settings, out)


def _internlm2(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    return _by_key_head(size, size("num_key_value_heads") or _heads(size))


def _dbrx(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    attention = settings.get("attn_config")
    keys = attention.get("kv_n_heads", 1) if isinstance(attention, dict) else 1
    return _query_then_key_value(size, keys if type(keys) is int else 0)


def _codegen(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    """Four groups, as it was trained on four devices; the value comes before the key."""
    return 4, ("query", "value", "key"), [out // 12] * 3


def _gate_up(size: Sizes, settings: Mapping[str, Any], out: int) -> Any:
    return 1, ("gate", "up"), [out // 2] * 2


_TIMM_THIRDS = ("vit_", "deit", "beit", "eva", "swin")
"""Prefixes of timm architectures whose `qkv` has three equal parts."""

_VISION_TOWERS = (
    "blip", "blip_vision_model", "blip-2", "blip_2_vision_model", "ernie4_5_vl_moe", "florence2",
    "florence_vision", "glm4v", "glm4v_moe", "glm_ocr", "got_ocr2", "hiera", "instructblip",
    "instructblip_vision_model", "intern_vit_6b", "mgp-str", "qwen2_vl", "qwen2_5_vl", "qwen3_5",
    "qwen3_5_moe", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe", "sam", "sam2", "sam_hq",
    "sam_vision_model", "timesformer", "timm", "vitdet",
)  # fmt: skip

_LAYOUTS: dict[tuple[str, str], _Layout] = {
    **{("c_attn", model): _thirds for model in (*CONV1D_MODELS, "qwen")},
    **{("Wqkv", model): _thirds for model in ("modernbert", "mpt", "nomic_bert")},
    **{("qkv", model): _thirds for model in _VISION_TOWERS},
    ("W_pack", "baichuan"): _thirds,
    **{
        ("query_key_value", model): _by_head
        for model in ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon")
    },
    ("in_proj", "deberta"): _by_head,
    ("qkv_proj", "minimax"): _by_head,
    ("qkv_proj", "codegen"): _codegen,
    **{("qkv_proj", model): _phi3 for model in ("phi3", "phi4_multimodal")},
    ("gate_up_proj", "phi3"): _gate_up,
    ("c_attn", "gpt_bigcode"): _bigcode,
    ("query_key_value", "falcon"): _falcon,
    ("query_key_value", "chatglm"): _chatglm,
    ("wqkv", "internlm2"): _internlm2,
    ("Wqkv", "dbrx"): _dbrx,
}
"""Last part of the name and model_type to the layout in the model's own code."""
