"""The contents of an adapter, in one form for every format.

A reader goes through the names of a file and hands each tensor to a `Sorter`:

    sorter = Sorter(weights, where, needed={"A", "B"})
    sorter.add("encoder.layer.0.query", "A", "encoder.layer.0.query.lora_A.weight")
    modules = sorter.whole_modules()        # those with A and B; the others are left out
    sorter.content("lora", config, modules, scalings)

Axis suffixes: O out features, I in features, R adapter rank.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from lowrank_study.checkpoints.formats import Array, shown
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor that is part of a module's update."""

    tensor: str
    transposed: bool
    """Whether the file stores A as (I, R), or B as (R, O)."""


class Factors(NamedTuple):
    """One module's update as factors: delta_OI = scaling * B_OR @ A_RI."""

    B_OR: Array
    A_RI: Array
    scaling: float
    """alpha / rank, or alpha / sqrt(rank)."""
    storage_dtype: str
    """The coarser storage dtype of its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """An adapter's tensors, sorted by their meaning."""

    kind: str
    """Its method or layout, a key of `KINDS`."""
    config: Mapping[str, Any]
    """Its adapter_config.json; empty without one."""
    modules: dict[str, dict[str, Part]]
    """Module path to its parts: "A" (R, I), "B" (O, R), "magnitude" (O), ..."""
    scalings: dict[str, float]
    """Module path to the factor before B A; empty for kinds with other parts."""
    embeddings: frozenset[str]
    """Modules that are embeddings; a base stores them as (tokens, dimensions)."""
    components: dict[str, str]
    """Module path to its model, in a pipeline of several ("unet", "text_encoder")."""
    shared: dict[str, str]
    """Parts that all modules share (VeRA's projections)."""
    saved: dict[str, str]
    """Name in the base model to the tensor of a weight trained in full."""
    token_rows: dict[str, str]
    """Name of an embedding's weight in the base model to the tensor with its trained rows."""
    token_indices: dict[str, list[int]]
    """Name of an embedding's weight in the base model to the indices of its trained rows."""
    bias_updates: dict[str, tuple[str, float]]
    """Name of a bias in the base model to the tensor that is added to it, and its factor."""
    base_layers: dict[str, str]
    """Module path to the copy of its W0 that PEFT saved beside the factors."""
    assumed: tuple[str, ...]
    """Assumptions about settings that the file lacks, one sentence each."""
    flags: tuple[str, ...]
    """Further remarks for the report."""
    left_out: tuple[LeftOut, ...]


Reader = Callable[[Weights, Mapping[str, Any], str], Content]
"""Reads the tensors of one format, given the adapter_config.json (empty without one) and the words
that begin its errors."""


class Sorter:
    """Collects the parts of modules by name, and the unused tensors."""

    def __init__(self, weights: Weights, where: str, *, needed: Set[str]) -> None:
        """Start without tensors; every module must have the parts in `needed`."""
        self._weights = weights
        self._where = where
        self._needed = needed
        self._modules: dict[str, dict[str, Part]] = {}
        self._unclear: dict[str, tuple[str, str]] = {}
        self._unused: dict[str, list[str]] = {}
        self._copies: set[str] = set()

    def add(self, module: str, part: str, tensor: str, *, transposed: bool = False) -> None:
        """Add a tensor as one part of a module."""
        parts = self._modules.setdefault(module, {})
        if part in parts:
            raise InputError(
                f"{self._where}: module {shown(module)} has {shown(parts[part].tensor)} and "
                f"{shown(tensor)}; one of them doesn't belong: save the adapter again"
            )
        parts[part] = Part(tensor=tensor, transposed=transposed)

    def spoil(self, module: str, tensor: str, method: str) -> None:
        """Leave out a module because a tensor changes it by a method other than `method`."""
        why = f"tensor {shown(tensor)} belongs to a method that can't be read exactly as {method}"
        self.leave_out(tensor, why)
        remedy = "merge it into the base in its own library and compare checkpoints"
        self._unclear.setdefault(module, (why, f"{why}; {remedy}"))

    def leave_out(self, tensor: str, why: str) -> None:
        """Leave one tensor out."""
        self._unused.setdefault(why, []).append(tensor)

    def pass_over(self, tensor: str) -> None:
        """Exclude a tensor from all counts, because it was never trained."""
        self._copies.add(tensor)

    def whole_modules(self) -> dict[str, dict[str, Part]]:
        """Return the modules whose update can be computed; leave out the tensors of others."""
        whole: dict[str, dict[str, Part]] = {}
        refusals: list[str] = []
        for module, parts in self._modules.items():
            why, refusal = self._fault(module, parts)
            if not why:
                whole[module] = parts
                continue
            refusals.append(refusal)
            for part in parts.values():
                self.leave_out(part.tensor, why)
        refusals += (refusal for _, refusal in self._unclear.values())
        if refusals and not whole:
            raise InputError(f"{self._where}: {refusals[0]}")
        return whole

    def _fault(self, module: str, parts: Mapping[str, Part]) -> tuple[str, str]:
        """Return why a module is left out, and the refusal if all are; empty if it is complete."""
        if module in self._unclear:
            return self._unclear[module]
        missing = sorted(self._needed - parts.keys())
        if missing:
            why = f"has {', '.join(sorted(parts))} but no {', '.join(missing)}"
            remedy = "it was saved unfinished: save the adapter again"
            return f"a module {why}", f"module {shown(module)} {why}; {remedy}"
        if self._is_grouped(parts):
            return (
                "factors of a grouped convolution mix its groups",
                f"module {shown(module)} is a grouped convolution: its factors mix the groups, "
                "so they are no update of the stored weight, and PEFT can't merge them; "
                "adapt other modules, or tune this one in full",
            )
        return "", ""

    def _is_grouped(self, parts: Mapping[str, Part]) -> bool:
        """Whether B reads only its own group of A's outputs, as in PEFT's grouped convolutions."""
        if not {"A", "B"} <= parts.keys():
            return False
        A, B = (stored_shape(self._weights, parts[part]) for part in ("A", "B"))
        return len(A) == len(B) > 2 and 0 < B[1] < A[0] and A[0] % B[1] == 0 and prod(B[2:]) == 1

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return the tensors that were left out, grouped by reason."""
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

    def ranks(self, modules: Mapping[str, Mapping[str, Part]]) -> dict[str, int]:
        """Return the rank of every module with factors A and B."""
        ranks: dict[str, int] = {}
        for module, parts in modules.items():
            A, B = (stored_shape(self._weights, parts[part]) for part in ("A", "B"))
            if len(A) < 2 or len(B) < 2 or B[1] != A[0] or prod(B[2:]) != 1:
                raise InputError(
                    f"{self._where}: module {shown(module)} has A {list(A)} and B {list(B)}, which "
                    "don't multiply; it was saved unfinished (ZeRO-3 shards?): save it again"
                )
            ranks[module] = A[0]
        return ranks

    def content(
        self,
        kind: str,
        config: Mapping[str, Any],
        modules: dict[str, dict[str, Part]],
        scalings: dict[str, float],
    ) -> Content:
        """Return the contents of an adapter with only factors; readers `replace` the rest."""
        return Content(
            kind=kind,
            config=config,
            modules=modules,
            scalings=scalings,
            embeddings=frozenset(),
            components={},
            shared={},
            saved={},
            token_rows={},
            token_indices={},
            bias_updates={},
            base_layers={},
            assumed=(),
            flags=(),
            left_out=self.left_out(),
        )


def stored_shape(weights: Weights, part: Part) -> tuple[int, ...]:
    """Return the shape of a part in use: A (R, I, ...), B (O, R, ...)."""
    shape = weights.shape(part.tensor)
    return shape[::-1] if part.transposed else shape


def refuse_other_ranks(ranks: Mapping[str, int], expected: Mapping[str, float], where: str) -> None:
    """Refuse a module whose factors have another rank than its config says."""
    for module, rank in ranks.items():
        if rank != expected[module]:
            raise InputError(
                f"{where}: module {shown(module)} has factors of rank {rank}, but its config "
                f"says {expected[module]:g}; config and weights are from different runs: "
                "save it again"
            )
