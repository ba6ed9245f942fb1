"""The updates ΔW of an adapter, one module at a time.

with open_adapter("adapter") as adapter, open_weights("base") as base:
for update in updates_of_adapter(adapter, base=base, roles={}, skipped={}):
measure(update, method="gram")
"""

from collections.abc import Iterator, Mapping, MutableMapping

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints import (
    Adapter,
    Matrix,
    Weights,
    find_matrices,
    is_vocabulary,
    module_of,
)
from lowrank_study.spectra.precision import dtype_of_difference
from lowrank_study.spectra.updates import (
    DenseUpdate,
    FactoredUpdate,
    FloatArray,
    Update,
    layer_of,
    role_in,
)


def updates_of_adapter(
    adapter: Adapter,
    *,
    base: Weights | None,
    roles: Mapping[str, str],
    skipped: MutableMapping[str, str],
) -> Iterator[Update]:
    """Yield the update of each module that an adapter changes, one at a time.

    LoRA and its variants give factors. DoRA gives a dense change of W0. LoHa, LoKr and VeRA give
    dense updates without W0, because their numbers were never rounded together with it. Matrices
    trained in full come last, as dense differences. If the base stores query, key and value fused,
    each of them is a separate update.

    Args:
        base: The open base model, which is needed for W0, to split fused modules, for matrices
            trained in full, and for all kinds except LoRA.
        roles: As for `update_of_match`.
        skipped: Receives the name and reason of each matrix that is left out.

    Raises:
        InputError: The adapter needs a base that is missing or does not fit.
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
) -> Iterator[Update]:
    """Yield the updates of one adapted module; several if the base stores it fused."""
    W0_OI, tensor = None, ""
    if base is not None and adapter.in_base(module, base):
        W0_OI = adapter.base_matrix(module, base)
        tensor = adapter.base_tensor(module, base)
    names_and_rows = _named_rows(module, tensor, by_tensor.get(tensor, []))
    if adapter.kind in FACTORED_KINDS:
        B_OR, A_RI, scaling, storage_dtype = adapter.factors(module, base)
        for name, rows in names_and_rows:
            yield FactoredUpdate(
                name=name,
                layer=layer_of(name),
                role=role_in(name, roles),
                storage_dtype=storage_dtype,
                B_OR=B_OR[rows],
                A_RI=A_RI,
                scaling=scaling,
                W0_OI=None if W0_OI is None else W0_OI[rows],
            )
        return
    if adapter.kind != "dora":
        W0_OI = None
    delta_OI = adapter.delta(module, base)
    for name, rows in names_and_rows:
        yield DenseUpdate(
            name=name,
            layer=layer_of(name),
            role=role_in(name, roles),
            storage_dtype=adapter.storage_dtype(module),
            delta_OI=delta_OI[rows],
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
) -> Iterator[Update]:
    """Yield the updates of one weight trained in full, as differences from the base."""
    module, tensor = module_of(saved), adapter.base_tensor(saved, base)
    W, delta = adapter.read(saved), adapter.saved_delta(saved, base)
    W0 = base.read(tensor)[: delta.shape[0]]
    # For a scaled dtype, the numbers alone do not give the step, so the floor is unknown.
    before = f"scaled {base.dtype(tensor)}" if base.is_scaled(tensor) else base.dtype(tensor)
    storage_dtype = dtype_of_difference(W0, W, delta, dtypes=(before, adapter.storage_dtype(saved)))
    for matrix in by_tensor[tensor]:
        name = module + matrix.name.removeprefix(module_of(tensor))
        yield DenseUpdate(
            name=name,
            layer=layer_of(name),
            role=role_in(name, roles),
            storage_dtype=storage_dtype,
            delta_OI=matrix.cut(delta),
            W0_OI=matrix.cut(W0),
        )


FACTORED_KINDS = ("lora", "kohya", "gguf", "pissa", "olora")
"""Kinds of adapters whose update is a product of two factors."""


def _tied_twins(adapter: Adapter) -> dict[str, str]:
    """Map copies among updates of vocabularies to the original: tied weights are saved twice."""

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
    """Yield the name and the rows of each update in one module; all rows if it is not fused."""
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
