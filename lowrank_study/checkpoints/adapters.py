"""Adapters on disk: exactly what each one adds to which module of the base model.

    with open_adapter("adapter") as adapter:
        for module in adapter.modules():
            B_OR, A_RI, scaling, storage_dtype = adapter.factors(module)
        for name in adapter.saved_weights():
            adapter.read(name)          # a full weight trained beside the factors

LoRA and rsLoRA need nothing else. DoRA, PiSSA, OLoRA, LoHa, LoKr, VeRA and weights trained in
full are changes of the base weights, so these are asked for with the opened base model:
`adapter.delta(module, base)`, `adapter.saved_delta(name, base)`. What can't be computed exactly
is refused by its name.

Axis suffixes: O out features, I in features, R adapter rank.
"""

import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowrank_study.checkpoints.adapter_names import sort_tensors
from lowrank_study.checkpoints.adapter_settings import Settings, read_settings
from lowrank_study.checkpoints.matrices import is_transposed, module_of
from lowrank_study.checkpoints.pairing import coarser, is_vocabulary
from lowrank_study.checkpoints.paths import Closing, SourceFile, read_json, shown
from lowrank_study.checkpoints.peft_delta import peft_delta
from lowrank_study.checkpoints.save import BASE_HASH, CONFIG_NAME, WEIGHTS_NAME
from lowrank_study.checkpoints.tensors import Array
from lowrank_study.checkpoints.weights import Weights, open_weights
from lowrank_study.errors import InputError


class Factors(NamedTuple):
    """One module's update as factors: delta_OI = scaling * B_OR @ A_RI."""

    B_OR: Array
    """Left factor."""
    A_RI: Array
    """Right factor."""
    scaling: float
    """alpha / rank, or alpha / sqrt(rank)."""
    storage_dtype: str
    """The coarser dtype of the tensors it comes from."""


class Adapter(Closing):
    """A read-only adapter; a context manager that closes its files."""

    def __init__(self, path: Path, settings: Settings, weights: Weights) -> None:
        self.path = path
        """What was opened."""
        self.kind = settings.kind
        """`lora`, `dora`, `pissa`, `olora`, `loha`, `lokr`, `vera`, `trainable_tokens`, `kohya`."""
        self.config = settings.config
        """Its adapter_config.json; empty for kohya's layout."""
        self._settings = settings
        self._weights = weights
        self._where = shown(path)
        self._tensors = sort_tensors(weights, settings, self._where)
        dtypes = {weights.dtype(name) for name in weights.names()}
        coarse = sorted(dtypes - {"float32", "float64"})
        self.flags: tuple[str, ...] = (
            *weights.flags,
            *settings.flags,
            *([f"adapter stored in {', '.join(coarse)}"] if coarse else []),
            *self._tensors.flags,
        )
        """What a report has to say of this adapter, one sentence each."""
        self._checked_base: Weights | None = None
        self._scalings: dict[str, float] = {}
        self._check_shapes()

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files it consists of, each with `.path`, `.size` and `.sha256`."""
        return self._weights.files

    @property
    def needs_base(self) -> bool:
        """Whether `factors` and `delta` need the base model."""
        return self.kind not in ("lora", "kohya")

    @property
    def parameters(self) -> int:
        """How many numbers it stores."""
        return sum(math.prod(self._weights.shape(name)) for name in self._weights.names())

    def modules(self) -> list[str]:
        """Module paths in the base model whose weight it changes by factors, in file order."""
        return list(self._tensors.modules)

    def saved_weights(self) -> list[str]:
        """Names of tensors trained in full (modules_to_save, biases, token rows)."""
        return [*self._tensors.saved, *self._tensors.token_rows]

    def read(self, name: str) -> Array:
        """Return a tensor trained in full, exactly; for trained tokens their rows only."""
        return self._finite(self._saved_tensor(name))

    def storage_dtype(self, name: str) -> str:
        """Return the coarsest dtype among the tensors that one update is made of.

        Args:
            name: one of `modules()` or of `saved_weights()`.

        Raises:
            InputError: the adapter has neither a module nor a saved weight of this name.
        """
        if name in self.saved_weights():
            parts = [self._saved_tensor(name)]
        else:
            # alpha is one setting of kohya's, no part of the numbers that were rounded
            own = [tensor for part, tensor in self._parts(name).items() if part != "alpha"]
            parts = [*own, *self._tensors.shared.values()]
        return coarser(*map(self._weights.dtype, parts))

    def factors(self, module: str, base: Weights | None = None) -> Factors:
        """Return the factors whose product is the module's exact update.

        PiSSA and OLoRA begin with a part B0 A0 that is taken out of the base weight, so their
        update is `scaling (B A - B0 A0)`: factors of twice the rank, [B, -B0] and [A; A0].

        Args:
            module: one of `modules()`.
            base: the base model; PiSSA and OLoRA need it.

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
        base = self._base(base)
        tensor = self.base_tensor(module, base)
        in_out = self._stored_in_out(module, tensor, base)
        if len(base.shape(tensor)) != 2 or (self.kind == "olora" and in_out):
            # PEFT decomposes the stored orientation then, but applies the factors in the other
            raise InputError(
                f"{self._where}: {self.kind} on {shown(module)}, no linear map stored (out, in), "
                "can't be read exactly; merge it into the base with PEFT and compare checkpoints"
            )
        if scaling <= 0:
            raise InputError(f"{self._where}: {self.kind} with lora_alpha below 0; save it again")
        W0_OI = self.base_matrix(module, base)
        B0_OR, A0_RI = _initial_factors(self.kind, W0_OI, A_RI.shape[0], scaling)
        return Factors(
            np.concatenate([B_OR, -B0_OR], axis=1), np.concatenate([A_RI, A0_RI]), scaling, dtype
        )

    def delta(self, module: str, base: Weights | None = None) -> Array:
        """Return the module's update delta_OI = W - W0 as a dense float64 matrix.

        DoRA: W = m (W0 + s B A) / ‖W0 + s B A‖ by rows (Liu et al. 2024, eq. 5), with m the
        stored magnitudes. LoHa, LoKr and VeRA: PEFT's own `get_delta_weight`.

        Args:
            module: one of `modules()`.
            base: the opened base model; LoRA does without.
        """
        if base is not None:
            self.check_base(base)
        with np.errstate(all="ignore"):  # what overflows is found below
            delta_OI = self._delta(module, base)
        if not np.isfinite(delta_OI).all():
            raise InputError(
                f"{self._where}: the update of module {shown(module)} overflows; "
                "its training diverged: use an earlier checkpoint"
            )
        return delta_OI

    def _delta(self, module: str, base: Weights | None) -> Array:
        if self.kind in ("loha", "lokr", "vera"):
            W0_OI = self.base_matrix(module, self._base(base))
            parts = {part: self._finite(name) for part, name in self._parts(module).items()}
            shared = {part: self._finite(name) for part, name in self._tensors.shared.items()}
            return peft_delta(
                self.config, parts | shared, W0_OI.shape, f"{self._where}: {shown(module)}"
            )
        if self.kind == "dora":
            return self._dora_delta(module, self._base(base))
        B_OR, A_RI, scaling, _ = self.factors(module, base)
        return np.asarray(scaling * _product(B_OR, A_RI))

    def _dora_delta(self, module: str, base: Weights) -> Array:
        B_OR, A_RI, scaling, _ = self._plain_factors(module)
        W0_OI = self.base_matrix(module, base)
        tuned_OI = W0_OI + scaling * _product(B_OR, A_RI)
        magnitude_O = self._finite(self._parts(module)["magnitude"]).reshape(-1, 1)
        norm_O = np.linalg.norm(tuned_OI, axis=1, keepdims=True)
        if magnitude_O.shape != norm_O.shape or not norm_O.all():
            raise InputError(
                f"{self._where}: module {shown(module)} has {magnitude_O.size} magnitudes for "
                f"{norm_O.size} rows, {int((norm_O == 0).sum())} of them zero; it belongs to "
                "another base model: give the one it was trained on"
            )
        return np.asarray(magnitude_O / norm_O * tuned_OI - W0_OI)

    def saved_delta(self, name: str, base: Weights) -> Array:
        """Return W - W0 in float64 of a tensor trained in full, shaped as the base stores it.

        Of a vocabulary that was resized, it is that of the rows both have.

        Args:
            name: one of `saved_weights()`.
            base: the opened base model.

        Raises:
            InputError: the base has no such tensor (a new head has no W0), or of other shape.
        """
        self.check_base(base)
        before = self._finite_base(self.base_tensor(name, base), base)
        after = self.read(name)
        if name in self._tensors.token_rows:
            indices = self._settings.token_indices(name, self._where)
            if (
                after.shape != (len(indices), *before.shape[1:])
                or max(indices, default=0) >= before.shape[0]
            ):
                raise InputError(
                    f"{self._where}: {shown(name)} has trained rows {list(after.shape)} for "
                    f"{len(indices)} tokens of a base of shape {list(before.shape)}; "
                    "give the base it was trained on"
                )
            delta = np.zeros_like(before)
            delta[indices] = after - before[indices]
            return delta
        if not self.fits(name, base):
            raise InputError(
                f"{self._where}: {shown(name)} has shape {list(after.shape)}, in the base "
                f"{list(before.shape)}; give the base it was trained on"
            )
        rows = min(after.shape[:1], before.shape[:1])
        return np.asarray(after[: rows[0]] - before[: rows[0]] if rows else after - before)

    def fits(self, name: str, base: Weights) -> bool:
        """Whether a tensor trained in full has the base's shape, but for a vocabulary's rows."""
        if name in self._tensors.token_rows:
            return True
        shape, before = self.shape(name), base.shape(self.base_tensor(name, base))
        resized = is_vocabulary(module_of(name)) and len(before) == 2
        return shape == before or (resized and shape[1:] == before[1:])

    def extra_rows(self, name: str, base: Weights) -> int:
        """Rows that a vocabulary trained in full has more than the base; below 0: fewer."""
        if name in self._tensors.token_rows or not self.fits(name, base):
            return 0
        shape, before = self.shape(name), base.shape(self.base_tensor(name, base))
        return shape[0] - before[0] if shape else 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor trained in full; of trained tokens, of their rows."""
        return self._weights.shape(self._saved_tensor(name))

    def in_base(self, name: str, base: Weights) -> bool:
        """Whether the base has a tensor that was trained in full; a new head it hasn't."""
        try:
            self.base_tensor(name, base)
        except InputError:
            return False
        return True

    def base_tensor(self, module: str, base: Weights) -> str:
        """Return the name of the base tensor that `module` changes.

        A base saved without its head lacks the first part of the names (`encoder.` for
        `bert.encoder.`). kohya's names have `_` for every dot.

        Args:
            module: a module path, or the name of a tensor.
            base: the opened base model.

        Raises:
            InputError: the base has none, or more than one that it could be.
        """
        headless = module.partition(".")[2]
        for name in (f"{module}.weight", module, f"{headless}.weight", headless):
            if name in base:
                return name
        flat = re.sub(r"^lora_(unet|te\d?|transformer|prior)_", "", module)
        found = [
            name
            for name in base.names()
            if (self.kind == "kohya" and module_of(name).replace(".", "_") == flat)
            or module in (rest := name.partition(".")[2], module_of(rest))
        ]
        if len(found) == 1:
            return found[0]
        some = ", ".join(shown(name, 60) for name in (found or base.names())[:4])
        raise InputError(
            f"{self._where}: module {shown(module)} is {len(found)} times in the base model "
            f"{shown(base.path)} (which has {some}); give the base it was trained on"
        )

    def base_matrix(self, module: str, base: Weights) -> Array:
        """Return W0_OI of a module in float64, as (out, in).

        Raises:
            InputError: the base has no such module, or in another shape.
        """
        tensor = self.base_tensor(module, base)
        W0 = self._finite_base(tensor, base)
        W0_OI = W0.reshape(W0.shape[0], -1)
        if self._stored_in_out(module, tensor, base):
            W0_OI = W0.T
        expected = self._shape(module)
        if expected is not None and expected != W0_OI.shape:
            raise InputError(
                f"{self._where}: module {shown(module)} changes a {list(expected)} matrix, in the "
                f"base {shown(base.path)} it is {list(W0_OI.shape)}; "
                "give the base it was trained on"
            )
        return W0_OI

    def check_base(self, base: Weights) -> None:
        """Refuse a base model this adapter wasn't trained on, as far as it can be told.

        Its files' hashes decide where the adapter has them (see `save_adapter`); otherwise every
        module has to be there in the right shape.
        """
        if self._checked_base is base:
            return
        known = self._weights.metadata.get(BASE_HASH)
        if isinstance(known, str):
            found = ",".join(sorted(file.sha256 for file in base.files))
            if found != known:
                raise InputError(
                    f"{self._where}: was trained on files of SHA-256 {shown(known)}, "
                    f"{shown(base.path)} has {found}; give the base it was trained on"
                )
        for module in self.modules():
            tensor = self.base_tensor(module, base)
            expected, shape = self._shape(module), base.shape(tensor)
            flat = (shape[0], math.prod(shape[1:]))
            if expected is not None and expected not in (flat, flat[::-1]):
                raise InputError(
                    f"{self._where}: module {shown(module)} changes a {list(expected)} matrix, in "
                    f"the base {shown(base.path)} it is {list(shape)}; "
                    "give the base it was trained on"
                )
        self._checked_base = base

    def close(self) -> None:
        """Close all files; closing twice is harmless."""
        self._weights.close()

    def _saved_tensor(self, name: str) -> str:
        tensors = self._tensors
        stored = tensors.saved.get(name) or tensors.token_rows.get(name)
        if stored is None:
            some = ", ".join(shown(known, 60) for known in self.saved_weights()[:5]) or "none"
            raise InputError(f"{self._where}: no saved weight {shown(name)}; it has {some}")
        return stored

    def _parts(self, module: str) -> dict[str, str]:
        """Return the module's parts ("A", "B", ...) and their tensor names."""
        if module not in self._tensors.modules:
            some = ", ".join(shown(known, 60) for known in self.modules()[:5]) or "none"
            raise InputError(f"{self._where}: no module {shown(module)}; it has {some}")
        return self._tensors.modules[module]

    def _base(self, base: Weights | None) -> Weights:
        if base is None:
            raise InputError(
                f"{self._where}: {self.kind} changes the base weights themselves; "
                "give the base model it was trained on"
            )
        return base

    def _finite(self, name: str) -> Array:
        values = self._weights.read(name)
        if not np.isfinite(values).all():
            raise InputError(
                f"{self._where}: tensor {shown(name)} has {int((~np.isfinite(values)).sum())} NaN "
                "or infinite values; its training diverged: use an earlier checkpoint"
            )
        return values

    def _stored_in_out(self, module: str, tensor: str, base: Weights) -> bool:
        """Whether the base stores the module as (in, out); the base's config decides first."""
        if "model_type" in base.config or "embedding" in self._parts(module):
            return is_transposed(tensor, base)
        return bool(self.config.get("fan_in_fan_out")) and len(base.shape(tensor)) == 2

    def _finite_base(self, tensor: str, base: Weights) -> Array:
        values = base.read(tensor)
        if not np.isfinite(values).all():
            raise InputError(
                f"{shown(base.path)}: tensor {shown(tensor)} has "
                f"{int((~np.isfinite(values)).sum())} NaN or infinite values; give another base"
            )
        return values.astype(np.float64)

    def _plain_factors(self, module: str) -> Factors:
        parts = self._parts(module)
        A, B = self._finite(parts["A"]), self._finite(parts["B"])
        rank = A.shape[0]
        if self.kind == "kohya":
            alpha = float(self._finite(parts["alpha"]).item()) if "alpha" in parts else float(rank)
            scaling = alpha / rank
        else:
            scaling = self._scalings[module]
        if "embedding" in parts:  # stored as its transpose: weight (tokens, dim) = (B A)^T
            A, B = B.T, A.T
        dtype = self.storage_dtype(module)
        return Factors(B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1), scaling, dtype)

    def _shape(self, module: str) -> tuple[int, int] | None:
        """(out, in) as the factors' shapes tell it; None where they don't."""
        parts = self._parts(module)
        if self.kind in ("loha", "lokr", "vera"):
            return None
        A, B = self._weights.shape(parts["A"]), self._weights.shape(parts["B"])
        return (A[1], B[0]) if "embedding" in parts else (B[0], math.prod(A[1:]))

    def _check_shapes(self) -> None:
        """Refuse factors that don't multiply, and ranks other than the config's."""
        if self.kind in ("loha", "lokr", "vera"):
            return
        ranks: dict[str, int] = {}
        for module, parts in self._tensors.modules.items():
            A, B = self._weights.shape(parts["A"]), self._weights.shape(parts["B"])
            if len(A) < 2 or len(B) < 2 or B[1] != A[0] or math.prod(B[2:]) != 1:
                raise InputError(
                    f"{self._where}: module {shown(module)} has A {list(A)} and B {list(B)}, which "
                    "don't multiply; it was saved unfinished (ZeRO-3 shards?): save it again"
                )
            if "alpha" in parts and math.prod(self._weights.shape(parts["alpha"])) != 1:
                raise InputError(
                    f"{self._where}: {shown(parts['alpha'])} is not one number; get it again"
                )
            ranks[module] = A[0]
        if self.kind == "kohya":
            if not all("alpha" in parts for parts in self._tensors.modules.values()):
                self.flags += ("no alpha for some modules: taken as their rank, as kohya does",)
            return
        expected = self._settings.ranks(list(ranks), self._where)
        for module, rank in ranks.items():
            if rank != expected[module]:
                raise InputError(
                    f"{self._where}: module {shown(module)} has factors of rank {rank}, its config "
                    f"says {expected[module]:g}; config and weights are of different runs: "
                    "save it again"
                )
        self._scalings, unclear = self._settings.scalings(ranks, self._where)
        if unclear:
            self.flags += (
                f"patterns of different alpha match {len(unclear)} modules, such as "
                f"{shown(unclear[0])}; read as PEFT loads them (first in the file)",
            )


def _product(B_OR: Array, A_RI: Array) -> Array:
    return B_OR.astype(np.float64) @ A_RI.astype(np.float64)


def _initial_factors(kind: str, W0_OI: Array, rank: int, scaling: float) -> tuple[Array, Array]:
    """Return B0 and A0 with which PEFT begins, and which it takes out of the base weight.

    PiSSA: the leading singular triples, so that scaling B0 A0 is W0's best rank-r part (Meng et
    al. 2024). OLoRA: B0 and A0 are the first columns of Q and rows of R of W0 = QR (Büyükakyüz
    2024).
    """
    if kind == "pissa":
        U, singular_values, Vt = np.linalg.svd(W0_OI, full_matrices=False)
        root = np.sqrt(singular_values[:rank] / scaling)
        return np.asarray(U[:, :rank] * root), np.asarray(root[:, None] * Vt[:rank])
    Q, R = np.linalg.qr(W0_OI)
    return np.asarray(Q[:, :rank]), np.asarray(R[:rank])


def open_adapter(path: str | Path, *, allow_pickle: bool = False) -> Adapter:
    """Open an adapter: a PEFT folder, or one file in kohya's layout.

    Args:
        path: the folder with adapter_config.json, or a .safetensors file of kohya's scripts.
        allow_pickle: also open `adapter_model.bin`, through `torch.load(weights_only=True)`.

    Raises:
        InputError: it can't be read exactly; the message names file, tensor and remedy.
    """
    path = Path(path)
    is_folder = os.path.isdir(path)  # unlike Path's, it takes any name
    folder = path if is_folder else path.parent
    weights_path = path
    if is_folder or path.name.startswith("adapter_model."):
        if not os.path.lexists(folder / CONFIG_NAME):
            raise InputError(
                f"{shown(folder)}: no {CONFIG_NAME}, without which the scaling is unknown; "
                "give a folder saved by PEFT, or a file in kohya's layout"
            )
        config = read_json(folder / CONFIG_NAME, root=folder)
        settings = read_settings(config, shown(folder / CONFIG_NAME))
        if is_folder:
            pickled = folder / "adapter_model.bin"
            weights_path = folder / WEIGHTS_NAME
            if not os.path.lexists(weights_path) and os.path.lexists(pickled):
                weights_path = pickled
    else:
        settings = Settings(kind="kohya", config={}, flags=())
    weights = open_weights(weights_path, allow_pickle=allow_pickle)
    try:
        return Adapter(path, settings, weights)
    except BaseException:
        weights.close()
        raise
