"""What is measured, with its files open: two checkpoints, or an adapter.

    with ExitStack() as stack:
        opened = open_subject(CheckpointPair(before=base, after=tuned), stack, ...)
        opened.pairing, opened.skipped, opened.flags
        list(opened.vectors()), list(opened.records())

Nothing but headers is read before it is asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from lowrank_study.checkpoints import (
    Adapter,
    Array,
    Pairing,
    SourceFile,
    Unpaired,
    Weights,
    coarser,
    is_adapter,
    left_out_parts,
    module_of,
    open_adapter,
    open_weights,
    pair,
    refuse_several_adapters,
    shown,
)
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut
from lowrank_study.spectra.adapter_updates import updates_of_adapter
from lowrank_study.spectra.rounding import rounding_floor
from lowrank_study.spectra.updates import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPair:
    """Two checkpoints of one model: the update is what changed from one to the other."""

    before: Path
    """Folder or file of the pretrained model."""
    after: Path
    """Folder or file of the tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOnBase:
    """An adapter: the update is what it adds."""

    adapter: Path
    """A folder (PEFT, MLX), or one file (diffusers, ComfyUI, kohya, GGUF)."""
    base: Path | None
    """The model it was trained on; None where that isn't at hand."""


Subject = CheckpointPair | AdapterOnBase


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorChange:
    """The change of one bias, norm weight or other tensor that is not a matrix."""

    name: str
    """Name of the tensor."""
    length: int
    """Its entries."""
    storage_dtype: str
    """Coarser dtype of both files."""
    norm_before: float
    """Euclidean norm before."""
    norm_of_change: float
    """Euclidean norm of the change."""
    largest_change: float
    """Largest change of one entry."""
    rounding_norm: float
    """Norm that rounding in storage is expected to add; NaN if unknown."""

    @property
    def resolvable(self) -> bool:
        """Whether the change is zero or stands above the rounding of its entries."""
        return self.norm_of_change == 0.0 or self.norm_of_change > self.rounding_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file that was read."""

    part: str
    """"before", "after", "base", "adapter", "other ..."."""
    name: str
    """Its name without its folder."""
    size: int
    """In bytes."""
    sha256: str
    """Of all its bytes."""


@dataclass(slots=True, kw_only=True)
class OpenedSubject:
    """A subject with its files open."""

    prefix: str
    """Put before its names where two subjects are told of together; empty, or "other: "."""
    pairing: Pairing | None
    """The matrices of two checkpoints; None for an adapter."""
    adapter_updates: Iterator[Update]
    """The updates of an adapter, each read when it is asked for; none of two checkpoints."""
    total: int
    """How many there are, as far as names tell."""
    costs: dict[str, float]
    """What each takes to decompose, in multiplications; empty where shapes aren't known yet."""
    flags: list[str]
    """What has to be said of its files."""
    assumed: list[str]
    """Assumptions that the numbers depend on, one sentence each."""
    skipped: dict[str, str]
    """What is left out, with the reason; grows while updates are read."""
    left_out: Callable[[], list[LeftOut]]
    """Returns the left-out shares that are known so far."""
    left_out_matrices: Callable[[], int]
    """Returns how many matrices are known to be left out so far."""
    vectors: Callable[[], Iterator[VectorChange]]
    """Reads the tensors that are not matrices."""
    files: list[tuple[str, SourceFile]]
    """The part each file plays, and the file."""

    def records(self) -> Iterator[FileRecord]:
        """Give its files with their hashes, reading each once more from end to end."""
        for part, file in self.files:
            yield FileRecord(
                part=self.prefix + part, name=file.path.name, size=file.size, sha256=file.sha256
            )


def open_subject(
    subject: Subject, stack: ExitStack, *, allow_pickle: bool, prefix: str
) -> OpenedSubject:
    """Open the files of a subject, which `stack` closes; only headers are read.

    Args:
        subject: What is measured.
        stack: Gets every file that is opened.
        allow_pickle: Whether PyTorch's own files are opened too.
        prefix: Empty, or what its names begin with.

    Raises:
        InputError: A file can't be read exactly, or the two don't belong together.
    """

    def weights(path: Path) -> Weights:
        return stack.enter_context(open_weights(path, allow_pickle=allow_pickle))

    if isinstance(subject, CheckpointPair):
        before, after = weights(subject.before), weights(subject.after)
        pairing = pair(before, after)
        return OpenedSubject(
            prefix=prefix,
            pairing=pairing,
            adapter_updates=iter(()),
            total=len(pairing.matches),
            costs={m.name: float(prod(m.shape)) * min(m.shape) for m in pairing.matches},
            flags=[prefix + flag for flag in (*pairing.flags, *_resized(pairing))],
            assumed=[],
            skipped=pairing.skipped,
            left_out=lambda: _under(prefix, pairing.left_out()),
            left_out_matrices=pairing.left_out_matrices,
            vectors=lambda: (
                _vector_change(
                    name, w0, w, coarser(*map(_dtype, (before, after), pairing.vectors[name]))
                )
                for name, w0, w in pairing.read_vectors()
            ),
            files=[("before", f) for f in before.files] + [("after", f) for f in after.files],
        )
    adapter = stack.enter_context(open_adapter(subject.adapter, allow_pickle=allow_pickle))
    base = None if subject.base is None else weights(subject.base)
    if base is not None:
        adapter.check_base(base)
    skipped: dict[str, str] = {}
    return OpenedSubject(
        prefix=prefix,
        pairing=None,
        adapter_updates=updates_of_adapter(adapter, base=base, roles={}, skipped=skipped),
        total=len(adapter.modules()) + len(adapter.saved_weights()),
        costs={},
        flags=[prefix + flag for flag in (*adapter.flags, *_resized_by(adapter, base))]
        + [f"{prefix}base: {flag}" for flag in (base.flags if base is not None else ())],
        assumed=[prefix + text for text in adapter.assumed],
        skipped=skipped,
        left_out=lambda: _under(prefix, left_out_of_adapter(adapter, base)),
        left_out_matrices=lambda: sum(
            len(adapter.shape(saved)) > 1 and not _has_w0(adapter, saved, base)
            for saved in adapter.saved_weights()
        ),
        vectors=lambda: _vectors_of_adapter(adapter, base),
        files=[("adapter", f) for f in adapter.files]
        + [("base", f) for f in (base.files if base is not None else ())],
    )


def _under(prefix: str, parts: list[LeftOut]) -> list[LeftOut]:
    return [replace(part, of=prefix + part.of) for part in parts]


def left_out_of_adapter(adapter: Adapter, base: Weights | None) -> list[LeftOut]:
    """Return the shares of an adapter that can't be read, or have no W0 to compare with.

    The share of a module that the base does not have, such as a new head, is relative to the
    whole adapted model: relative to a small adapter, it would always be large.

    Args:
        adapter: The opened adapter.
        base: The base model, or None if it is not given.
    """
    if base is None:
        lost = [
            _lost(adapter, saved, "trained in full, with no W0 to compare with (give base=MODEL)")
            for saved in adapter.saved_weights()
        ]
        compared = adapter.parameters - sum(item.parameters for item in lost)
        return [*adapter.left_out, *left_out_parts(lost, side="adapter", compared=compared)]
    new, lost = [], []
    for saved in adapter.saved_weights():
        if not adapter.in_base(saved, base):
            new.append(_lost(adapter, saved, "new in the adapter, with no W0 to compare with"))
        elif not adapter.fits(saved, base):
            lost.append(_lost(adapter, saved, "shape differs from the base's"))
        else:
            rows = max(adapter.extra_rows(saved, base), 0)
            shape, why = (rows, *adapter.shape(saved)[1:]), "rows that only the adapter has"
            lost.append(Unpaired.of("adapter", module_of(saved), shape, why, is_matrix=False))
    theirs = adapter.parameters - sum(item.parameters for item in lost)
    ours = sum(prod(base.shape(name)) for name in base.names())
    return [
        *adapter.left_out,
        *left_out_parts(lost, side="adapter", compared=theirs),
        *left_out_parts(new, side="the adapted model", compared=ours),
    ]


def _has_w0(adapter: Adapter, saved: str, base: Weights | None) -> bool:
    return base is not None and adapter.in_base(saved, base) and adapter.fits(saved, base)


def _lost(adapter: Adapter, saved: str, why: str) -> Unpaired:
    return Unpaired.of("adapter", module_of(saved), adapter.shape(saved), why, is_matrix=True)


def _resized(pairing: Pairing) -> Iterator[str]:
    """Sentences on vocabularies of which only the rows that both have are compared."""
    for match in pairing.matches:
        before, after = match.before.shape[0], match.after.shape[0]
        if before != after:
            yield _resized_flag(match.name, before, after)


def _resized_by(adapter: Adapter, base: Weights | None) -> Iterator[str]:
    if base is None:
        return
    for saved in adapter.saved_weights():
        if adapter.in_base(saved, base) and adapter.extra_rows(saved, base):
            before = base.shape(adapter.base_tensor(saved, base))[0]
            after = before + adapter.extra_rows(saved, base)
            yield _resized_flag(module_of(saved), before, after)


def _resized_flag(module: str, before: int, after: int) -> str:
    rest = f"{after - before} new rows have no W0" if after > before else "the others are gone"
    return (
        f"{shown(module)}: {before} rows before, {after} after; the first "
        f"{min(before, after)} are compared, {rest}"
    )


def _dtype(weights: Weights, tensor: str) -> str:
    return weights.dtype(tensor)


def second_subject(subject: Subject, other: Path, *, allow_pickle: bool) -> Subject:
    """Return whether a second path is an adapter or a second tuned checkpoint.

    Args:
        subject: The first update, which is measured.
        other: A folder or a file.
        allow_pickle: Whether PyTorch's own files are opened too.

    Raises:
        InputError: It can't be read, or it is a whole model and there is no base to compare with.
    """
    base = subject.before if isinstance(subject, CheckpointPair) else subject.base
    if _is_adapter(other, allow_pickle=allow_pickle):
        return AdapterOnBase(adapter=other, base=base)
    if base is None:
        raise InputError(
            f"other={shown(other)}: is a whole model, of which only the difference to its base "
            "can be compared; give base=PATH"
        )
    return CheckpointPair(before=base, after=other)


def _is_adapter(path: Path, *, allow_pickle: bool) -> bool:
    if path.is_dir():
        refuse_several_adapters(path)
        return (path / "adapter_config.json").is_file()
    if path.name.startswith("adapter_model."):  # with copies of W0 it looks like a model
        return True
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        return is_adapter(weights)


def _vectors_of_adapter(adapter: Adapter, base: Weights | None) -> Iterator[VectorChange]:
    for saved in adapter.saved_weights():
        if base is None or not adapter.in_base(saved, base) or not adapter.fits(saved, base):
            continue
        tensor = adapter.base_tensor(saved, base)
        if len(base.shape(tensor)) < 2:
            w0, delta = base.read(tensor), adapter.saved_delta(saved, base)
            dtype = coarser(base.dtype(tensor), adapter.storage_dtype(saved))
            yield _vector_change(module_of(saved), w0, w0 + delta, dtype)


def _vector_change(name: str, before: Array, after: Array, dtype: str) -> VectorChange:
    w0 = before.astype(np.float64).reshape(1, -1)
    delta = np.subtract(after.reshape(1, -1), w0, dtype=np.float64)
    return VectorChange(
        name=name,
        length=delta.size,
        storage_dtype=dtype,
        norm_before=float(np.linalg.norm(w0)),
        norm_of_change=float(np.linalg.norm(delta)),
        largest_change=float(np.abs(delta).max(initial=0.0)),
        rounding_norm=rounding_floor(w0, delta, dtype).frobenius_norm,
    )
