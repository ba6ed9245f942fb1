"""Match the names of one model's checkpoints across versions of its code.

    paired_names(before.names(), after.names())
    # keys: model.layers.0.q.weight        → layers.0.q.weight
    #       model.language_model.layers... → layers.0.q.weight

transformers 4.52 added a `model.` before the parts of vision-language models. Version 5 renames
ViT's maps and many experts. TensorFlow calls the parameters of normalisations gamma and beta. A
base model saved without its head lacks the first part of all names (`bert.` of `bert.encoder.`).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.errors import InputError

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
"""Parts of names that a later version renames: mixtures of experts, ViT and DETR with related
models, and GPT-NeoX's head."""

_EXPERT_PARTS = {
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "fc1": "gate_up_proj",
    "fc2": "down_proj",
}
_NORM_ENDS = {"gamma": "weight", "beta": "bias"}
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedNames:
    """The key of every tensor of two checkpoints."""

    before: dict[str, str]
    """Name in the pretrained checkpoint to key."""
    after: dict[str, str]
    """Name in the tuned checkpoint to key."""
    prefix_before: str
    """Prefix of the pretrained checkpoint's names when shown; usually empty."""
    prefix_after: str
    """The same for the tuned checkpoint."""


def canonical(name: str) -> str:
    """Return the form of a name that is the same for all versions of a model's code.

    `model.language_model.layers.0.block_sparse_moe.experts.1.w1` becomes
    `layers.0.mlp.experts.1.gate_proj`.
    """
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
    """Map names to their common form; names that would coincide stay as they are."""
    keys = {name: canonical(name) for name in names}
    counts = Counter(key.removesuffix(".weight") for key in keys.values())
    return {
        name: key if counts[key.removesuffix(".weight")] == 1 else name
        for name, key in keys.items()
    }


def paired_names(before: list[str], after: list[str]) -> PairedNames:
    """Return the keys that make most names of two checkpoints agree.

    Names are used unchanged if that pairs as many as any renaming does.

    Raises:
        InputError: two prefixes make equally many names agree.
    """
    plain = {name: name for name in before}, {name: name for name in after}
    renamed = plain  # usually nothing differs, and there may be 100 000 names
    if set(before) != set(after):
        renamed = canonical_names(before), canonical_names(after)
    keys = renamed if _common(renamed) > _common(plain) else plain
    prefixes = _prefixes(list(keys[0].values()), list(keys[1].values()))
    # With a prefix, renamed keys would not be names of the model.
    shown_prefixes = prefixes if keys is plain else ("", "")
    return PairedNames(
        before={name: prefixes[0] + key for name, key in keys[0].items()},
        after={name: prefixes[1] + key for name, key in keys[1].items()},
        prefix_before=shown_prefixes[0],
        prefix_after=shown_prefixes[1],
    )


def _common(keys: tuple[dict[str, str], dict[str, str]]) -> int:
    left, right = ({key.removesuffix(".weight") for key in each.values()} for each in keys)
    return len(left & right)


def _prefixes(before: list[str], after: list[str]) -> tuple[str, str]:
    """Return the prefix for the names of either checkpoint; usually both are empty."""
    plain = len(set(before) & set(after))
    counts: Counter[tuple[str, str]] = Counter()
    for short, long, swap in ((before, after, False), (after, before, True)):
        names = set(short)
        for name in long:
            first, _, rest = name.partition(".")
            if rest in names:
                counts[("", first + ".") if swap else (first + ".", "")] += 1
    ranked = counts.most_common(2)
    if not ranked or ranked[0][1] <= plain:
        return "", ""
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        first, second = (shown("".join(prefixes)) for prefixes, _ in ranked)
        raise InputError(
            f"names match equally well with the prefix {first} and with {second}; "
            "save both checkpoints from one model class"
        )
    return ranked[0][0]
