"""The updates of any two checkpoints, or of any adapter, measured matrix by matrix.

    found = measure_spectra(
        CheckpointPair(before=Path("base"), after=Path("tuned")),
        other=Path("adapter"), settings=settings, on_progress=print,
    )
    found.matrices[0].readings["energy_rank_90"]

One update is in memory while the next is read by a thread: a checkpoint of any size needs the
memory of its two largest neighbours. Nothing is written here.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from lowrank_study.checkpoints import SourceFile, Weights, open_adapter, open_weights, pair
from lowrank_study.checkpoints.adapters import Adapter
from lowrank_study.checkpoints.matrices import module_of
from lowrank_study.checkpoints.pairing import coarser
from lowrank_study.checkpoints.tensors import Array
from lowrank_study.errors import InputError
from lowrank_study.spectra.noise import rounding_floor_of_difference
from lowrank_study.spectra.spectrum import MeasureMethod, Spectrum, measure
from lowrank_study.spectra.subspaces import Directions
from lowrank_study.spectra.updates import UpdateMatrix, updates_of_adapter, updates_of_pair
from lowrank_study.study.comparison import Similarity, against_base, against_other, directions_of
from lowrank_study.study.readings import Reading, readings


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
    """Folder saved by PEFT, or file of kohya's scripts."""
    base: Path | None
    """The model it was trained on; None where that isn't at hand."""


Subject = CheckpointPair | AdapterOnBase


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
class VectorChange:
    """The change of one bias, norm weight or other tensor of one axis."""

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
    second = None if other is None else _second_subject(subject, other)
    with ExitStack() as stack:
        main = _open(subject, stack, settings)
        opened = [main] if second is None else [_open(second, stack, settings, "other: "), main]
        tracker = _Tracker(sum(each.total for each in opened), opened, on_progress)
        partners: dict[str, Directions | None] = {}
        other_matrices = []
        if second is not None:
            for update in _prefetched(opened[0].updates):
                spectrum = measure(update, method=settings.method)
                partners[update.name] = directions_of(update, spectrum, settings.directions)
                other_matrices.append(_measured(update, spectrum, settings))
                tracker.tell(f"other: {update.name}", other_matrices[-1])
        matrices, used = [], set()
        for update in _prefetched(main.updates):
            spectrum = measure(update, method=settings.method)
            found = _measured(update, spectrum, settings)
            if second is not None and (partner := _partner(update.name, partners)) is not None:
                found = _compared(found, update, partners[partner], settings)
                used.add(partner)
            matrices.append(found)
            tracker.tell(update.name, found)
        if not matrices:
            _refuse_nothing(main)
        if second is not None and not used:
            raise InputError(
                f"other={other}: none of its {len(partners)} matrices ({_some(list(partners))}) "
                f"is one of those measured ({_some([m.spectrum.module for m in matrices])}); "
                "give another update of the same model"
            )
        vectors = list(main.vectors())
        flags = [flag for each in opened for flag in each.flags]
        if second is not None and len(used) < max(len(matrices), len(partners)):
            flags.append(
                f"{len(used)} matrices are in both updates; {len(matrices) - len(used)} are only "
                f"in the first and {len(partners) - len(used)} only in the other"
            )
        if settings.compare_with_base and all(not m.intruder_cosines for m in matrices):
            flags.append("nothing could be compared with W0: it isn't known, or nothing changed")
        named = {vector.name for vector in vectors}
        return Measurement(
            subject=subject,
            other_subject=second,
            settings=settings,
            matrices=matrices,
            other_matrices=other_matrices,
            vectors=vectors,
            skipped={
                each.prefix + name: reason
                for each in opened
                for name, reason in each.skipped.items()
                if name not in named
            },
            flags=list(dict.fromkeys(flags + _flags(matrices))),
            files=[record for each in opened for record in each.records()],
        )


@dataclass(slots=True, kw_only=True)
class _Opened:
    """A subject with its files open."""

    prefix: str
    updates: Iterator[UpdateMatrix]
    total: int
    costs: dict[str, float]
    flags: list[str]
    skipped: dict[str, str]
    vectors: Callable[[], Iterator[VectorChange]]
    files: list[tuple[str, SourceFile]]

    def records(self) -> Iterator[FileRecord]:
        for part, file in self.files:
            yield FileRecord(
                part=self.prefix + part, name=file.path.name, size=file.size, sha256=file.sha256
            )


def _open(
    subject: Subject, stack: ExitStack, settings: MeasureSettings, prefix: str = ""
) -> _Opened:
    def weights(path: Path) -> Weights:
        return stack.enter_context(open_weights(path, allow_pickle=settings.allow_pickle))

    if isinstance(subject, CheckpointPair):
        before, after = weights(subject.before), weights(subject.after)
        pairing = pair(before, after)
        new_rows = [match for match in pairing.matches if match.new_rows]
        return _Opened(
            prefix=prefix,
            updates=updates_of_pair(pairing, roles={}),
            total=len(pairing.matches),
            costs={m.name: float(prod(m.shape)) * min(m.shape) for m in pairing.matches},
            flags=[prefix + flag for flag in pairing.flags]
            + [f"{prefix}{m.name}: {m.new_rows} new rows have no W0, left out" for m in new_rows],
            skipped=pairing.skipped,
            vectors=lambda: (
                _vector_change(
                    name, w0, w, coarser(*map(_dtype, (before, after), pairing.vectors[name]))
                )
                for name, w0, w in pairing.read_vectors()
            ),
            files=[("before", f) for f in before.files] + [("after", f) for f in after.files],
        )
    adapter = stack.enter_context(
        open_adapter(subject.adapter, allow_pickle=settings.allow_pickle)
    )
    base = None if subject.base is None else weights(subject.base)
    if base is not None:
        adapter.check_base(base)
    skipped: dict[str, str] = {}
    return _Opened(
        prefix=prefix,
        updates=updates_of_adapter(adapter, base=base, roles={}, skipped=skipped),
        total=len(adapter.modules()) + len(adapter.saved_weights()),
        costs={},
        flags=[f"{prefix}adapter: {flag}" for flag in adapter.flags]
        + [f"{prefix}base: {flag}" for flag in (base.flags if base is not None else ())],
        skipped=skipped,
        vectors=lambda: _vectors_of_adapter(adapter, base),
        files=[("adapter", f) for f in adapter.files]
        + [("base", f) for f in (base.files if base is not None else ())],
    )


def _dtype(weights: Weights, tensor: str) -> str:
    return weights.dtype(tensor)


def _second_subject(subject: Subject, other: Path) -> Subject:
    """Tell what a second path is: an adapter's folder, or a second tuned checkpoint."""
    is_pair = isinstance(subject, CheckpointPair)
    base = subject.before if isinstance(subject, CheckpointPair) else subject.base
    like_the_first = not is_pair and not other.is_dir()
    if (other / "adapter_config.json").is_file() or like_the_first:
        return AdapterOnBase(adapter=other, base=base)
    if base is None:
        raise InputError(
            f"other={other}: is a whole model, of which only the difference to its base can be "
            "compared; give base=PATH"
        )
    return CheckpointPair(before=base, after=other)


def _prefetched(updates: Iterator[UpdateMatrix]) -> Iterator[UpdateMatrix]:
    """Yield the same updates; a thread reads the next one while the last is worked on."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader:
        ahead = reader.submit(next, updates, None)
        while (update := ahead.result()) is not None:
            ahead = reader.submit(next, updates, None)
            yield update
            del update


def _measured(
    update: UpdateMatrix, spectrum: Spectrum, settings: MeasureSettings
) -> MeasuredMatrix:
    found = readings(spectrum, fit_first=settings.fit_first, fit_last=settings.fit_last)
    cosines: tuple[float, ...] = ()
    if settings.compare_with_base and update.W0_OI is not None:
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
        state=_state(update, spectrum),
        readings=found,
        intruder_cosines=cosines,
        similarity=None,
    )


def _state(update: UpdateMatrix, spectrum: Spectrum) -> str:
    if spectrum.frobenius_norm > 0.0:
        return "changed"
    return "identical" if update.factors is None else "untrained"


def _compared(
    found: MeasuredMatrix,
    update: UpdateMatrix,
    partner: Directions | None,
    settings: MeasureSettings,
) -> MeasuredMatrix:
    mine = directions_of(update, found.spectrum, settings.directions)
    if mine is not None and partner is not None and mine.V_IK.shape[0] != partner.V_IK.shape[0]:
        raise InputError(
            f"{update.name}: has {mine.V_IK.shape[0]} inputs in one update and "
            f"{partner.V_IK.shape[0]} in the other; give two updates of the same model"
        )
    of_other, similarity = against_other(mine, partner)
    return MeasuredMatrix(
        spectrum=found.spectrum,
        state=found.state,
        readings=found.readings | of_other,
        intruder_cosines=found.intruder_cosines,
        similarity=similarity,
    )


def _partner(name: str, partners: dict[str, Directions | None]) -> str | None:
    """Find a matrix by its name, or by the one name that differs only in what goes before it."""
    if name in partners:
        return name
    ends = [
        key for key in partners if key.endswith(f".{name}") or name.endswith(f".{key}")
    ]
    return ends[0] if len(ends) == 1 else None


def _vectors_of_adapter(adapter: Adapter, base: Weights | None) -> Iterator[VectorChange]:
    for tensor in adapter.saved_weights():
        if base is not None and tensor in base and len(base.shape(tensor)) == 1:
            w0, delta = base.read(tensor), adapter.saved_delta(tensor, base)
            yield _vector_change(module_of(tensor), w0, w0 + delta, base.dtype(tensor))


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
        rounding_norm=rounding_floor_of_difference(w0, delta, dtype).frobenius_norm,
    )


def _flags(matrices: list[MeasuredMatrix]) -> list[str]:
    states = [matrix.state for matrix in matrices]
    flags = []
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
    return flags


def _refuse_nothing(main: _Opened) -> None:
    reasons = [f"{name}: {reason}" for name, reason in list(main.skipped.items())[:3]]
    raise InputError(
        f"no matrix could be measured ({'; '.join(reasons) or 'there is none'}); "
        "give two checkpoints of one model, or an adapter with its base"
    )


def _some(names: list[str]) -> str:
    return ", ".join(ascii(name)[1:-1][:60] for name in names[:4]) or "none"


class _Tracker:
    """Turns finished matrices into `Step`s."""

    def __init__(self, total: int, opened: list[_Opened], on_progress: OnProgress) -> None:
        self._costs = {e.prefix + name: cost for e in opened for name, cost in e.costs.items()}
        known = sum(self._costs.values())
        # Adapters tell no shapes before they are read: their factors cost about nothing beside.
        self._each = 0.0 if known else 1.0
        self._all = known or float(total)
        self._total, self._done, self._spent = total, 0, 0.0
        self._tell = on_progress

    def tell(self, name: str, found: MeasuredMatrix) -> None:
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
