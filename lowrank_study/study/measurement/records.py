"""What a measurement is asked for, what it tells on its way, and all that it found."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank_study.left_out import LeftOut
from lowrank_study.spectra.spectrum import MeasureMethod, Spectrum
from lowrank_study.study.measurement.comparison import Similarity
from lowrank_study.study.measurement.files import FileRecord, Subject, VectorChange
from lowrank_study.study.measurement.readings import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How to measure; none of it depends on what is measured."""

    method: MeasureMethod
    """"gram", "svd" or "certified", as for `spectra.spectrum.measure`."""
    compare_with_base: bool
    """Whether W0 is decomposed as well: amplification, overlap, intruder dimensions."""
    directions: int
    """Leading directions that are compared, with W0 and between updates."""
    intruder_directions: int
    """Leading directions of W0 + delta in which intruders are looked for (the paper: 10)."""
    intruder_epsilon: float
    """Largest |cos| to all directions of W0 that makes an intruder (the paper: .5)."""
    fit_first: int
    """First index of the decay fits, from 1."""
    fit_last: int
    """Last index of the decay fits."""
    allow_pickle: bool
    """Whether PyTorch's own files are opened too, with weights_only."""
    allow_partial: bool
    """Whether to go on where more than 5 % of an input's parameters can't be compared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredMatrix:
    """One update and everything told of it."""

    spectrum: Spectrum
    """Its singular values and noise floor."""
    state: str
    """"changed", "identical" (the same bits before and after) or "untrained" (B = 0)."""
    readings: dict[str, Reading]
    """Measure name to reading."""
    intruder_cosines: tuple[float, ...]
    """Largest |cos| to W0's directions of each leading direction of W0 + delta; may be empty."""
    similarity: Similarity | None
    """To the same matrix of the other update, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far a measurement has come."""

    done: int
    """Matrices that are done."""
    total: int
    """Matrices there are, as far as names tell."""
    share: float
    """Share of the work done, by the cost of each matrix."""
    name: str
    """What was done last."""
    outcome: str
    """What it showed, in a few words."""


OnProgress = Callable[[Step], None]
OnLeftOut = Callable[[list[str]], None]
"""Called with what is left out, a sentence each, before anything is measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """Everything that was measured, and what was left out."""

    subject: Subject
    """What was measured."""
    other_subject: Subject | None
    """What it was compared with."""
    settings: MeasureSettings
    """How."""
    matrices: list[MeasuredMatrix]
    """The updates, in the order of the files."""
    other_matrices: list[MeasuredMatrix]
    """Those of the other update; empty without one."""
    vectors: list[VectorChange]
    """Tensors that are no matrices."""
    total: int
    """Matrices that `subject` has, those that were left out included."""
    assumed: list[str]
    """What the numbers depend on and the files don't say, a sentence each."""
    left_out: list[LeftOut]
    """The shares of the inputs that were not compared."""
    skipped: dict[str, str]
    """Every tensor left out, with the reason; names of the other update begin with "other: "."""
    flags: list[str]
    """What has to be said of the files, a sentence each."""
    files: list[FileRecord]
    """The files read, with their hashes."""
