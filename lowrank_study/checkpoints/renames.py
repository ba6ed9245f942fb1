"""Names of one weight in the layouts that transformers has used for it.

Since 4.52 a vision-language model keeps its language model in `model.language_model`; before, and
in most files on the hub, it was `model` or `language_model.model`. An adapter has the names of
the live model, its base those of the file:

    counterparts(["model.language_model.layers.0.q.weight"], ["model.layers.0.q.weight"])
    # {"model.language_model.layers.0.q.weight": "model.layers.0.q.weight"}

Source: transformers/conversion_mapping.py (5.24), which renames files as they are loaded.
"""

import re
from collections.abc import Iterable

_HOLDERS = re.compile(r"^(?:(?:model|language_model|thinker|vlm|backbone)\.)+(?=.)")
"""Leading parts that only say which module holds the rest; layouts differ in them most."""

_RENAMED = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"\bvision_tower\.vision_model\.", "vision_tower."),  # CLIP and SigLIP within a VLM
        (r"^embed_out\b", "lm_head"),  # GPT-NeoX
        (r"\bblock_sparse_moe\.", "mlp."),  # Mixtral, Phi-MoE
        (r"\bmlp\.gate\.", "mlp.router."),
        (r"\bmlp\.router\.layer\b", "mlp.router"),  # Granite's mixtures of experts
        (r"\bmlp\.input_linear\b", "mlp.experts.gate_up_proj"),
        (r"\bmlp\.output_linear\b", "mlp.experts.down_proj"),
        (r"\bexperts\.fc1\b", "experts.gate_up_proj"),  # Aria
        (r"\bexperts\.fc2\b", "experts.down_proj"),
        (r"\bexperts\.(\d+)\.w1\b", r"experts.\1.gate_proj"),
        (r"\bexperts\.(\d+)\.w2\b", r"experts.\1.down_proj"),
        (r"\bexperts\.(\d+)\.w3\b", r"experts.\1.up_proj"),
        (r"(?i)\b(\w*norm\w*)\.gamma$", r"\1.weight"),  # BERT's first checkpoints
        (r"(?i)\b(\w*norm\w*)\.beta$", r"\1.bias"),
        (r"\.weight_g$", ".parametrizations.weight.original0"),  # Wav2Vec2
        (r"\.weight_v$", ".parametrizations.weight.original1"),
        (r"\.relative_position_bias\.(relative_position_bias_table)$", r".\1"),  # Swin
        (r"\bencoder\.layer\.(?=\d)", "layers."),  # ViT and its kin, to the end
        (r"\battention\.(?:attention|self)\.", "attention."),
        (r"\battention\.query\b", "attention.q_proj"),
        (r"\battention\.key\b", "attention.k_proj"),
        (r"\battention\.value\b", "attention.v_proj"),
        (r"\battention\.output\.dense\b", "attention.o_proj"),
        (r"\bintermediate\.dense\b", "mlp.fc1"),
        (r"\boutput\.dense\b", "mlp.fc2"),
        (r"\blayers\.(\d+)\.fc([12])\b", r"layers.\1.mlp.fc\2"),  # DETR and its kin
        (r"\bout_proj\b", "o_proj"),
        (r"\bbackbone\.conv_encoder\.", "backbone."),
    )
)
"""Patterns of older layouts and what they became, applied in this order."""


def neutral_name(name: str) -> str:
    """Return a name that is the same in every known layout; it need not be in any of them."""
    neutral = _HOLDERS.sub("", name)
    for old, new in _RENAMED:
        neutral = old.sub(new, neutral)
    return neutral


def counterparts(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Map names of one checkpoint to the names that the same weights have in another.

    A name that both have is its own counterpart. Of the rest, two are counterparts where their
    neutral names agree and no third name has it: what could be meant twice is left out.

    Args:
        names: of tensors, or of modules.
        others: the other checkpoint's, of the same sort.
    """
    names, others = list(names), list(others)
    there, here = set(others), set(names)
    found = {name: name for name in names if name in there}
    mine = _by_neutral_name(name for name in names if name not in there)
    theirs = _by_neutral_name(name for name in others if name not in here)
    for neutral, same in mine.items():
        if len(same) == 1 and len(theirs.get(neutral, ())) == 1:
            found[same[0]] = theirs[neutral][0]
    return found


def _by_neutral_name(names: Iterable[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(neutral_name(name), []).append(name)
    return grouped
