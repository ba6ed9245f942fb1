"""One fine-tuning update ΔW of one weight matrix, dense or as adapter factors.

Everything else in `lowrank_study.spectra` takes an `UpdateMatrix` and doesn't care where it
came from: a pair of checkpoints gives a dense `delta_OI`, a LoRA adapter gives its factors.

    update = UpdateMatrix(
        name="encoder.layer.0.attention.self.query", layer=0, role="query",
        storage_dtype="float32", delta_OI=None, B_OR=B_OR, A_RI=A_RI, scaling=2.0, W0_OI=None,
    )
    update.shape  # (out features, in features); delta = scaling * B @ A is never formed

`updates_of_pair` and `updates_of_adapter` give the updates of what is on disk, one at a time:

    with open_weights("before") as before, open_weights("after") as after:
        for update in updates_of_pair(pair(before, after), roles={}):
            measure(update, method="gram")

Axis suffixes: O out features, I in features, R adapter rank. Orientation is always (out, in).
"""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints import (
    Adapter,
    Match,
    Matrix,
    Pairing,
    Weights,
    find_matrices,
    is_vocabulary,
    module_of,
)
from lowrank_study.errors import InputError
from lowrank_study.spectra.precision import dtype_of_difference

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateMatrix:
    """The update `delta = W - W0` of one matrix: either `delta_OI` or `scaling * B_OR @ A_RI`.

    A dense `delta_OI` given together with `W0_OI` is read as a difference of two stored
    checkpoints, so both of their rounding errors are in it. A dense `delta_OI` without
    `W0_OI` is read as a matrix that was stored (or computed) itself. Factors are read as
    stored factors: whatever their rounding, their product has rank at most R.
    """

    name: str
    """Module path, such as "bert.encoder.layer.0.attention.self.query"."""
    layer: int | None
    """Number of the layer the module belongs to, or None outside of a numbered stack."""
    role: str
    """What the matrix does in its layer: "query", "mlp_up", or the last part of the path."""
    storage_dtype: str
    """Coarsest dtype its numbers have been through: "float32", "bfloat16", "float16", ..."""
    delta_OI: FloatArray | None
    """Dense update, or None when it is given by factors."""
    B_OR: FloatArray | None
    """Left factor, or None when the update is dense."""
    A_RI: FloatArray | None
    """Right factor, or None when the update is dense."""
    scaling: float
    """Factor in front of B A (alpha / rank, or alpha / sqrt(rank)); 1.0 for a dense update."""
    W0_OI: FloatArray | None
    """Pretrained weight, where it is known; float32 or wider."""

    def __post_init__(self) -> None:
        """Refuse a record that is neither dense nor factored, or whose shapes disagree."""
        factored = self.B_OR is not None and self.A_RI is not None
        half = (self.B_OR is None) != (self.A_RI is None)
        if half or factored == (self.delta_OI is not None):
            raise InputError(
                f"{self.name!r}: an update is either delta_OI or both B_OR and A_RI; "
                "give exactly one of the two forms"
            )
        for label in ("delta_OI", "B_OR", "A_RI", "W0_OI"):
            array = getattr(self, label)
            if array is not None and (array.ndim != 2 or 0 in array.shape):
                raise InputError(
                    f"{self.name!r}: {label} has shape {array.shape}; "
                    "an update is a matrix with both sides at least 1"
                )
        if self.B_OR is not None and self.A_RI is not None:
            if self.B_OR.shape[1] != self.A_RI.shape[0]:
                raise InputError(
                    f"{self.name!r}: B_OR {self.B_OR.shape} and A_RI {self.A_RI.shape} don't "
                    "multiply; the columns of B_OR must be as many as the rows of A_RI"
                )
        elif self.scaling != 1.0:
            raise InputError(
                f"{self.name!r}: scaling {self.scaling} with a dense delta_OI; "
                "multiply it in and give scaling 1.0"
            )
        if self.W0_OI is not None and self.W0_OI.shape != self.shape:
            raise InputError(
                f"{self.name!r}: W0_OI has shape {self.W0_OI.shape}, the update {self.shape}; "
                "they must be the same matrix, both (out, in)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(out features, in features)."""
        if self.delta_OI is not None:
            return self.delta_OI.shape[0], self.delta_OI.shape[1]
        assert self.B_OR is not None
        assert self.A_RI is not None
        return self.B_OR.shape[0], self.A_RI.shape[1]

    @property
    def factors(self) -> tuple[FloatArray, FloatArray] | None:
        """(B_OR, A_RI), or None for a dense update."""
        if self.B_OR is None or self.A_RI is None:
            return None
        return self.B_OR, self.A_RI


def updates_of_pair(pairing: Pairing, *, roles: Mapping[str, str]) -> Iterator[UpdateMatrix]:
    """Give the update of each matrix that two checkpoints share, one at a time.

    The difference is taken in float64, where it is exact. Matrices with NaN or Inf are left
    out and named in `pairing.skipped`.

    Args:
        pairing: `checkpoints.pairing.pair(before, after)`, files still open.
        roles: Last part or parts of a module path to the role it has, such as
            {"attention.self.query": "query"}; the longest that fits counts, and a module that
            none fits has the role of `role_of`.

    Yields:
        Dense updates with their W0, in the order of the tuned checkpoint.
    """
    for match, W0_OI, W_OI in pairing.read_matrices():
        yield update_of_match(match, W0_OI, W_OI, roles=roles)


def update_of_match(
    match: Match, W0_OI: FloatArray, W_OI: FloatArray, *, roles: Mapping[str, str]
) -> UpdateMatrix:
    """Give the update of one matrix that two checkpoints share, as `updates_of_pair` does.

    Args:
        match: The matrix.
        W0_OI: What `match.read()` gives of the pretrained checkpoint.
        W_OI: What it gives of the tuned one.
        roles: As for `updates_of_pair`.
    """
    delta_OI = np.subtract(W_OI, W0_OI, dtype=np.float64)
    return UpdateMatrix(
        name=match.name,
        layer=layer_of(match.name),
        role=role_in(match.name, roles),
        storage_dtype=dtype_of_difference(
            W0_OI, W_OI, delta_OI, dtypes=(match.before.storage_dtype, match.after.storage_dtype)
        ),
        delta_OI=delta_OI,
        B_OR=None,
        A_RI=None,
        scaling=1.0,
        W0_OI=W0_OI,
    )


def updates_of_adapter(
    adapter: Adapter,
    *,
    base: Weights | None,
    roles: Mapping[str, str],
    skipped: MutableMapping[str, str],
) -> Iterator[UpdateMatrix]:
    """Give the update of each module that an adapter changes, one at a time.

    LoRA in its kinds comes as factors. DoRA is a dense change of W0. LoHa, LoKr and VeRA come
    dense and without W0, as their numbers were never rounded together with it. Matrices
    trained in full come last, as dense differences. Where the base stores query, key and value
    fused, each of them is an update of its own.

    Args:
        adapter: As `open_adapter` gives it, still open.
        base: The base model, still open; needed for W0, for splitting what is fused, for
            matrices trained in full, and for all kinds but LoRA.
        roles: As for `updates_of_pair`.
        skipped: Gets the name and reason of each matrix trained in full that is left out.

    Yields:
        The updates of `adapter.modules()`, then of `adapter.saved_weights()`.

    Raises:
        InputError: If the adapter needs a base that isn't given or doesn't fit.
    """
    matrices, unreadable = ({}, {}) if base is None else find_matrices(base)
    by_tensor: dict[str, list[Matrix]] = {}
    for matrix in matrices.values():
        by_tensor.setdefault(matrix.tensor, []).append(matrix)
    twins = _tied_twins(adapter)
    skipped.update(
        (module_of(name), f"the same as {module_of(first)} (tied), counted there")
        for name, first in twins.items()
    )
    for module in adapter.modules():
        if module not in twins:
            yield from _of_module(adapter, module, base, by_tensor, roles)
    for saved in adapter.saved_weights():
        if saved not in twins:
            why = _not_measured(adapter, saved, base, by_tensor, unreadable)
            if why:
                skipped[module_of(saved)] = why
            elif base is not None:
                yield from _of_saved(adapter, saved, base, by_tensor, roles)


def _of_module(
    adapter: Adapter,
    module: str,
    base: Weights | None,
    by_tensor: Mapping[str, list[Matrix]],
    roles: Mapping[str, str],
) -> Iterator[UpdateMatrix]:
    """Yield the updates of one module with factors; several if the base stores it fused."""
    W0_OI, tensor = None, ""
    if base is not None and adapter.in_base(module, base):
        W0_OI = adapter.base_matrix(module, base)
        tensor = adapter.base_tensor(module, base)
    delta_OI = B_OR = A_RI = None
    scaling = 1.0
    if adapter.kind in FACTORED_KINDS:
        B_OR, A_RI, scaling, storage_dtype = adapter.factors(module, base)
    else:
        delta_OI = adapter.delta(module, base)
        storage_dtype = adapter.storage_dtype(module)
        if adapter.kind != "dora":
            W0_OI = None
    for name, rows in _named_rows(module, tensor, by_tensor.get(tensor, [])):
        yield UpdateMatrix(
            name=name,
            layer=layer_of(name),
            role=role_in(name, roles),
            storage_dtype=storage_dtype,
            delta_OI=None if delta_OI is None else delta_OI[rows],
            B_OR=None if B_OR is None else B_OR[rows],
            A_RI=A_RI,
            scaling=scaling,
            W0_OI=None if W0_OI is None else W0_OI[rows],
        )


def _not_measured(
    adapter: Adapter,
    saved: str,
    base: Weights | None,
    by_tensor: Mapping[str, list[Matrix]],
    unreadable: Mapping[str, str],
) -> str:
    """Return why a weight trained in full gives no update; empty if it gives one."""
    if base is None or not adapter.in_base(saved, base):
        return "trained in full, with no W0 to compare with"
    tensor = adapter.base_tensor(saved, base)
    shape = base.shape(tensor)
    if not adapter.fits(saved, base):
        return f"shape {list(shape)} in the base, {list(adapter.shape(saved))} here"
    if tensor not in by_tensor:
        return unreadable.get(tensor, f"not a matrix: shape {list(shape)}")
    return ""


def _of_saved(
    adapter: Adapter,
    saved: str,
    base: Weights,
    by_tensor: Mapping[str, list[Matrix]],
    roles: Mapping[str, str],
) -> Iterator[UpdateMatrix]:
    """Yield the updates of one weight trained in full, as differences to the base."""
    module, tensor = module_of(saved), adapter.base_tensor(saved, base)
    W, delta = adapter.read(saved), adapter.saved_delta(saved, base)
    W0 = base.read(tensor)[: delta.shape[0]]
    # For a scaled dtype, the numbers alone do not give the step, so the floor is unknown.
    before = f"scaled {base.dtype(tensor)}" if base.is_scaled(tensor) else base.dtype(tensor)
    storage_dtype = dtype_of_difference(W0, W, delta, dtypes=(before, adapter.storage_dtype(saved)))
    for matrix in by_tensor[tensor]:
        name = module + matrix.name.removeprefix(module_of(tensor))
        yield UpdateMatrix(
            name=name,
            layer=layer_of(name),
            role=role_in(name, roles),
            storage_dtype=storage_dtype,
            delta_OI=matrix.cut(delta),
            B_OR=None,
            A_RI=None,
            scaling=1.0,
            W0_OI=matrix.cut(W0),
        )


FACTORED_KINDS = ("lora", "kohya", "gguf", "pissa", "olora")
"""Kinds of adapters whose update is exactly a product of two factors."""


def _tied_twins(adapter: Adapter) -> dict[str, str]:
    """Map the copies among a vocabulary's updates to the original: tied weights are saved twice."""

    def factors(module: str) -> tuple[FloatArray, ...]:
        return adapter.factors(module)[:2]

    def weight(name: str) -> tuple[FloatArray, ...]:
        return (adapter.read(name),)

    modules = [] if adapter.needs_base else adapter.modules()
    twins: dict[str, str] = {}
    for names, read in ((modules, factors), (adapter.saved_weights(), weight)):
        seen: dict[str, tuple[FloatArray, ...]] = {}
        vocabularies = [name for name in names if is_vocabulary(module_of(name))]
        for name in vocabularies if len(vocabularies) > 1 else ():
            values = read(name)
            for first, others in seen.items():
                if all(np.array_equal(a, b) for a, b in zip(values, others, strict=True)):
                    twins[name] = first
                    break
            else:
                seen[name] = values
    return twins


def _named_rows(
    module: str, tensor: str, matrices: list[Matrix]
) -> Iterator[tuple[str, slice | npt.NDArray[np.intp]]]:
    """Names of the updates in one module and the rows of each; all rows if it isn't fused."""
    pieces = [m for m in matrices if m.expert is None and m.name != module_of(tensor)]
    if not pieces:
        yield module, slice(None)
        return
    out = sum(piece.shape[0] for piece in pieces)
    for piece in pieces:
        grouped = np.arange(out).reshape(piece.groups, -1)
        yield (
            f"{module}.{piece.name.rpartition('.')[2]}",
            grouped[:, piece.first : piece.last].ravel(),
        )


def role_in(name: str, roles: Mapping[str, str]) -> str:
    """Give the role of a module: that of the longest key that its path ends with, or `role_of`."""
    fitting = [key for key in roles if f".{name}".endswith(f".{key}")]
    return roles[max(fitting, key=len)] if fitting else role_of(name)


def layer_of(name: str) -> int | None:
    """Give the layer number in a module path: its first component that is an integer.

    `layer_of("bert.encoder.layer.3.output.dense")` is 3; `layer_of("classifier")` is None.

    Args:
        name: Module path with dots.

    Returns:
        The number, or None where no component is one.
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def role_of(name: str) -> str:
    """Give the part a module plays in its layer: what follows the layer number in its path.

    Several modules of a layer may end alike ("attention.output.dense", "output.dense"), so the
    whole rest of the path is kept, without further numbers (those of experts); a path with
    nothing after a layer number gives its last component that is no number.

    Args:
        name: Module path with dots.

    Returns:
        "attention.self.query" for "bert.encoder.layer.3.attention.self.query", "classifier"
        for "classifier".
    """
    parts = name.split(".")
    numbers = [position for position, part in enumerate(parts) if part.isdecimal()]
    words = [part for part in parts if not part.isdecimal()]
    after = [part for part in parts[numbers[0] :] if not part.isdecimal()] if numbers else []
    return ".".join(after) or (words[-1] if words else name)
