"""Names under which the tensors of two checkpoints of one model are compared.

    names = paired_names(before.names(), after.names())
    names.before["model.layers.0.q.weight"] == names.after["model.language_model.layers.0.q.weight"]

A base model saved without its head lacks the first part of all names (`encoder.` for
`bert.encoder.`); transformers' own renames are in `renames`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lowrank_study.checkpoints.paths import shown
from lowrank_study.checkpoints.renames import neutral_name
from lowrank_study.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedNames:
    """What every tensor of two checkpoints is compared under."""

    before: dict[str, str]
    """Name in the pretrained checkpoint to key."""
    after: dict[str, str]
    """Name in the tuned checkpoint to key."""
    prefix_before: str
    """Put before the pretrained checkpoint's names where they are shown; empty as a rule."""
    prefix_after: str
    """The same for the tuned one."""


def neutral_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to what they are in all versions; those that would coincide stay as they are."""
    keys = {name: neutral_name(name) for name in names}
    counts = Counter(keys.values())
    return {name: key if counts[key] == 1 else name for name, key in keys.items()}


def paired_names(before: list[str], after: list[str]) -> PairedNames:
    """Return the keys under which most names of two checkpoints agree.

    Names are taken as they are where that pairs as many as any renaming does.

    Raises:
        InputError: two prefixes would make equally many names agree.
    """
    plain = {name: name for name in before}, {name: name for name in after}
    renamed = plain  # as a rule nothing differs, and there may be 100 000 names
    if set(before) != set(after):
        renamed = neutral_names(before), neutral_names(after)
    keys = renamed if _common(renamed) > _common(plain) else plain
    prefixes = _prefixes(list(keys[0].values()), list(keys[1].values()))
    # A prefix of renamed keys makes no names of the model.
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
    """Return the prefix to put before each name of either checkpoint, both empty as a rule."""
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
