"""Measure the updates of two checkpoints, or of an adapter, matrix by matrix.

found = measure_spectra(
CheckpointPair(before=Path("base"), after=Path("tuned")),
other=Path("adapter"), settings=settings, on_progress=print, on_left_out=print,
)
found.matrices[0].readings["energy_rank_90"]
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lowrank_study.checkpoints import canonical, shown
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut, check_left_out, in_words
from lowrank_study.measurement.adapters import OpenedAdapter
from lowrank_study.measurement.comparison import (
    against_base,
    against_other,
    directions_above_floor,
    is_too_large,
    not_compared,
)
from lowrank_study.measurement.pairs import OpenedPair
from lowrank_study.measurement.progress import Tracker
from lowrank_study.measurement.records import (
    MeasuredMatrix,
    Measurement,
    MeasureSettings,
    OnLeftOut,
    OnProgress,
)
from lowrank_study.measurement.remarks import remarks_on, remarks_on_two
from lowrank_study.measurement.subjects import CheckpointPair, Opened, Subject, second_subject
from lowrank_study.spectra.measures import FitRange, readings
from lowrank_study.spectra.readings import without_value
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.subspaces import Directions
from lowrank_study.spectra.updates import Update


def open_subject(
    subject: Subject, stack: ExitStack, *, allow_pickle: bool, prefix: str
) -> OpenedPair | OpenedAdapter:
    """Open the files of a subject, which `stack` closes; only headers are read."""
    if isinstance(subject, CheckpointPair):
        return OpenedPair(subject, stack, allow_pickle=allow_pickle, prefix=prefix)
    return OpenedAdapter(subject, stack, allow_pickle=allow_pickle, prefix=prefix)


def measure_spectra(
    subject: Subject,
    *,
    other: Path | None,
    settings: MeasureSettings,
    on_progress: OnProgress,
    on_left_out: OnLeftOut,
) -> Measurement:
    """Measure every update of two checkpoints, or of an adapter.

    Args:
        other: An adapter or tuned checkpoint whose update is compared with that of `subject`. Both
            start from the same model.
        on_progress: Called after each matrix.
        on_left_out: Called before the first matrix with the assumptions and the left-out parts,
            if any, and again for parts that turn out to be NaN or infinite.

    Raises:
        InputError: A path can't be read exactly, belongs to another model or has no matrix to
            measure, or more is left out than `settings` allow.
    """
    pickle = settings.allow_pickle
    second = None if other is None else second_subject(subject, other, allow_pickle=pickle)
    with ExitStack() as stack:
        main = open_subject(subject, stack, allow_pickle=pickle, prefix="")
        opened: list[Opened] = [main]
        if second is not None:
            opened.insert(0, open_subject(second, stack, allow_pickle=pickle, prefix="other: "))
        assumed = [text for each in reversed(opened) for text in each.assumed]
        if assumed:
            on_left_out(assumed)
        left_out = _report_left_out(opened, [], settings, on_left_out)
        tracker = Tracker(opened, on_progress)
        matrices, other_matrices, used = _measure_all(opened, settings, tracker)
        _refuse_empty(main, matrices)
        if other is not None and not used:
            _refuse_unrelated(other, other_matrices, matrices)
        vectors = list(main.vectors())
        left_out = _report_left_out(opened, left_out, settings, on_left_out)
        tracker.report_hashing(sum(len(each.files) for each in opened))
        total = len(matrices) + main.matrices_left_out()
        remarks = _remarks(opened, matrices, settings, total)
        if second is not None:
            remarks += remarks_on_two(len(matrices), len(other_matrices), len(used))
        return Measurement(
            subject=subject,
            other_subject=second,
            settings=settings,
            matrices=matrices,
            other_matrices=other_matrices,
            vectors=vectors,
            total=total,
            assumed=assumed,
            left_out=left_out,
            skipped=_skipped(opened, {vector.name for vector in vectors}),
            flags=list(dict.fromkeys(remarks)),
            files=[record for each in opened for record in each.records()],
        )


def _report_left_out(
    opened: list[Opened], before: list[LeftOut], settings: MeasureSettings, report: OnLeftOut
) -> list[LeftOut]:
    """Return the parts that are left out so far, and report the new ones."""
    parts = [part for each in reversed(opened) for part in each.left_out()]
    check_left_out(parts, allow_partial=settings.allow_partial)
    if new := in_words(part for part in parts if part not in before):
        report(new)
    return parts


def _remarks(
    opened: list[Opened], matrices: list[MeasuredMatrix], settings: MeasureSettings, total: int
) -> list[str]:
    return [
        *(remark for each in opened for remark in each.remarks()),
        *remarks_on(matrices, settings, total=total),
        *opened[-1].remarks_on([matrix.spectrum for matrix in matrices]),
    ]


def _skipped(opened: list[Opened], vectors: set[str]) -> dict[str, str]:
    return {
        each.prefix + name: reason
        for each in opened
        for name, reason in each.skipped.items()
        if name not in vectors
    }


def _measure_all(
    opened: list[Opened], settings: MeasureSettings, tracker: Tracker
) -> tuple[list[MeasuredMatrix], list[MeasuredMatrix], set[str]]:
    """Measure both updates; the last result names the other update's matched matrices."""
    *others, main = opened
    vectors = settings.compare_with_base or bool(others)
    partners: dict[str, Directions | None] = {}
    other_matrices, matrices, used = [], [], set()
    for other in others:
        for update, found in _measure_each(other, settings, tracker, vectors=vectors):
            partners[found.spectrum.module] = directions_above_floor(
                update, found.spectrum, settings.directions
            )
            other_matrices.append(found)
    canonical_partners = {canonical(name): name for name in partners}
    for update, found in _measure_each(main, settings, tracker, vectors=vectors):
        partner = _partner(found.spectrum.module, partners, canonical_partners)
        if partner is not None:
            used.add(partner)
            found = _compared(found, update, partners[partner], settings)
        matrices.append(found)
    return matrices, other_matrices, used


def _measure_each(
    opened: Opened, settings: MeasureSettings, tracker: Tracker, *, vectors: bool
) -> Iterator[tuple[Update | None, MeasuredMatrix]]:
    for update, spectrum in opened.measured(method=settings.method, vectors=vectors):
        found = _measured(update, spectrum, settings)
        yield update, found
        tracker.report(opened.prefix + spectrum.module, found)


def _measured(
    update: Update | None, spectrum: Spectrum, settings: MeasureSettings
) -> MeasuredMatrix:
    found = readings(spectrum, FitRange(first=settings.fit_first, last=settings.fit_last))
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
    if not spectrum.is_zero:
        return "changed"
    return "untrained" if spectrum.factored else "identical"


def _compared(
    found: MeasuredMatrix,
    update: Update | None,
    partner: Directions | None,
    settings: MeasureSettings,
) -> MeasuredMatrix:
    mine = directions_above_floor(update, found.spectrum, settings.directions)
    if mine is not None and partner is not None and mine.V_IK.shape[0] != partner.V_IK.shape[0]:
        raise InputError(
            f"{shown(found.spectrum.module)} has {mine.V_IK.shape[0]} inputs in one update and "
            f"{partner.V_IK.shape[0]} in the other; give two updates of the same model"
        )
    of_other, similarity = against_other(mine, partner)
    if similarity is None and is_too_large(found.spectrum.shape):
        of_other = dict.fromkeys(of_other, without_value("not computed"))
    return replace(found, readings=found.readings | of_other, similarity=similarity)


def _partner(
    name: str, partners: dict[str, Directions | None], canonical_partners: dict[str, str]
) -> str | None:
    """Find a matrix by its name, or by the only name that differs just in its prefix."""
    if name in partners:
        return name
    if canonical(name) in canonical_partners:
        return canonical_partners[canonical(name)]
    ends = [key for key in partners if key.endswith(f".{name}") or name.endswith(f".{key}")]
    return ends[0] if len(ends) == 1 else None


def _refuse_empty(main: Opened, matrices: list[MeasuredMatrix]) -> None:
    if matrices:
        return
    reasons = [f"{shown(name, 60)}: {reason}" for name, reason in list(main.skipped.items())[:3]]
    raise InputError(
        f"no matrix could be measured ({'; '.join(reasons) or 'none was found'}); "
        "give two checkpoints of one model, or an adapter with its base"
    )


def _refuse_unrelated(
    other: Path, theirs: list[MeasuredMatrix], ours: list[MeasuredMatrix]
) -> None:
    def some(matrices: list[MeasuredMatrix]) -> str:
        return ", ".join(shown(m.spectrum.module, 60) for m in matrices[:4]) or "none"

    raise InputError(
        f"other={shown(other)}: none of its {len(theirs)} matrices ({some(theirs)}) is in the "
        f"first update ({some(ours)}); give another update of the same model"
    )
