"""One opened adapter of any format: its update of each module of the base.

LoRA and rsLoRA need only their own files. DoRA, PiSSA, OLoRA, LoHa, LoKr, VeRA and weights trained
in full change the base weights, so they need the opened base model: `adapter.delta(module, base)`,
`adapter.saved_delta(name, base)`. Parts that can't be computed exactly are refused, or left out and
listed in `left_out`.

Axis suffixes: O out features, I in features, R adapter rank.
"""

from itertools import compress
from math import prod
from pathlib import Path

import numpy as np

from lowrank_study.checkpoints.adapters.base import Places, factors_shape
from lowrank_study.checkpoints.adapters.content import Content, Factors, Part
from lowrank_study.checkpoints.adapters.formulas import (
    dora_delta,
    initial_factors,
    product,
    rows_delta,
)
from lowrank_study.checkpoints.adapters.kinds import KINDS
from lowrank_study.checkpoints.adapters.peft_delta import peft_delta
from lowrank_study.checkpoints.adapters.saving import BASE_HASH
from lowrank_study.checkpoints.formats import Array, Closing, SourceFile, coarser, shown
from lowrank_study.checkpoints.matrices import is_transposed, models_within
from lowrank_study.checkpoints.names import is_vocabulary, module_of
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut, in_words


class Adapter(Closing):
    """A read-only adapter; a context manager that closes its files."""

    def __init__(self, path: Path, content: Content, weights: Weights) -> None:
        self.path = path
        self.kind = content.kind
        """Its method or layout, a key of `KINDS`."""
        self.config = content.config
        """Its adapter_config.json; empty for formats without one."""
        self.assumed = content.assumed
        """Assumptions that its updates rest on; a report begins with these sentences."""
        self.left_out: list[LeftOut] = list(content.left_out)
        """Its unused tensors, with their share of its parameters."""
        self._content = content
        self._weights = weights
        self._where = shown(path)
        self._places: Places | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Remarks for the report on this adapter and the base it was checked with."""
        dtypes = {self._weights.dtype(name) for name in self._weights.names()}
        coarse = ", ".join(sorted(dtypes - {"float32", "float64"}))
        return (
            *self._content.assumed,
            *self._weights.flags,
            *self._content.flags,
            *([f"adapter stored in {coarse}"] if coarse else []),
            *(self._places.flags if self._places is not None else ()),
        )

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The adapter's files, each with `.path`, `.size` and `.sha256`."""
        return self._weights.files

    @property
    def needs_base(self) -> bool:
        """Whether `factors` and `delta` need the base model."""
        return KINDS[self.kind].needs_base

    @property
    def parameters(self) -> int:
        """How many numbers were trained; copies of W0 saved beside them are not counted."""
        copies = set(self._content.base_layers.values())
        names = [name for name in self._weights.names() if name not in copies]
        return sum(prod(self._weights.shape(name)) for name in names)

    def modules(self) -> list[str]:
        """Return the base modules whose weight is changed by factors, in file order."""
        return list(self._content.modules)

    def saved_weights(self) -> list[str]:
        """Return the names of tensors trained in full (modules_to_save, biases, token rows)."""
        held = self._content
        return [*held.saved, *held.token_rows, *held.bias_updates]

    def read(self, name: str) -> Array:
        """Return a tensor trained in full, exactly; for trained tokens only their rows."""
        if name in self._content.bias_updates:
            raise InputError(
                f"{self._where}: {shown(name)} is added to the base's bias; "
                "ask for saved_delta(name, base)"
            )
        return self._finite(self._saved_tensor(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor trained in full; for trained tokens, of their rows."""
        return self._weights.shape(self._saved_tensor(name))

    def storage_dtype(self, name: str) -> str:
        """Return the coarsest dtype among the tensors of a module or a saved weight."""
        if name in self.saved_weights():
            parts = [self._saved_tensor(name)]
        else:
            own = [part.tensor for part in self._parts(name).values()]
            parts = [*own, *self._content.shared.values()]
        return coarser(*map(self._weights.dtype, parts))

    def factors(self, module: str, base: Weights | None = None) -> Factors:
        """Return the factors whose product is the module's exact update.

        PiSSA and OLoRA start from a part B0 A0 that is subtracted from the base weight. Their
        update is `scaling (B A - B0 A0)`: factors of twice the rank, [B, -B0] and [A; A0].

        Raises:
            InputError: the update isn't a product of two factors, or needs the base.
        """
        if not self.needs_base:
            return self._plain_factors(module)
        if self.kind not in ("pissa", "olora"):
            raise InputError(
                f"{self._where}: {self.kind} updates are not a product of two factors; "
                "ask for delta(module, base)"
            )
        B_OR, A_RI, scaling, dtype = self._plain_factors(module)
        base = self._given(base)
        tensor = self.base_tensor(module, base)
        in_out = self._stored_in_out(module, tensor, base)
        if len(base.shape(tensor)) != 2 or (self.kind == "olora" and in_out):
            # PEFT then decomposes the stored orientation, but applies the factors in the other.
            raise InputError(
                f"{self._where}: {self.kind} on {shown(module)}, which isn't a linear map stored "
                "(out, in), can't be read exactly; merge it into the base with PEFT and compare "
                "checkpoints"
            )
        if scaling <= 0:
            raise InputError(f"{self._where}: {self.kind} needs lora_alpha > 0; correct the config")
        W0_OI = self.base_matrix(module, base)
        B0_OR, A0_RI = initial_factors(self.kind, W0_OI, A_RI.shape[0], scaling)
        return Factors(
            np.concatenate([B_OR, -B0_OR], axis=1), np.concatenate([A_RI, A0_RI]), scaling, dtype
        )

    def delta(self, module: str, base: Weights | None = None) -> Array:
        """Return the module's update delta_OI = W - W0 as a dense float64 matrix."""
        if base is not None:
            self.check_base(base)
        with np.errstate(all="ignore"):  # overflow is checked below
            delta_OI = self._delta(module, base)
        if not np.isfinite(delta_OI).all():
            raise InputError(
                f"{self._where}: the update of module {shown(module)} overflows; "
                "its training diverged: use an earlier checkpoint"
            )
        return delta_OI

    def _delta(self, module: str, base: Weights | None) -> Array:
        if not KINDS[self.kind].has_factors:
            W0_OI = self.base_matrix(module, self._given(base))
            parts = {part: self._part(stored) for part, stored in self._parts(module).items()}
            shared = {part: self._finite(name) for part, name in self._content.shared.items()}
            return peft_delta(
                self.config, parts | shared, W0_OI.shape, f"{self._where}: {shown(module)}"
            )
        if self.kind == "dora":
            return self._dora_delta(module, self._given(base))
        B_OR, A_RI, scaling, _ = self.factors(module, base)
        return np.asarray(scaling * product(B_OR, A_RI))

    def _dora_delta(self, module: str, base: Weights) -> Array:
        B_OR, A_RI, scaling, _ = self._plain_factors(module)
        W0_OI = self.base_matrix(module, base)
        plain_OI = scaling * product(B_OR, A_RI)
        magnitude_O = self._part(self._parts(module)["magnitude"]).reshape(-1)
        zero = int((~(W0_OI + plain_OI).any(axis=1)).sum())
        if magnitude_O.size != W0_OI.shape[0] or zero:
            raise InputError(
                f"{self._where}: module {shown(module)} has {magnitude_O.size} magnitudes for "
                f"{W0_OI.shape[0]} rows, {zero} of them zero; it belongs to "
                "another base model: give the one it was trained on"
            )
        return dora_delta(W0_OI, plain_OI, magnitude_O)

    def saved_delta(self, name: str, base: Weights) -> Array:
        """Return W - W0 of a tensor trained in full, in float64 and in the base's shape.

        For a resized vocabulary, only the rows that both have.

        Raises:
            InputError: the base has no such tensor (a new head has no W0), or another shape.
        """
        self.check_base(base)
        if name in self._content.bias_updates:
            tensor, scaling = self._content.bias_updates[name]
            return np.asarray(scaling * self._finite(tensor).astype(np.float64))
        before = self._finite_base(self.base_tensor(name, base), base)
        after = self.read(name)
        if name in self._content.token_rows:
            trained = self._content.token_indices[name]
            if self.extra_rows(name, base) and len(after) == len(trained):
                known = [row < len(before) for row in trained]
                trained, after = list(compress(trained, known)), after[known]
            return rows_delta(trained, before, after, f"{self._where}: {shown(name)}")
        if not self.fits(name, base):
            raise InputError(
                f"{self._where}: {shown(name)} has shape {list(after.shape)}, but in the base "
                f"{list(before.shape)}; give the base it was trained on"
            )
        rows = min(after.shape[:1], before.shape[:1])
        return np.asarray(after[: rows[0]] - before[: rows[0]] if rows else after - before)

    def fits(self, name: str, base: Weights) -> bool:
        """Whether a tensor trained in full has the base's shape, apart from a vocabulary's rows."""
        if name in self._content.token_rows:
            return True
        shape, before = self.shape(name), base.shape(self.base_tensor(name, base))
        resized = is_vocabulary(module_of(name)) and len(before) == 2
        return shape == before or (resized and shape[1:] == before[1:])

    def extra_rows(self, name: str, base: Weights) -> int:
        """Return how many more rows a trained vocabulary has than the base; negative if fewer.

        For trained tokens, these are the new ones: the copy of W0 beside them exceeds the base.
        """
        before = base.shape(self.base_tensor(name, base))
        if name in self._content.token_rows:
            copy = self._content.base_layers.get(module_of(name))
            grown = copy is not None and self._weights.shape(copy)[0] > before[0]
            indices = self._content.token_indices[name]
            return sum(row >= before[0] for row in indices) if grown else 0
        shape = self.shape(name)
        return shape[0] - before[0] if shape and self.fits(name, base) else 0

    def in_base(self, name: str, base: Weights) -> bool:
        """Whether the base has a W0 for a module or a saved weight; a new head has no W0."""
        return name in self._places_in(base)

    def base_tensor(self, module: str, base: Weights) -> str:
        """Return the name of the base tensor that a module, or a saved weight, changes."""
        return self._places_in(base).find(module)

    def base_matrix(self, module: str, base: Weights) -> Array:
        """Return W0_OI of a module in float64, as (out, in)."""
        tensor = self.base_tensor(module, base)
        W0 = self._finite_base(tensor, base)
        W0_OI = W0.reshape(W0.shape[0], -1)
        if self._stored_in_out(module, tensor, base):
            W0_OI = W0_OI.T
        expected = factors_shape(self._content, self._weights, module)
        copy = self._content.base_layers.get(module)
        if copy is not None and expected == self._weights.shape(copy) != W0_OI.shape:
            W0_OI = self._finite(copy).astype(np.float64)
        if expected is not None and expected != W0_OI.shape:
            raise self._places_in(base).other_shape(module, expected, W0_OI.shape)
        return W0_OI

    def check_base(self, base: Weights) -> None:
        """Refuse a base model that this adapter was not trained on, as far as files show it.

        If the adapter has its base's file hashes (see `save_adapter`), they decide. Otherwise every
        module must exist in the right shape.
        """
        self._places_in(base)

    def refuse_partial(self) -> None:
        """Refuse an adapter with left-out parts: a run's own adapter must be read completely."""
        if self.left_out:
            raise InputError(f"{self._where}: {'; '.join(in_words(self.left_out))}; save it again")

    def close(self) -> None:
        """Close all files; closing twice is harmless."""
        self._weights.close()

    def _places_in(self, base: Weights) -> Places:
        if self._places is not None and self._places.base is base:
            return self._places
        known = self._weights.metadata.get(BASE_HASH)
        if isinstance(known, str):
            found = ",".join(sorted(file.sha256 for file in base.files))
            if found != known:
                raise InputError(
                    f"{self._where}: was trained on files of SHA-256 {shown(known)}, but "
                    f"{shown(base.path)} has {found}; give the base it was trained on"
                )
        places = Places(base, self._content, self._weights, self._where)
        for module, copy in self._content.base_layers.items():
            places.compare_copy(module, self._finite(copy))
        self._places = places
        return places

    def _saved_tensor(self, name: str) -> str:
        held = self._content
        stored = held.saved.get(name) or held.token_rows.get(name)
        if name in held.bias_updates:
            stored, _ = held.bias_updates[name]
        if stored is None:
            raise InputError(
                f"{self._where}: no saved weight {shown(name)}; "
                f"it has {_examples(self.saved_weights())}"
            )
        return stored

    def _parts(self, module: str) -> dict[str, Part]:
        if module not in self._content.modules:
            raise InputError(
                f"{self._where}: no module {shown(module)}; it has {_examples(self.modules())}"
            )
        return self._content.modules[module]

    def _given(self, base: Weights | None) -> Weights:
        if base is None:
            raise InputError(
                f"{self._where}: {self.kind} changes the base weights themselves; "
                "give the base model it was trained on"
            )
        return base

    def _plain_factors(self, module: str) -> Factors:
        parts = self._parts(module)
        A, B = self._part(parts["A"]), self._part(parts["B"])
        return Factors(
            B.reshape(B.shape[0], -1),
            A.reshape(A.shape[0], -1),
            self._content.scalings[module],
            self.storage_dtype(module),
        )

    def _part(self, part: Part) -> Array:
        values = self._finite(part.tensor)
        return values.T if part.transposed else values

    def _finite(self, name: str) -> Array:
        remedy = "its training diverged: use an earlier checkpoint"
        return _read_finite(self._weights, name, self.path, remedy)

    def _finite_base(self, tensor: str, base: Weights) -> Array:
        return _read_finite(base, tensor, base.path, "give another base").astype(np.float64)

    def _stored_in_out(self, module: str, tensor: str, base: Weights) -> bool:
        """Whether the base stores the module as (in, out); its config decides first."""
        if "model_type" in base.config or module in self._content.embeddings:
            return is_transposed(tensor, base, models_within(base.config))
        return bool(self.config.get("fan_in_fan_out")) and len(base.shape(tensor)) == 2


def _read_finite(weights: Weights, name: str, path: Path, remedy: str) -> Array:
    """Read a tensor; refuse one with NaN or infinite values."""
    values = weights.read(name)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise InputError(
            f"{shown(path)}: tensor {shown(name)} has {count} NaN or infinite values; {remedy}"
        )
    return values


def _examples(names: list[str]) -> str:
    return ", ".join(shown(name, 60) for name in names[:5]) or "none"
