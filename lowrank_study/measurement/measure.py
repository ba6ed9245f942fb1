"""The updates of any two checkpoints, or of any adapter, measured matrix by matrix.

    found = measure_spectra(
        CheckpointPair(before=Path("base"), after=Path("tuned")),
        other=Path("adapter"), settings=settings, on_progress=print,
    )
    found.matrices[0].readings["energy_rank_90"]

Of two checkpoints only blocks are in memory where singular values by Gram matrices are asked
for, else one update (see `updates.py`). Nothing is written here.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lowrank_study.checkpoints import canonical, shown
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut, check_left_out, in_words
from lowrank_study.measurement.comparison import (
    against_base,
    against_other,
    directions_of,
    is_too_large,
    not_compared,
)
from lowrank_study.measurement.files import (
    OpenedSubject,
    Subject,
    open_subject,
    second_subject,
)
from lowrank_study.measurement.flags import flags_of, flags_of_start, flags_of_two
from lowrank_study.measurement.records import (
    MeasuredMatrix,
    Measurement,
    MeasureSettings,
    OnLeftOut,
    OnProgress,
    Step,
)
from lowrank_study.measurement.updates import measured_updates
from lowrank_study.spectra.measures import FitRange, readings
from lowrank_study.spectra.readings import without_value
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.subspaces import Directions
from lowrank_study.spectra.updates import Update


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
        subject: What is measured.
        other: A second update of the same model to compare with: an adapter, or a second tuned
            checkpoint. It is taken against the model that `subject` starts from.
        settings: How to measure.
        on_progress: Called after each matrix.
        on_left_out: Called before the first matrix with the assumptions and the left-out parts,
        if any; called again for parts that turn out to be NaN or infinite.

    Returns:
        The measurement, all in memory; singular values are the largest part of it.

    Raises:
        InputError: A path can't be read exactly, belongs to another model or has no matrix to
        measure, or more is left out than `settings` allow.
    """
    pickle = settings.allow_pickle
    second = None if other is None else second_subject(subject, other, allow_pickle=pickle)
    with ExitStack() as stack:
        main = open_subject(subject, stack, allow_pickle=pickle, prefix="")
        opened = [main]
        if second is not None:
            opened = [open_subject(second, stack, allow_pickle=pickle, prefix="other: "), main]
        assumed = [text for each in reversed(opened) for text in each.assumed]
        if assumed:
            on_left_out(assumed)
        left_out = _told(opened, [], settings, on_left_out)
        tracker = _Tracker(sum(each.total for each in opened), opened, on_progress)
        matrices, other_matrices, used = _all_matrices(opened, settings, tracker)
        if not matrices:
            _refuse_nothing(main)
        if other is not None and not used:
            theirs, ours = ([m.spectrum.module for m in ms] for ms in (other_matrices, matrices))
            _refuse_strangers(other, theirs, ours)
        changes = list(main.vectors())
        left_out = _told(opened, left_out, settings, on_left_out)
        tracker.tell_hashing(sum(len(each.files) for each in opened))
        total = len(matrices) + main.left_out_matrices()
        flags = [flag for each in opened for flag in each.flags]
        flags += flags_of(matrices, settings, total=total) + flags_of_start(main, matrices)
        if second is not None:
            flags += flags_of_two(matrices, other_matrices, used)
        named = {change.name for change in changes}
        return Measurement(
            subject=subject,
            other_subject=second,
            settings=settings,
            matrices=matrices,
            other_matrices=other_matrices,
            vectors=changes,
            total=total,
            assumed=assumed,
            left_out=left_out,
            skipped={
                each.prefix + name: reason
                for each in opened
                for name, reason in each.skipped.items()
                if name not in named
            },
            flags=list(dict.fromkeys(flags)),
            files=[record for each in opened for record in each.records()],
        )


def _told(
    opened: list[OpenedSubject],
    before: list[LeftOut],
    settings: MeasureSettings,
    tell: OnLeftOut,
) -> list[LeftOut]:
    """Return the parts that are left out so far, and report the new ones.

    Raises:
        InputError: It is more than the settings allow.
    """
    parts = [part for each in reversed(opened) for part in each.left_out()]
    check_left_out(parts, allow_partial=settings.allow_partial)
    if new := in_words(part for part in parts if part not in before):
        tell(new)
    return parts


def _all_matrices(
    opened: list[OpenedSubject], settings: MeasureSettings, tracker: "_Tracker"
) -> tuple[list[MeasuredMatrix], list[MeasuredMatrix], set[str]]:
    """Measure the matrices of both updates; the last part lists the other update's matched ones."""
    *others, main = opened
    vectors = settings.compare_with_base or bool(others)
    partners: dict[str, Directions | None] = {}
    other_matrices, matrices, used = [], [], set()
    for other in others:
        for update, found in _each(other, settings, tracker, vectors=vectors):
            name = found.spectrum.module
            partners[name] = directions_of(update, found.spectrum, settings.directions)
            other_matrices.append(found)
    canonical_partners = {canonical(name): name for name in partners}
    for update, found in _each(main, settings, tracker, vectors=vectors):
        partner = _partner(found.spectrum.module, partners, canonical_partners)
        if partner is not None:
            used.add(partner)
            found = _compared(found, update, partners[partner], settings)
        matrices.append(found)
    return matrices, other_matrices, used


def _each(
    opened: OpenedSubject, settings: MeasureSettings, tracker: "_Tracker", *, vectors: bool
) -> Iterator[tuple[Update | None, MeasuredMatrix]]:
    for update, spectrum in measured_updates(opened, method=settings.method, vectors=vectors):
        found = _measured(update, spectrum, settings)
        yield update, found
        tracker.tell(opened.prefix + spectrum.module, found)


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
    if spectrum.frobenius_norm > 0.0:
        return "changed"
    return "untrained" if spectrum.factored else "identical"


def _compared(
    found: MeasuredMatrix,
    update: Update | None,
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


def _partner(
    name: str, partners: dict[str, Directions | None], canonical_partners: dict[str, str]
) -> str | None:
    """Find a matrix by its name, or by the one name that differs only in what goes before it."""
    if name in partners:
        return name
    if canonical(name) in canonical_partners:
        return canonical_partners[canonical(name)]
    ends = [key for key in partners if key.endswith(f".{name}") or name.endswith(f".{key}")]
    return ends[0] if len(ends) == 1 else None


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
