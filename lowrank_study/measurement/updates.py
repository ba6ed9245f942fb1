"""The updates of what was opened, each with its spectrum, in turn.

    for update, spectrum in measured_updates(opened, method="gram", vectors=False):
        spectrum.module, update        # None where the update was never whole in memory

Where singular values by Gram matrices are all that is asked for, the matrices of two
checkpoints are read in blocks, and a block is all that is in memory of them. Otherwise one
update is. Either way a thread reads ahead: the next block while this one is worked on, and the
next matrix's first one (all of it, if it is small) while this one's eigenvalues are computed.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]

from lowrank_study.checkpoints import Match, Pairing
from lowrank_study.measurement.comparison import is_too_large
from lowrank_study.measurement.files import OpenedSubject
from lowrank_study.spectra.scaled import is_scaled, with_scaled_floor
from lowrank_study.spectra.spectrum import Spectrum, measure
from lowrank_study.spectra.stored import BLOCK_ENTRIES, accumulate, spectrum_of, survey
from lowrank_study.spectra.updates import (
    DenseUpdate,
    FactoredUpdate,
    MeasureMethod,
    Update,
    layer_of,
    role_in,
    update_of_match,
)

Item = TypeVar("Item")
Measured = tuple[Update | None, Spectrum]


class ReadAhead(Generic[Item]):
    """The same items as of an iterator, of which another thread gets the next one already."""

    def __init__(self, source: Iterator[Item], reader: Executor) -> None:
        """Begin to get the first item."""
        self._source = source
        self._reader = reader
        self._coming = reader.submit(next, source, _END)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item: Any = self._coming.result()
        if item is _END:
            raise StopIteration
        self._coming = self._reader.submit(next, self._source, _END)
        found: Item = item
        return found


_END: Any = object()


def measured_updates(
    opened: OpenedSubject, *, method: MeasureMethod, vectors: bool
) -> Iterator[Measured]:
    """Give the spectrum of each update of a subject, in the order of its files.

    Args:
        opened: Gets the names of what is left out, with the reasons.
        method: As for `spectra.spectrum.measure`.
        vectors: Whether each update itself is needed too, unless it is too large for singular
            vectors.

    Yields:
        The update, or None where it was measured in blocks, and its spectrum.

    Raises:
        InputError: A file can't be read, or has changed.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader:
        if opened.pairing is not None:
            yield from _of_pair(opened.pairing, reader, method=method, vectors=vectors)
            return
        libraries = ThreadpoolController()
        for update in ReadAhead(opened.adapter_updates, reader):
            # Products of thin factors are too small to share: where other work keeps the cores
            # busy, waiting for a second thread takes ten times as long as the product.
            alone = 1 if isinstance(update, FactoredUpdate) else None
            with libraries.limit(limits=alone, user_api="blas"):
                spectrum = measure(update, method=method)
            yield update, spectrum


def _of_pair(
    pairing: Pairing, reader: Executor, *, method: MeasureMethod, vectors: bool
) -> Iterator[Measured]:
    def first_reading(match: Match) -> ReadAhead[Any]:
        if in_blocks(match):
            return ReadAhead(match.read_blocks(BLOCK_ENTRIES), reader)
        return ReadAhead(_whole(pairing, match), reader)

    def in_blocks(match: Match) -> bool:
        needed = vectors and not is_too_large(match.shape)
        return method == "gram" and match.is_single and not needed

    coming = first_reading(pairing.matches[0])
    for match, following in zip(pairing.matches, [*pairing.matches[1:], None], strict=True):
        reading = coming
        update = sums = None
        if in_blocks(match):
            dtypes = match.before.storage_dtype, match.after.storage_dtype
            found = survey(reading, shape=match.shape, dtypes=dtypes)
            if found.not_finite:
                pairing.leave_out(match.name, found.not_finite)
            else:
                second = ReadAhead(match.read_blocks(BLOCK_ENTRIES), reader)
                sums = accumulate(second, found)
        else:
            update = next(reading, None)
        if following is not None:
            coming = first_reading(following)
        if sums is not None:
            layer, role = layer_of(match.name), role_in(match.name, {})
            yield None, spectrum_of(sums, name=match.name, layer=layer, role=role)
        elif update is not None:
            spectrum = measure(update, method=method)
            yield (
                update,
                with_scaled_floor(spectrum, match, update) if is_scaled(match) else spectrum,
            )


def _whole(pairing: Pairing, match: Match) -> Iterator[DenseUpdate]:
    both = pairing.read(match)
    if both is not None:
        yield update_of_match(match, *both, roles={})
