"""Two open checkpoints: the updates between them with their spectra.

If only singular values by Gram matrices are needed, matrices are read in blocks, and one block is
all that is in memory. Otherwise one update is. In both cases a thread reads ahead: the next block
during work on this one, and the first block of the next matrix (all of a small one) during the
computation of eigenvalues.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from typing import Any

from lowrank_study.checkpoints import Match, coarser, open_weights, pair
from lowrank_study.left_out import LeftOut
from lowrank_study.measurement.comparison import is_too_large
from lowrank_study.measurement.read_ahead import ReadAhead
from lowrank_study.measurement.subjects import (
    CheckpointPair,
    Measured,
    Opened,
    VectorChange,
    resized_remark,
    vector_change,
)
from lowrank_study.spectra.scaled import with_scaled_floor
from lowrank_study.spectra.spectrum import Spectrum, measure
from lowrank_study.spectra.stored import BLOCK_ENTRIES, Sums, accumulate, spectrum_of, survey
from lowrank_study.spectra.updates import (
    DenseUpdate,
    MeasureMethod,
    layer_of,
    role_in,
    update_of_match,
)


class OpenedPair(Opened):
    """Two checkpoints with their files open."""

    def __init__(
        self, subject: CheckpointPair, stack: ExitStack, *, allow_pickle: bool, prefix: str
    ) -> None:
        """Open the files, which `stack` closes; only headers are read."""
        self.prefix = prefix
        self.before, self.after = (
            stack.enter_context(open_weights(path, allow_pickle=allow_pickle))
            for path in (subject.before, subject.after)
        )
        self.pairing = pair(self.before, self.after)
        self.skipped = self.pairing.skipped
        self.files = [
            *(("before", file) for file in self.before.files),
            *(("after", file) for file in self.after.files),
        ]

    @property
    def total(self) -> int:
        """Number of matrices that both checkpoints have."""
        return len(self.pairing.matches)

    @property
    def costs(self) -> dict[str, float]:
        """Multiplications to decompose each matrix."""
        return {m.name: float(prod(m.shape)) * min(m.shape) for m in self.pairing.matches}

    def remarks(self) -> list[str]:
        """Return the remarks on the pairing and on resized vocabularies."""
        resized = [
            resized_remark(match.name, before, after)
            for match in self.pairing.matches
            if (before := match.before.shape[0]) != (after := match.after.shape[0])
        ]
        return [self.prefix + remark for remark in (*self.pairing.flags, *resized)]

    def remarks_on(self, spectra: Sequence[Spectrum]) -> list[str]:
        """Return remarks on matrices whose training began exactly from a coarsely stored W0."""
        stored = {match.name: match.before.storage_dtype for match in self.pairing.matches}
        exact: dict[tuple[str, str], int] = {}
        for spectrum in spectra:
            dtype, before = spectrum.storage_dtype, stored[spectrum.module]
            if coarser(before, dtype) != dtype:
                exact[before, dtype] = exact.get((before, dtype), 0) + 1
        return [
            f"the {before} rounding of before does not affect the differences of {count} matrices: "
            f"training began from the stored weights, so the noise floor is that of {dtype}"
            for (before, dtype), count in exact.items()
        ]

    def parts_left_out(self) -> list[LeftOut]:
        """Return the shares that only one checkpoint has or that can't be compared."""
        return self.pairing.left_out()

    def matrices_left_out(self) -> int:
        """Return how many matrices are known to be left out so far."""
        return self.pairing.left_out_matrices()

    def vectors(self) -> Iterator[VectorChange]:
        """Read the tensors that are not matrices."""
        for name, w0, w in self.pairing.read_vectors():
            before, after = self.pairing.vectors[name]
            dtype = coarser(self.before.dtype(before), self.after.dtype(after))
            yield vector_change(name, w0, w, dtype)

    def measured(self, *, method: MeasureMethod, vectors: bool) -> Iterator[Measured]:
        """Yield each update, or None if it was read in blocks, with its spectrum."""

        def in_blocks(match: Match) -> bool:
            needed = vectors and not is_too_large(match.shape)
            return method == "gram" and match.is_single and not needed

        def first_reading(match: Match) -> ReadAhead[Any]:
            if in_blocks(match):
                return ReadAhead(match.read_blocks(BLOCK_ENTRIES), reader)
            return ReadAhead(self._whole(match), reader)

        matches = self.pairing.matches
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader:
            coming = first_reading(matches[0])
            for match, following in zip(matches, [*matches[1:], None], strict=True):
                reading = coming
                update = sums = None
                if in_blocks(match):
                    sums = self._sums(match, reading, reader)
                else:
                    update = next(reading, None)
                if following is not None:
                    coming = first_reading(following)
                if sums is not None:
                    layer, role = layer_of(match.name), role_in(match.name, {})
                    yield None, spectrum_of(sums, name=match.name, layer=layer, role=role)
                elif update is not None:
                    spectrum = measure(update, method=method)
                    yield update, with_scaled_floor(spectrum, match, update)

    def _sums(self, match: Match, reading: ReadAhead[Any], reader: Executor) -> Sums | None:
        """Read a matrix twice in blocks; return None, and leave it out, if it is not finite."""
        dtypes = match.before.storage_dtype, match.after.storage_dtype
        found = survey(reading, shape=match.shape, dtypes=dtypes)
        if found.not_finite:
            self.pairing.leave_out(match.name, found.not_finite)
            return None
        return accumulate(ReadAhead(match.read_blocks(BLOCK_ENTRIES), reader), found)

    def _whole(self, match: Match) -> Iterator[DenseUpdate]:
        both = self.pairing.read(match)
        if both is not None:
            yield update_of_match(match, *both, roles={})
