"""Remarks on a measurement as a whole, one sentence each."""

from lowrank_study.checkpoints import coarser
from lowrank_study.measurement.comparison import LARGEST_COMPARED, is_too_large
from lowrank_study.measurement.files import OpenedSubject
from lowrank_study.measurement.records import MeasuredMatrix, MeasureSettings


def flags_of(matrices: list[MeasuredMatrix], settings: MeasureSettings, *, total: int) -> list[str]:
    """Return remarks on many matrices at once, and on those not compared with W0.

    Args:
        matrices: The measured matrices.
        settings: How they were measured.
        total: The number of all matrices, including left-out ones.
    """
    states = [matrix.state for matrix in matrices]
    flags = []
    if settings.compare_with_base and all(not m.intruder_cosines for m in matrices):
        flags.append("nothing could be compared with W0: it is unknown, or nothing changed")
    if set(states) == {"identical"}:
        dtypes = sorted({matrix.spectrum.storage_dtype for matrix in matrices})
        compared = "every matrix"
        if len(matrices) < total:
            compared = f"the {len(matrices)} of {total} matrices that were compared"
        flags.append(
            f"both checkpoints are identical in {compared}: rank 0, ratios undefined; a change "
            f"smaller than a step of {', '.join(dtypes)} would not show"
        )
    untrained = states.count("untrained")
    if untrained:
        flags.append(
            f"{untrained} of {len(states)} adapted matrices are untrained: B = 0, "
            "the initial value of LoRA, so the adapter adds nothing there"
        )
    large = [m.spectrum.module for m in matrices if is_too_large(m.spectrum.shape)]
    if settings.compare_with_base and large:
        flags.append(
            f"too large for a comparison with W0 ({LARGEST_COMPARED:,} entries at most): "
            f"{', '.join(large)}; their singular values are still measured"
        )
    return flags


def flags_of_start(main: OpenedSubject, matrices: list[MeasuredMatrix]) -> list[str]:
    """Return remarks on matrices whose training began exactly from a coarsely stored W0."""
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
        f"the {before} rounding of before does not affect the differences of {count} matrices: "
        f"training began from the stored weights, so the noise floor is that of {dtype}"
        for (before, dtype), count in exact.items()
    ]


def flags_of_two(
    matrices: list[MeasuredMatrix], others: list[MeasuredMatrix], used: set[str]
) -> list[str]:
    """Return how many matrices are in only one of two updates."""
    if len(used) == len(matrices) == len(others):
        return []
    return [
        f"{len(used)} matrices are in both updates; {len(matrices) - len(used)} are only "
        f"in the first and {len(others) - len(used)} only in the other"
    ]
