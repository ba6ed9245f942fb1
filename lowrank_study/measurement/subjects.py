"""Subjects of a measurement, two checkpoints or an adapter, and their open files.

`pairs.py` and `adapters.py` open the two kinds. Both implement `Opened`, which reads only headers
until updates are requested.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lowrank_study.checkpoints import (
    Array,
    SourceFile,
    is_adapter,
    open_weights,
    refuse_several_adapters,
    shown,
)
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut
from lowrank_study.spectra.rounding import rounding_floor
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.updates import MeasureMethod, Update

Measured = tuple[Update | None, Spectrum]
"""An update and its spectrum; None if the update was never completely in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPair:
    """Two checkpoints of one model; the update is their difference."""

    before: Path
    """Folder or file of the pretrained model."""
    after: Path
    """Folder or file of the tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOnBase:
    """An adapter; the update is what it adds to the base."""

    adapter: Path
    """A folder (PEFT, MLX), or one file (diffusers, ComfyUI, kohya, GGUF)."""
    base: Path | None
    """The model it was trained on; None if unavailable."""


Subject = CheckpointPair | AdapterOnBase


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorChange:
    """The change of one bias, norm weight or other tensor that is not a matrix."""

    name: str
    length: int
    storage_dtype: str
    """Coarser dtype of both files."""
    norm_before: float
    norm_of_change: float
    largest_change: float
    """Largest change of one entry."""
    rounding_norm: float
    """Norm that rounding in storage is expected to add; NaN if unknown."""

    @property
    def resolvable(self) -> bool:
        """Whether the change is zero or stands above the rounding of its entries."""
        return self.norm_of_change == 0.0 or self.norm_of_change > self.rounding_norm


def vector_change(name: str, before: Array, after: Array, dtype: str) -> VectorChange:
    """Return the change of a vector that is stored in a dtype."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file that was read."""

    part: str
    """"before", "after", "base" or "adapter"; prefixed with "other: " for a second update."""
    name: str
    """Its name without its folder."""
    size: int
    sha256: str


class Opened(ABC):
    """A subject with its files open."""

    prefix: str
    """Put before its names if two subjects are reported together; empty, or "other: "."""
    skipped: dict[str, str]
    """Names of what is left out, with the reasons; grows while updates are read."""
    files: list[tuple[str, SourceFile]]
    """The role of each file, and the file."""

    @property
    @abstractmethod
    def total(self) -> int:
        """Number of matrices, as far as names show it."""

    @property
    def costs(self) -> dict[str, float]:
        """Multiplications to decompose each matrix; empty if shapes are not known yet."""
        return {}

    @property
    def assumed(self) -> list[str]:
        """Assumptions that the numbers depend on, one sentence each."""
        return []

    @abstractmethod
    def remarks(self) -> list[str]:
        """Return remarks on the files, one sentence each."""

    def remarks_on(self, spectra: Sequence[Spectrum]) -> list[str]:
        """Return remarks on the files that the measured spectra reveal."""
        return []

    @abstractmethod
    def parts_left_out(self) -> list[LeftOut]:
        """Return the left-out shares that are known so far."""

    @abstractmethod
    def matrices_left_out(self) -> int:
        """Return how many matrices are known to be left out so far."""

    @abstractmethod
    def vectors(self) -> Iterator[VectorChange]:
        """Read the tensors that are not matrices."""

    @abstractmethod
    def measured(self, *, method: MeasureMethod, vectors: bool) -> Iterator[Measured]:
        """Yield each update with its spectrum, in the order of the files.

        `vectors` asks for each update itself, unless it is too large for singular vectors.
        """

    def left_out(self) -> list[LeftOut]:
        """Return the left-out shares that are known so far, with their prefix."""
        return [replace(part, of=self.prefix + part.of) for part in self.parts_left_out()]

    def records(self) -> Iterator[FileRecord]:
        """Yield the files with their hashes; each is read once more completely."""
        for part, file in self.files:
            yield FileRecord(
                part=self.prefix + part, name=file.path.name, size=file.size, sha256=file.sha256
            )


def resized_remark(module: str, before: int, after: int) -> str:
    """Return the remark on a vocabulary that grew or shrank."""
    rest = f"{after - before} new rows have no W0" if after > before else "the others were removed"
    return (
        f"{shown(module)}: {before} rows before, {after} after; the first "
        f"{min(before, after)} are compared, {rest}"
    )


def second_subject(subject: Subject, other: Path, *, allow_pickle: bool) -> Subject:
    """Return a second update of the same model, an adapter or a tuned checkpoint.

    Raises:
        InputError: `other` can't be read, or is a whole model without a base to compare with.
    """
    base = subject.before if isinstance(subject, CheckpointPair) else subject.base
    if _is_adapter(other, allow_pickle=allow_pickle):
        return AdapterOnBase(adapter=other, base=base)
    if base is None:
        raise InputError(
            f"other={shown(other)} is a whole model, which needs its base to compare with; "
            "give base=PATH"
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
