"""Remarks on the measured matrices as a whole, one sentence each."""

from collections.abc import Sequence

from lowrank_study.measurement.comparison import LARGEST_COMPARED, is_too_large
from lowrank_study.measurement.records import MeasuredMatrix, MeasureSettings


def remarks_on(
    matrices: Sequence[MeasuredMatrix], settings: MeasureSettings, *, total: int
) -> list[str]:
    """Return remarks on matrices that did not change or were not compared with W0."""
    states = [matrix.state for matrix in matrices]
    remarks = []
    if settings.compare_with_base and all(not m.intruder_cosines for m in matrices):
        remarks.append("nothing could be compared with W0: it is unknown, or nothing changed")
    if set(states) == {"identical"}:
        dtypes = sorted({matrix.spectrum.storage_dtype for matrix in matrices})
        compared = "every matrix"
        if len(matrices) < total:
            compared = f"the {len(matrices)} of {total} matrices that were compared"
        remarks.append(
            f"both checkpoints are identical in {compared}: rank 0, ratios undefined; a change "
            f"smaller than a step of {', '.join(dtypes)} would not show"
        )
    untrained = states.count("untrained")
    if untrained:
        remarks.append(
            f"{untrained} of {len(states)} adapted matrices are untrained: B = 0, "
            "the initial value of LoRA, so the adapter adds nothing there"
        )
    large = [m.spectrum.module for m in matrices if is_too_large(m.spectrum.shape)]
    if settings.compare_with_base and large:
        remarks.append(
            f"too large for a comparison with W0 ({LARGEST_COMPARED:,} entries at most): "
            f"{', '.join(large)}; their singular values are still measured"
        )
    return remarks


def remarks_on_two(first: int, second: int, common: int) -> list[str]:
    """Return how many matrices are in only one of two updates."""
    if common == first == second:
        return []
    return [
        f"{common} matrices are in both updates; {first - common} are only "
        f"in the first and {second - common} only in the other"
    ]
