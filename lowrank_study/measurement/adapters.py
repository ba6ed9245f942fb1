"""An open adapter: its updates with their spectra, and what can't be compared."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import prod

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]

from lowrank_study.checkpoints import (
    Adapter,
    Unpaired,
    Weights,
    coarser,
    left_out_parts,
    module_of,
    open_adapter,
    open_weights,
)
from lowrank_study.left_out import LeftOut
from lowrank_study.measurement.read_ahead import ReadAhead
from lowrank_study.measurement.subjects import (
    AdapterOnBase,
    Measured,
    Opened,
    VectorChange,
    resized_remark,
    vector_change,
)
from lowrank_study.spectra.adapter_updates import updates_of_adapter
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.updates import FactoredUpdate, MeasureMethod


class OpenedAdapter(Opened):
    """An adapter and its base, if there is one, with their files open."""

    def __init__(
        self, subject: AdapterOnBase, stack: ExitStack, *, allow_pickle: bool, prefix: str
    ) -> None:
        """Open the files, which `stack` closes; only headers are read."""
        self.prefix = prefix
        self.adapter: Adapter = stack.enter_context(
            open_adapter(subject.adapter, allow_pickle=allow_pickle)
        )
        self.base: Weights | None = None
        self.skipped = {}
        self.files = [("adapter", file) for file in self.adapter.files]
        if subject.base is not None:
            self.base = stack.enter_context(open_weights(subject.base, allow_pickle=allow_pickle))
            self.adapter.check_base(self.base)
            self.files += [("base", file) for file in self.base.files]

    @property
    def total(self) -> int:
        """Number of adapted modules and of weights trained in full."""
        return len(self.adapter.modules()) + len(self.adapter.saved_weights())

    @property
    def assumed(self) -> list[str]:
        """Assumptions of the adapter's reader."""
        return [self.prefix + text for text in self.adapter.assumed]

    def remarks(self) -> list[str]:
        """Return the remarks on the adapter, its vocabularies and its base."""
        of_base = () if self.base is None else self.base.flags
        return [
            *(self.prefix + flag for flag in (*self.adapter.flags, *self._resized())),
            *(f"{self.prefix}base: {flag}" for flag in of_base),
        ]

    def parts_left_out(self) -> list[LeftOut]:
        """Return the shares that can't be read or have no W0; see `left_out_of_adapter`."""
        return left_out_of_adapter(self.adapter, self.base)

    def matrices_left_out(self) -> int:
        """Return how many matrices trained in full have no W0."""
        saved = self.adapter.saved_weights()
        return sum(len(self.adapter.shape(name)) > 1 and not self._has_w0(name) for name in saved)

    def vectors(self) -> Iterator[VectorChange]:
        """Read the vectors that were trained in full and have a W0."""
        for saved in self.adapter.saved_weights():
            if self.base is None or not self._has_w0(saved):
                continue
            tensor = self.adapter.base_tensor(saved, self.base)
            if len(self.base.shape(tensor)) < 2:
                w0, delta = self.base.read(tensor), self.adapter.saved_delta(saved, self.base)
                dtype = coarser(self.base.dtype(tensor), self.adapter.storage_dtype(saved))
                yield vector_change(module_of(saved), w0, w0 + delta, dtype)

    def measured(self, *, method: MeasureMethod, vectors: bool) -> Iterator[Measured]:
        """Yield each update with its spectrum; a thread reads the next update meanwhile."""
        updates = updates_of_adapter(self.adapter, base=self.base, roles={}, skipped=self.skipped)
        libraries = ThreadpoolController()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader:
            for update in ReadAhead(updates, reader):
                # Products of thin factors are too small to share. On busy cores, waiting for a
                # second thread takes ten times as long as the product.
                threads = 1 if isinstance(update, FactoredUpdate) else None
                with libraries.limit(limits=threads, user_api="blas"):
                    spectrum = measure(update, method=method)
                yield update, spectrum

    def _has_w0(self, saved: str) -> bool:
        adapter, base = self.adapter, self.base
        return base is not None and adapter.in_base(saved, base) and adapter.fits(saved, base)

    def _resized(self) -> Iterator[str]:
        if self.base is None:
            return
        for saved in self.adapter.saved_weights():
            if self.adapter.in_base(saved, self.base) and (
                extra := self.adapter.extra_rows(saved, self.base)
            ):
                before = self.base.shape(self.adapter.base_tensor(saved, self.base))[0]
                yield resized_remark(module_of(saved), before, before + extra)


def left_out_of_adapter(adapter: Adapter, base: Weights | None) -> list[LeftOut]:
    """Return the shares of an adapter that can't be read, or have no W0 to compare with.

    The share of a module that the base does not have, such as a new head, is relative to the
    whole adapted model: relative to a small adapter, it would always be large.
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


def _lost(adapter: Adapter, saved: str, why: str) -> Unpaired:
    return Unpaired.of("adapter", module_of(saved), adapter.shape(saved), why, is_matrix=True)
