"""Find the modules of an adapter in its base model.

An adapter uses the names of the live model. The base file may use others: no head, a pipeline's
prefix, an older layout of transformers, `_` for `.` (kohya), or only the embedding if the head
is tied to it.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from math import prod

import numpy as np

from lowrank_study.checkpoints.adapters.content import Content, stored_shape
from lowrank_study.checkpoints.formats import Array, shown
from lowrank_study.checkpoints.names import (
    canonical,
    is_head,
    is_vocabulary,
    last_part,
    may_be_tied,
    module_of,
)
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_FLAT_PREFIX = re.compile(r"lora_(unet|te\d?|transformer|prior)_")
"""Prefixes that kohya's scripts put before module names, one per model of a pipeline."""

_HOLDERS = re.compile(
    r"^(model\.diffusion_model|diffusion_model|conditioner\.embedders\.\d\.(transformer|model)"
    r"|cond_stage_model\.(transformer|model))\."
)
"""Prefixes of one model's names in a checkpoint with all models of a pipeline."""

_ROUNDING = 2.0**-8
"""Largest difference of a copy stored in bfloat16, relative to the largest entry."""


class Places:
    """Finds the tensors of a base model by the names that an adapter may use."""

    def __init__(self, base: Weights, content: Content, weights: Weights, where: str) -> None:
        """Find every module, without reading any tensor; `where` begins the error messages."""
        self.base = base
        self._content, self._weights, self._where = content, weights, where
        self._shortened = _grouped((name.partition(".")[2], name) for name in base.names())
        self._flat = (
            _grouped((_flat(module_of(name)), name) for name in base.names())
            if content.kind == "kohya"
            else {}
        )
        self._absent: dict[str, str] = {}
        self.flags: list[str] = []
        """Remarks for the report on how adapter and base fit together."""
        self._check_modules()
        for name in (*content.modules, *content.saved, *content.token_rows):
            if name not in self._absent and self._is_tied(name):
                tensor = self.find(name)
                self.flags.append(f"{shown(name)} is tied: its W0 is {shown(tensor)}")

    @cached_property
    def _canonical(self) -> dict[str, list[str]]:
        """The tensors by their canonical names; computed only if other names fail."""
        return _grouped((canonical(name), name) for name in self.base.names())

    def find(self, name: str) -> str:
        """Return the base tensor of a module, or of a weight trained in full."""
        if name in self._absent:
            raise InputError(self._absent[name])
        found = self._candidates(name)
        if len(found) == 1:
            return found[0]
        some = ", ".join(shown(other, 60) for other in (found or self.base.names())[:4])
        fits = f"fits {len(found)} tensors of" if found else "is not in"
        raise InputError(
            f"{self._where}: module {shown(name)} {fits} the base model "
            f"{shown(self.base.path)} (which has {some}); {self._remedy()}"
        )

    def _remedy(self) -> str:
        """Return the remedy for a module that isn't found."""
        in_gguf = "general.architecture" in self.base.metadata
        if in_gguf and self._content.kind != "gguf":
            return (
                "a GGUF file has its own names and row orders: give the base in the format it "
                "was trained in"
            )
        if self._content.kind == "gguf" and not in_gguf:
            return "give the base in GGUF, converted by llama.cpp as the adapter was"
        return "give the base it was trained on"

    def __contains__(self, name: str) -> bool:
        return name not in self._absent and len(self._candidates(name)) == 1

    def compare_copy(self, module: str, copy: Array) -> None:
        """Flag a copy of W0 in the adapter if the rows that both have differ from the base."""
        if module not in self:
            return
        stored = self.base.read(self.find(module))
        rows = min(len(stored), len(copy))
        if stored.shape[1:] != copy.shape[1:]:
            return
        largest = float(np.abs(stored).max(initial=0.0))
        differing = np.abs(stored[:rows] - copy[:rows]) > _ROUNDING * largest
        if count := int(differing.reshape(rows, -1).any(axis=1).sum()):
            self.flags.append(
                f"{shown(module)}: {count} of {rows} rows of the base layer saved in the adapter "
                "differ from the base; the update is what the factors add to the saved layer"
            )

    def _candidates(self, name: str) -> list[str]:
        headless = name.partition(".")[2]
        plain = (f"{name}.weight", name, f"{headless}.weight", headless)
        for exact in (*plain, f"{name}.in_proj_weight"):  # the last is a MultiheadAttention's
            if exact in self.base:
                return [exact]
        flat = _FLAT_PREFIX.sub("", name, count=1) if _FLAT_PREFIX.match(name) else name
        found = [
            *self._flat.get(flat, []),
            *self._shortened.get(name, []),
            *self._shortened.get(f"{name}.weight", []),
        ]
        if not found:
            for tensor in (name, f"{name}.weight"):
                found += self._canonical.get(canonical(tensor), [])
        return list(dict.fromkeys(found)) or self._tied(name)

    def _is_tied(self, name: str) -> bool:
        return self._candidates(name) == self._tied(name) != []

    def _tied(self, name: str) -> list[str]:
        """Return a base's only vocabulary, if it stores just one, as tied models do."""
        module = module_of(name)
        if not (is_vocabulary(module) or is_head(module)) or not may_be_tied(self.base.config):
            return []
        stored = [
            other
            for other in self.base.names()
            if is_vocabulary(module_of(other)) and len(self.base.shape(other)) == 2
        ]
        if len(stored) != 1:
            return []
        other = module_of(stored[0])
        # T5 and BART share one embedding between encoder and decoder
        shares = "shared" in (last_part(module), last_part(other))
        return stored if shares or is_head(module) != is_head(other) else []

    def _check_modules(self) -> None:
        """Refuse a base that lacks modules, unless they belong to another model of a pipeline."""
        components = dict.fromkeys(
            self._content.components.get(module, "") for module in self._content.modules
        )
        failures: dict[str, InputError] = {}
        places: dict[str, str] = {}
        for component in components:
            modules = self._modules_of(component)
            try:
                tensors = [self._fitting(module) for module in modules]
            except InputError as error:
                failures[component] = error
                continue
            for tensor in tensors:
                if places.setdefault(tensor, component) != component:
                    raise InputError(
                        f"{self._where}: its {places[tensor]} and its {component} both fit "
                        f"the base {shown(self.base.path)}, so their W0 is ambiguous; "
                        "measure the adapter without a base"
                    )
        if failures and (len(failures) == len(components) or self._content.kind == "dora"):
            raise next(iter(failures.values()))
        for component, failure in failures.items():
            modules = self._modules_of(component)
            self._absent.update(dict.fromkeys(modules, str(failure)))
            self.flags.append(
                f"{component}: its {len(modules)} modules aren't in the base "
                f"{shown(self.base.path)}; they are measured without W0"
            )

    def _modules_of(self, component: str) -> list[str]:
        of = self._content.components
        return [module for module in self._content.modules if of.get(module, "") == component]

    def _fitting(self, module: str) -> str:
        """Return the tensor of a module, after a check of its shape."""
        tensor = self.find(module)
        expected = factors_shape(self._content, self._weights, module)
        shape = self.base.shape(tensor)
        flat = (shape[0], prod(shape[1:]))
        resized = module in self._content.base_layers and expected is not None
        if expected is None or expected in (flat, flat[::-1]):
            return tensor
        if resized and is_vocabulary(module) and expected[1] == flat[1]:
            self.flags.append(
                f"{shown(module)}: {shape[0]} rows before, {expected[0]} after; its W0 is the base "
                "layer saved in the adapter"
            )
            return tensor
        raise self.other_shape(module, expected, shape)

    def other_shape(
        self, module: str, expected: tuple[int, ...], shape: tuple[int, ...]
    ) -> InputError:
        """Return the error for a module that has another shape in the base."""
        return InputError(
            f"{self._where}: module {shown(module)} changes a {list(expected)} matrix, but in "
            f"the base {shown(self.base.path)} it is {list(shape)}; "
            "give the base it was trained on"
        )


def factors_shape(content: Content, weights: Weights, module: str) -> tuple[int, int] | None:
    """Return (out, in) from the factors' shapes; None if they don't determine it."""
    parts = content.modules[module]
    if "A" not in parts:
        return None
    A, B = (stored_shape(weights, parts[part]) for part in ("A", "B"))
    return B[0], prod(A[1:])


def _flat(module: str) -> str:
    return _HOLDERS.sub("", module).replace(".", "_")


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for key, name in pairs:
        grouped.setdefault(key, []).append(name)
    return grouped
