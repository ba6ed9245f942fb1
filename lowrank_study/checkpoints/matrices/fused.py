"""The layout of query, key and value in one fused tensor, as each model's own code reads it.

    split("layers.0.self_attn.qkv_proj", 16, [{"model_type": "phi3", ...}])
    # (1, [("query", 0, 8), ("key", 8, 12), ("value", 12, 16)])

Most models store all rows of the query, then those of key and value. Others store query, key and
value of each attention head together, so the rows form groups. A model is one row of `_LAYOUTS`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lowrank_study.checkpoints.formats import shown
from lowrank_study.checkpoints.names import last_part

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose linear maps are stored (in, out)."""

_LEAVES = (
    "c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv", "wqkv", "W_pack", "in_proj_weight",
    "attn_qkv",
)  # fmt: skip
"""Last parts of names under which any model stores query, key and value together."""

Models = Sequence[Mapping[str, Any]]
"""The config of a model, and those of the models nested in it."""

Parts = tuple[int, list[tuple[str, int, int]]]
"""The number of groups of rows; for each part its name, first and last row in a group."""

_Sizes = tuple[int, tuple[str, ...], list[int]]
"""The number of groups of rows, and the names and rows of the parts of a group."""

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


def any_is(models: Models, types: Collection[Any]) -> bool:
    """Whether the model_type of any model is one of these."""
    return any(model.get("model_type") in types for model in models)


def is_fused(leaf: str, models: Models) -> bool:
    """Whether query, key and value share a tensor whose name ends with `leaf`."""
    return leaf in _LEAVES or any((leaf, _model_type(model)) in _LAYOUTS for model in models)


def split(module: str, out: int, models: Models) -> Parts | None:
    """Return the rows of each part of a fused tensor of `out` rows; None for an unknown layout."""
    leaf = last_part(module)
    if leaf == "in_proj_weight":  # torch.nn.MultiheadAttention, in any model
        return _checked(_thirds(_Attention({}, out)), out)
    if leaf == "c_attn" and "crossattention" in module.split("."):
        known = any(_model_type(model) in CONV1D_MODELS for model in models)
        return _checked((1, _QKV[1:], [out // 2] * 2), out) if known else None
    for model in models:
        layout = _LAYOUTS.get((leaf, _model_type(model)))
        if layout is not None:
            return _checked(layout(_Attention(model, out)), out)
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


def _checked(found: _Sizes | None, out: int) -> Parts | None:
    """Return the ranges of rows of a layout, or None if they don't fill the tensor."""
    if found is None:
        return None
    groups, names, sizes = found
    if not groups or groups * sum(sizes) != out or 0 in sizes:
        return None
    ends = list(accumulate(sizes))
    return groups, [
        (name, end - width, end) for name, width, end in zip(names, sizes, ends, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Attention:
    """The sizes of a model's attention, by the names that configs use; 0 if unknown."""

    settings: Mapping[str, Any]
    out: int
    """Rows of the fused tensor."""

    def size(self, *keys: str) -> int:
        """Return the first of these settings that is a positive integer."""
        values = (self.settings.get(key) for key in keys)
        return next((value for value in values if type(value) is int and value > 0), 0)

    @property
    def heads(self) -> int:
        return self.size("num_attention_heads", "n_head", "n_heads")

    @property
    def head(self) -> int:
        """Rows of one attention head."""
        hidden = self.size("hidden_size", "n_embd", "d_model")
        per_head = hidden // self.heads if self.heads else 0
        return self.size("head_dim", "kv_channels") or per_head

    @property
    def key_heads(self) -> int:
        return self.size("num_key_value_heads") or self.heads


_Layout = Callable[[_Attention], _Sizes | None]


def _thirds(model: _Attention) -> _Sizes:
    return 1, _QKV, [model.out // 3] * 3


def _by_head(model: _Attention) -> _Sizes | None:
    return (model.heads, _QKV, [model.out // model.heads // 3] * 3) if model.heads else None


def _query_then_key_value(model: _Attention, key_heads: int) -> _Sizes:
    head = model.head
    return 1, _QKV, [model.heads * head, key_heads * head, key_heads * head]


def _by_key_head(model: _Attention, key_heads: int) -> _Sizes | None:
    """Return the layout in groups: query heads, their key head, its value head."""
    if not key_heads:
        return None
    head = model.head
    return key_heads, _QKV, [model.heads // key_heads * head, head, head]


def _falcon(model: _Attention) -> _Sizes | None:
    if model.settings.get("new_decoder_architecture"):
        return _by_key_head(model, model.size("num_kv_heads"))
    return _multi_query(model)


def _multi_query(model: _Attention) -> _Sizes | None:
    shared = model.settings.get("multi_query", True)
    return _query_then_key_value(model, 1) if shared else _by_head(model)


def _chatglm(model: _Attention) -> _Sizes | None:
    if model.settings.get("multi_query_attention"):
        return _query_then_key_value(model, model.size("multi_query_group_num"))
    return _by_head(model)


def _dbrx(model: _Attention) -> _Sizes:
    attention = model.settings.get("attn_config")
    keys = attention.get("kv_n_heads", 1) if isinstance(attention, dict) else 1
    return _query_then_key_value(model, keys if type(keys) is int else 0)


def _codegen(model: _Attention) -> _Sizes:
    """Return four groups, one per device of its training; the value comes before the key."""
    return 4, ("query", "value", "key"), [model.out // 12] * 3


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
    (leaf, model_type): layout
    for leaf, types, layout in (
        ("c_attn", (*CONV1D_MODELS, "qwen"), _thirds),
        ("Wqkv", ("modernbert", "mpt", "nomic_bert"), _thirds),
        ("qkv", _VISION_TOWERS, _thirds),
        ("W_pack", ("baichuan",), _thirds),
        ("query_key_value", ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon"), _by_head),
        ("in_proj", ("deberta",), _by_head),
        ("qkv_proj", ("minimax",), _by_head),
        ("qkv_proj", ("codegen",), _codegen),
        (
            "qkv_proj",
            ("phi3", "phi4_multimodal"),
            lambda model: _query_then_key_value(model, model.key_heads),
        ),
        ("gate_up_proj", ("phi3",), lambda model: (1, ("gate", "up"), [model.out // 2] * 2)),
        ("c_attn", ("gpt_bigcode",), _multi_query),
        ("query_key_value", ("falcon",), _falcon),
        ("query_key_value", ("chatglm",), _chatglm),
        ("wqkv", ("internlm2",), lambda model: _by_key_head(model, model.key_heads)),
        ("Wqkv", ("dbrx",), _dbrx),
    )
    for model_type in types
}
"""The last part of the name and the model_type to the layout in the model's own code."""
