"""What an adapter holds, in the same terms for every format, and how its tensors are sorted.

A reader goes through the names of a file and hands each tensor to a `Sorter`:

    sorter = Sorter(weights, where, needed={"A", "B"})
    sorter.add("encoder.layer.0.query", "A", "encoder.layer.0.query.lora_A.weight")
    modules = sorter.whole_modules()        # those with A and B; the others are left out

Axis suffixes: O out features, I in features, R adapter rank.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from lowrank_study.checkpoints.paths import shown
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor that takes part in a module's update."""

    tensor: str
    """Its name."""
    transposed: bool
    """Whether A is stored (I, R), or B (R, O)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """An adapter's tensors, sorted by what they are."""

    kind: str
    """`lora`, `dora`, `pissa`, `olora`, `loha`, `lokr`, `vera`, `trainable_tokens`, or LoRA in a
    layout with names of its own: `kohya`, `gguf`."""
    config: Mapping[str, Any]
    """Its adapter_config.json, or the settings of its header."""
    modules: dict[str, dict[str, Part]]
    """Module path to its parts: "A" (R, I), "B" (O, R), "magnitude" (O), ..."""
    scalings: dict[str, float]
    """Module path to the factor before B A; empty for kinds that have other parts."""
    embeddings: frozenset[str]
    """Modules that are embeddings, of which a base stores (tokens, dimensions)."""
    components: dict[str, str]
    """Module path to the model it belongs to, in a pipeline of several ("unet", "text_encoder")."""
    shared: dict[str, str]
    """Parts that all modules share (VeRA's projections)."""
    saved: dict[str, str]
    """Name in the base model to the tensor, for weights trained in full."""
    token_rows: dict[str, str]
    """Name of an embedding's weight in the base model to the tensor with its trained rows."""
    token_indices: dict[str, list[int]]
    """Name of such a weight to the rows that were trained."""
    bias_updates: dict[str, tuple[str, float]]
    """Name of a bias in the base model to the tensor that is added to it, and its factor."""
    base_layers: dict[str, str]
    """Module path to the copy of its W0 that PEFT saved beside the factors."""
    assumed: tuple[str, ...]
    """What the update depends on and the file doesn't say, one sentence each."""
    flags: tuple[str, ...]
    """What else a report has to say."""
    left_out: tuple[LeftOut, ...]
    """The tensors that aren't used."""


class Reader(Protocol):
    """Sorts the tensors of one format."""

    def __call__(self, weights: Weights, config: Mapping[str, Any], where: str) -> Content:
        """Return what an adapter holds.

        Args:
            weights: its opened tensors.
            config: its adapter_config.json; empty where the format has none.
            where: opens the errors.

        Raises:
            InputError: nothing in it can be read exactly, or it contradicts itself.
        """
        ...


class Sorter:
    """Collects the parts of modules by name, and the tensors that can't be used."""

    def __init__(self, weights: Weights, where: str, *, needed: Set[str]) -> None:
        """Begin with nothing.

        Args:
            weights: the adapter's tensors.
            where: opens the errors.
            needed: the parts without which a module's update can't be computed.
        """
        self._weights = weights
        self._where = where
        self._needed = needed
        self._modules: dict[str, dict[str, Part]] = {}
        self._unclear: dict[str, tuple[str, str]] = {}
        self._unused: dict[str, list[str]] = {}
        self._copies: set[str] = set()

    def add(self, module: str, part: str, tensor: str, *, transposed: bool = False) -> None:
        """Take a tensor as one part of a module.

        Raises:
            InputError: the module has this part already.
        """
        parts = self._modules.setdefault(module, {})
        if part in parts:
            raise InputError(
                f"{self._where}: module {shown(module)} has {shown(parts[part].tensor)} and "
                f"{shown(tensor)}; one of them doesn't belong: save the adapter again"
            )
        parts[part] = Part(tensor=tensor, transposed=transposed)

    def spoil(self, module: str, tensor: str, why: str, remedy: str) -> None:
        """Leave a module out that a tensor changes in a way that isn't computed here."""
        self.leave_out(tensor, why)
        self._unclear.setdefault(module, (why, remedy))

    def leave_out(self, tensor: str, why: str) -> None:
        """Leave one tensor out."""
        self._unused.setdefault(why, []).append(tensor)

    def pass_over(self, tensor: str) -> None:
        """Count a tensor in nothing, as it was never trained."""
        self._copies.add(tensor)

    def whole_modules(self) -> dict[str, dict[str, Part]]:
        """Return the modules whose update can be computed; the tensors of others are left out.

        Raises:
            InputError: there are modules, and none of them is whole.
        """
        whole: dict[str, dict[str, Part]] = {}
        refusals: list[str] = []
        for module, parts in self._modules.items():
            missing = sorted(self._needed - parts.keys())
            if module in self._unclear:
                why, remedy = self._unclear[module]
                refusals.append(f"{why}; {remedy}")
            elif missing:
                why = f"has {', '.join(sorted(parts))} but no {', '.join(missing)}"
                refusals.append(
                    f"module {shown(module)} {why}; it was saved unfinished: save the adapter again"
                )
                why = f"a module {why}"
            elif self._is_grouped(parts):
                why = "factors of a grouped convolution mix its groups"
                refusals.append(
                    f"module {shown(module)} is a grouped convolution: its factors mix the groups, "
                    "so that they are no update of the stored weight, and PEFT can't merge them; "
                    "adapt other modules, or tune this one in full"
                )
            else:
                whole[module] = parts
                continue
            for part in parts.values():
                self.leave_out(part.tensor, why)
        refusals += [f"{why}; {remedy}" for why, remedy in self._unclear.values()]
        if refusals and not whole:
            raise InputError(f"{self._where}: {refusals[0]}")
        return whole

    def _is_grouped(self, parts: Mapping[str, Part]) -> bool:
        """Whether B reads only its group's share of what A gives, as PEFT's does then."""
        if not {"A", "B"} <= parts.keys():
            return False
        A, B = (stored_shape(self._weights, parts[part]) for part in ("A", "B"))
        return len(A) == len(B) > 2 and 0 < B[1] < A[0] and A[0] % B[1] == 0 and prod(B[2:]) == 1

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return the tensors that were left out, those of one reason together."""
        names = [name for name in self._weights.names() if name not in self._copies]
        total = sum(prod(self._weights.shape(name)) for name in names)
        return tuple(
            LeftOut(
                count=sum(prod(self._weights.shape(tensor)) for tensor in set(tensors)),
                total=total,
                unit="parameters",
                of="adapter",
                why=f"{why} ({shown(tensors[0], 80)}{', ...' if len(tensors) > 1 else ''})",
            )
            for why, tensors in self._unused.items()
        )


def stored_shape(weights: Weights, part: Part) -> tuple[int, ...]:
    """Return the shape of a part as it is used: A (R, I, ...), B (O, R, ...)."""
    shape = weights.shape(part.tensor)
    return shape[::-1] if part.transposed else shape


def checked_ranks(
    weights: Weights, modules: Mapping[str, Mapping[str, Part]], where: str
) -> dict[str, int]:
    """Return the rank of every module with factors A and B.

    Raises:
        InputError: factors that don't multiply.
    """
    ranks: dict[str, int] = {}
    for module, parts in modules.items():
        A, B = (stored_shape(weights, parts[part]) for part in ("A", "B"))
        if len(A) < 2 or len(B) < 2 or B[1] != A[0] or prod(B[2:]) != 1:
            raise InputError(
                f"{where}: module {shown(module)} has A {list(A)} and B {list(B)}, which "
                "don't multiply; it was saved unfinished (ZeRO-3 shards?): save it again"
            )
        ranks[module] = A[0]
    return ranks
