"""The keys by which the tensors of two checkpoints are matched, whichever code saved them.

    paired_names(before.names(), after.names())
    # keys: model.layers.0.q.weight        → layers.0.q.weight
    #       model.language_model.layers... → layers.0.q.weight

Names are compared in their canonical form. A base model saved without its head also lacks the
first part of all names (`bert.` of `bert.encoder.`).
"""

from collections import Counter
from dataclasses import dataclass

from lowrank_study.checkpoints.formats import shown
from lowrank_study.checkpoints.names import canonical_names, module_of
from lowrank_study.errors import InputError


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


def paired_names(before: list[str], after: list[str]) -> PairedNames:
    """Return the keys that make most names of two checkpoints agree.

    Names are used unchanged if that pairs as many as their canonical forms do.
    """
    plain = {name: name for name in before}, {name: name for name in after}
    keys = plain
    if set(before) != set(after):  # usually they are equal, and there may be 100 000 names
        renamed = canonical_names(before), canonical_names(after)
        keys = renamed if _common(renamed) > _common(plain) else plain
    prefixes = _prefixes(list(keys[0].values()), list(keys[1].values()))
    # A prefix before a canonical name would not give a name of the model.
    shown_prefixes = prefixes if keys is plain else ("", "")
    return PairedNames(
        before={name: prefixes[0] + key for name, key in keys[0].items()},
        after={name: prefixes[1] + key for name, key in keys[1].items()},
        prefix_before=shown_prefixes[0],
        prefix_after=shown_prefixes[1],
    )


def _common(keys: tuple[dict[str, str], dict[str, str]]) -> int:
    left, right = (set(map(module_of, each.values())) for each in keys)
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
