"""Report how far a measurement is."""

from collections.abc import Sequence

from lowrank_study.measurement.records import MeasuredMatrix, OnProgress, Step
from lowrank_study.measurement.subjects import Opened


class Tracker:
    """Reports finished matrices as `Step`s."""

    def __init__(self, opened: Sequence[Opened], on_progress: OnProgress) -> None:
        self._costs = {e.prefix + name: cost for e in opened for name, cost in e.costs.items()}
        known = sum(self._costs.values())
        # Shapes of adapters are unknown before they are read, and their factors cost little.
        self._each = 0.0 if known else 1.0
        self._total, self._done, self._spent = sum(each.total for each in opened), 0, 0.0
        self._all = known or float(self._total)
        self._report = on_progress

    def report_hashing(self, files: int) -> None:
        """Report that all is measured and files are being hashed."""
        self._step(1.0, "SHA-256", f"hashing {files} files")

    def report(self, name: str, found: MeasuredMatrix) -> None:
        """Report that a matrix is done."""
        self._done += 1
        self._spent += self._costs.get(name, self._each)
        rank = found.readings["energy_rank_90"]
        outcome = rank.status if rank.value is None else f"{rank.value:.0f}"
        changed = f"90 % energy rank {outcome}" if found.state == "changed" else found.state
        self._step(min(self._spent / self._all, 1.0) if self._all else 1.0, name, changed)

    def _step(self, share: float, name: str, outcome: str) -> None:
        # Fused tensors of an adapter turn out to be several matrices.
        total = max(self._total, self._done)
        step = Step(done=self._done, total=total, share=share, name=name, outcome=outcome)
        self._report(step)
