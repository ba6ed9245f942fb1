"""The settings of a measurement, its progress reports and its result."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank_study.left_out import LeftOut
from lowrank_study.measurement.comparison import Similarity
from lowrank_study.measurement.subjects import FileRecord, Subject, VectorChange
from lowrank_study.spectra.readings import Reading
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.updates import MeasureMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How to measure, independent of the input."""

    method: MeasureMethod
    """"gram", "svd" or "certified", as in `spectra.spectrum.measure`."""
    compare_with_base: bool
    """Whether W0 is decomposed as well: amplification, overlap, intruder dimensions."""
    directions: int
    """How many leading directions are compared, with W0 and between updates."""
    intruder_directions: int
    """How many leading directions of W0 + delta are searched for intruders (the paper: 10)."""
    intruder_epsilon: float
    """Largest |cos| to all directions of W0 that still makes an intruder (the paper: 0.5)."""
    fit_first: int
    """First index of the decay fits, from 1."""
    fit_last: int
    """Last index of the decay fits."""
    allow_pickle: bool
    """Whether to open PyTorch's own files too, with weights_only."""
    allow_partial: bool
    """Whether to continue if more than 5 % of an input's parameters can't be compared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredMatrix:
    """One update and all its measures."""

    spectrum: Spectrum
    """Its singular values and noise floor."""
    state: str
    """"changed", "identical" (the same bits before and after) or "untrained" (B = 0)."""
    readings: dict[str, Reading]
    intruder_cosines: tuple[float, ...]
    """Largest |cos| to W0's directions, for each leading direction of W0 + delta; may be empty."""
    similarity: Similarity | None
    """The comparison with the same matrix of the other update, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The progress of a measurement."""

    done: int
    total: int
    """Number of all matrices, as far as names show it."""
    share: float
    """Share of the work done, by the cost of each matrix."""
    name: str
    outcome: str
    """Its result, in a few words."""


OnProgress = Callable[[Step], None]
OnLeftOut = Callable[[list[str]], None]
"""Called with the left-out parts, one sentence each, before anything is measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """All results of a measurement, and what was left out."""

    subject: Subject
    other_subject: Subject | None
    """The update that it was compared with."""
    settings: MeasureSettings
    matrices: list[MeasuredMatrix]
    other_matrices: list[MeasuredMatrix]
    """The matrices of the other update; empty without one."""
    vectors: list[VectorChange]
    """Tensors that are not matrices."""
    total: int
    """Number of matrices of `subject`, including left-out ones."""
    assumed: list[str]
    """Assumptions that the numbers depend on, one sentence each."""
    left_out: list[LeftOut]
    """The shares of the inputs that were not compared."""
    skipped: dict[str, str]
    """Every left-out tensor with the reason; names of the other update begin with "other: "."""
    flags: list[str]
    """Remarks on the files, one sentence each."""
    files: list[FileRecord]
    """The files that were read, with their hashes."""
