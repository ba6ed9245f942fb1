"""The updates of any two checkpoints, or of any adapter, measured matrix by matrix.

    found = measure_spectra(
        CheckpointPair(before=Path("base"), after=Path("tuned")),
        other=Path("adapter"), settings=settings, on_progress=print,
    )
    found.matrices[0].readings["energy_rank_90"]

Of two checkpoints only blocks are in memory where singular values by Gram matrices are asked
for, else one update (see `updates.py`). Nothing is written here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lowrank_study.checkpoints.pairing import coarser
from lowrank_study.checkpoints.paths import shown
from lowrank_study.errors import InputError
from lowrank_study.spectra.spectrum import MeasureMethod, Spectrum
from lowrank_study.spectra.subspaces import Directions
from lowrank_study.spectra.updates import UpdateMatrix
from lowrank_study.study.measurement.comparison import (
    LARGEST_COMPARED,
    Similarity,
    against_base,
    against_other,
    directions_of,
    is_too_large,
    not_compared,
)
from lowrank_study.study.measurement.files import (
    FileRecord,
    OpenedSubject,
    Subject,
    VectorChange,
    open_subject,
    second_subject,
)
from lowrank_study.study.measurement.readings import Reading, readings, without_value
from lowrank_study.study.measurement.updates import measured_updates


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
    """Tensors of one axis."""
    skipped: dict[str, str]
    """What was left out, with the reason; names of the other update begin with "other: "."""
    flags: list[str]
    """What has to be said of the files, a sentence each."""
    files: list[FileRecord]
    """The files read, with their hashes."""


def measure_spectra(
    subject: Subject, *, other: Path | None, settings: MeasureSettings, on_progress: OnProgress
) -> Measurement:
    """Measure every update of two checkpoints, or of an adapter.

    Args:
        subject: What is measured.
        other: A second update of the same model to compare with: an adapter, or a second tuned
            checkpoint. It is taken against the model that `subject` starts from.
        settings: How to measure.
        on_progress: Called after each matrix.

    Returns:
        The measurement, all in memory; singular values are the largest part of it.

    Raises:
        InputError: What is at a path can't be read exactly, is of another model, or has no
            matrix that could be measured.
    """
    second = None if other is None else second_subject(subject, other)
    with ExitStack() as stack:
        pickle = settings.allow_pickle
        main = open_subject(subject, stack, allow_pickle=pickle, prefix="")
        opened = [main]
        if second is not None:
            opened = [open_subject(second, stack, allow_pickle=pickle, prefix="other: "), main]
        tracker = _Tracker(sum(each.total for each in opened), opened, on_progress)
        vectors = settings.compare_with_base or second is not None
        partners: dict[str, Directions | None] = {}
        other_matrices, matrices, used = [], [], set()
        if second is not None:
            for update, found in _each(opened[0], settings, tracker, vectors=vectors):
                name = found.spectrum.module
                partners[name] = directions_of(update, found.spectrum, settings.directions)
                other_matrices.append(found)
        for update, found in _each(main, settings, tracker, vectors=vectors):
            partner = _partner(found.spectrum.module, partners)
            if partner is not None:
                used.add(partner)
                found = _compared(found, update, partners[partner], settings)
            matrices.append(found)
        if not matrices:
            _refuse_nothing(main)
        if other is not None and not used:
            _refuse_strangers(other, list(partners), [m.spectrum.module for m in matrices])
        tracker.tell_hashing(sum(len(each.files) for each in opened))
        changes = list(main.vectors())
        named = {change.name for change in changes}
        flags = [flag for each in opened for flag in each.flags] + _flags(matrices, settings)
        flags += _flags_of_start(main, matrices)
        if second is not None:
            flags += _flags_of_two(matrices, other_matrices, used)
        return Measurement(
            subject=subject,
            other_subject=second,
            settings=settings,
            matrices=matrices,
            other_matrices=other_matrices,
            vectors=changes,
            skipped={
                each.prefix + name: reason
                for each in opened
                for name, reason in each.skipped.items()
                if name not in named
            },
            flags=list(dict.fromkeys(flags)),
            files=[record for each in opened for record in each.records()],
        )


def _each(
    opened: OpenedSubject, settings: MeasureSettings, tracker: "_Tracker", *, vectors: bool
) -> Iterator[tuple[UpdateMatrix | None, MeasuredMatrix]]:
    for update, spectrum in measured_updates(opened, method=settings.method, vectors=vectors):
        found = _measured(update, spectrum, settings)
        yield update, found
        tracker.tell(opened.prefix + spectrum.module, found)


def _measured(
    update: UpdateMatrix | None, spectrum: Spectrum, settings: MeasureSettings
) -> MeasuredMatrix:
    found = readings(spectrum, fit_first=settings.fit_first, fit_last=settings.fit_last)
    cosines: tuple[float, ...] = ()
    if settings.compare_with_base and update is None:
        found |= not_compared()
    elif settings.compare_with_base and update is not None and update.W0_OI is not None:
        of_base, cosines = against_base(
            update,
            spectrum,
            directions=settings.directions,
            intruders=settings.intruder_directions,
            epsilon=settings.intruder_epsilon,
        )
        found |= of_base
    return MeasuredMatrix(
        spectrum=spectrum,
        state=_state(spectrum),
        readings=found,
        intruder_cosines=cosines,
        similarity=None,
    )


def _state(spectrum: Spectrum) -> str:
    if spectrum.frobenius_norm > 0.0:
        return "changed"
    return "untrained" if spectrum.factored else "identical"


def _compared(
    found: MeasuredMatrix,
    update: UpdateMatrix | None,
    partner: Directions | None,
    settings: MeasureSettings,
) -> MeasuredMatrix:
    mine = directions_of(update, found.spectrum, settings.directions)
    if mine is not None and partner is not None and mine.V_IK.shape[0] != partner.V_IK.shape[0]:
        raise InputError(
            f"{shown(found.spectrum.module)}: has {mine.V_IK.shape[0]} inputs in one update and "
            f"{partner.V_IK.shape[0]} in the other; give two updates of the same model"
        )
    of_other, similarity = against_other(mine, partner)
    if similarity is None and is_too_large(found.spectrum.shape):
        of_other = dict.fromkeys(of_other, without_value("not computed"))
    return replace(found, readings=found.readings | of_other, similarity=similarity)


def _partner(name: str, partners: dict[str, Directions | None]) -> str | None:
    """Find a matrix by its name, or by the one name that differs only in what goes before it."""
    if name in partners:
        return name
    ends = [key for key in partners if key.endswith(f".{name}") or name.endswith(f".{key}")]
    return ends[0] if len(ends) == 1 else None


def _flags(matrices: list[MeasuredMatrix], settings: MeasureSettings) -> list[str]:
    states = [matrix.state for matrix in matrices]
    flags = []
    if settings.compare_with_base and all(not m.intruder_cosines for m in matrices):
        flags.append("nothing could be compared with W0: it isn't known, or nothing changed")
    if set(states) == {"identical"}:
        dtypes = sorted({matrix.spectrum.storage_dtype for matrix in matrices})
        flags.append(
            "both checkpoints are identical in every matrix: rank 0, ratios undefined; a change "
            f"smaller than a step of {', '.join(dtypes)} would not show"
        )
    untrained = states.count("untrained")
    if untrained:
        flags.append(
            f"{untrained} of {len(states)} adapted matrices are untrained: B = 0, "
            "as LoRA begins, so that the adapter adds nothing there"
        )
    large = [m.spectrum.module for m in matrices if is_too_large(m.spectrum.shape)]
    if settings.compare_with_base and large:
        flags.append(
            f"too large for a comparison with W0 ({LARGEST_COMPARED:,} entries at most): "
            f"{', '.join(large)}; their singular values are measured all the same"
        )
    return flags


def _flags_of_start(main: OpenedSubject, matrices: list[MeasuredMatrix]) -> list[str]:
    """Say of which matrices a coarsely stored W0 is exactly where training began."""
    if main.pairing is None:
        return []
    stored = {match.name: match.before.storage_dtype for match in main.pairing.matches}
    exact: dict[tuple[str, str], int] = {}
    for matrix in matrices:
        dtype = matrix.spectrum.storage_dtype
        before = stored[matrix.spectrum.module]
        if coarser(before, dtype) != dtype:
            exact[before, dtype] = exact.get((before, dtype), 0) + 1
    return [
        f"the {before} rounding of before is not in the differences of {count} matrices: training "
        f"began from its weights as they are stored, so that the noise floor is that of {dtype}"
        for (before, dtype), count in exact.items()
    ]


def _flags_of_two(
    matrices: list[MeasuredMatrix], others: list[MeasuredMatrix], used: set[str]
) -> list[str]:
    if len(used) == len(matrices) == len(others):
        return []
    return [
        f"{len(used)} matrices are in both updates; {len(matrices) - len(used)} are only "
        f"in the first and {len(others) - len(used)} only in the other"
    ]


def _refuse_nothing(main: OpenedSubject) -> None:
    reasons = [f"{shown(name, 60)}: {reason}" for name, reason in list(main.skipped.items())[:3]]
    raise InputError(
        f"no matrix could be measured ({'; '.join(reasons) or 'there is none'}); "
        "give two checkpoints of one model, or an adapter with its base"
    )


def _refuse_strangers(other: Path, theirs: list[str], ours: list[str]) -> None:
    def some(names: list[str]) -> str:
        return ", ".join(shown(name, 60) for name in names[:4]) or "none"

    raise InputError(
        f"other={shown(other)}: none of its {len(theirs)} matrices ({some(theirs)}) is one of "
        f"those measured ({some(ours)}); give another update of the same model"
    )


class _Tracker:
    """Turns finished matrices into `Step`s."""

    def __init__(self, total: int, opened: list[OpenedSubject], on_progress: OnProgress) -> None:
        self._costs = {e.prefix + name: cost for e in opened for name, cost in e.costs.items()}
        known = sum(self._costs.values())
        # Adapters tell no shapes before they are read: their factors cost about nothing beside.
        self._each = 0.0 if known else 1.0
        self._all = known or float(total)
        self._total, self._done, self._spent = total, 0, 0.0
        self._tell = on_progress

    def tell_hashing(self, files: int) -> None:
        """Say that all is measured, and what may take a while yet."""
        total = max(self._total, self._done)
        self._tell(
            Step(
                done=self._done,
                total=total,
                share=1.0,
                name="SHA-256",
                outcome=f"hashing {files} files",
            )
        )

    def tell(self, name: str, found: MeasuredMatrix) -> None:
        """Say that a matrix is done."""
        self._done += 1
        self._spent += self._costs.get(name, self._each)
        rank = found.readings["energy_rank_90"]
        outcome = rank.status if rank.value is None else f"{rank.value:.0f}"
        changed = f"90 % energy rank {outcome}" if found.state == "changed" else found.state
        self._tell(
            Step(
                done=self._done,
                # Fused tensors of an adapter turn out to be several matrices.
                total=max(self._total, self._done),
                share=min(self._spent / self._all, 1.0) if self._all else 1.0,
                name=name,
                outcome=changed,
            )
        )
