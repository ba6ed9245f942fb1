"""The layout of stacked experts: their axes, and how gate and up are fused.

Most models store (experts, out, in). Some store (experts, in, out), and one model may exist in both
layouts: transformers transposes Qwen3-VL's experts when it loads and saves them.

    is_in_out("mlp.experts.w2", {"w2": (8, 768, 2048)}, [{"hidden_size": 2048}])     # True
"""

from collections.abc import Mapping

from lowrank_study.checkpoints.matrices.fused import Models, any_is
from lowrank_study.checkpoints.names import last_part

_IN_OUT = (
    "aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "openai_privacy_filter",
    "qwen3_vl_moe", "qwen3_vl_moe_text",
)  # fmt: skip
"""Models that store (experts, in, out), used if the sizes don't decide."""

_FROM_HIDDEN = (
    "gate_up_proj", "gate_proj", "up_proj", "w1", "w3", "gate_and_up_projs", "fc1", "input_linear",
)  # fmt: skip
_TO_HIDDEN = ("down_proj", "w2", "down_projs", "fc2", "output_linear")

STACKS = (*_FROM_HIDDEN, *_TO_HIDDEN)
"""Last parts of the names of stacked experts."""

_ALTERNATING = ("gpt_oss", "openai_privacy_filter")
"""Models in which rows of gate and up alternate; in all others gate comes first."""


def holds_experts(module: str) -> bool:
    """Whether a tensor of three axes is a stack of experts rather than a convolution."""
    return any(word in module for word in ("experts", "_exps", "moe"))


def is_in_out(module: str, shapes: Mapping[str, tuple[int, ...]], models: Models) -> bool:
    """Whether a stack of experts is stored (experts, in, out).

    The config's hidden size decides if exactly one axis of this stack, or of another stack of the
    same experts, has that size. Otherwise the model_type decides. `shapes` maps the last part of
    the module path to the shape of each stack of these experts.
    """
    if "_exps" in module:  # GGUF is always (out, in)
        return False
    own = last_part(module)
    for leaf in sorted(shapes, key=lambda leaf: leaf != own):
        for hidden in (model.get("hidden_size") for model in models):
            first, second = (size == hidden for size in shapes[leaf][1:])
            if first != second:
                return first if leaf in _FROM_HIDDEN else second
    return any_is(models, _IN_OUT)


def gate_and_up(rows: int, models: Models) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the number of groups of rows in a fused `gate_up_proj`, and each part's rows."""
    if any_is(models, _ALTERNATING):
        return rows // 2, {"gate_proj": (0, 1), "up_proj": (1, 2)}
    return 1, {"gate_proj": (0, rows // 2), "up_proj": (rows // 2, rows)}
