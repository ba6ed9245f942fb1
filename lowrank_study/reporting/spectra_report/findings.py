"""The findings of a measurement, in a few sentences with their numbers.

    for topic, text in findings_of(found):
        print(topic, text)

Only resolved numbers count. The sentences say how many are not resolvable.
"""

import math
from statistics import median

from lowrank_study.left_out import in_words
from lowrank_study.measurement.records import MeasuredMatrix, Measurement
from lowrank_study.reporting.display import counted, enumeration, percent, printable, written
from lowrank_study.spectra.noise import noise_energy_rank

RANK = "energy_rank_90"


def findings_of(found: Measurement) -> list[tuple[str, str]]:
    """Return the findings in order of weight, each a topic and its text."""
    result = [("Rank", _rank(found)), ("Rank above noise", _above_noise(found.matrices))]
    result.append(("Size", _size(found.matrices, found.total)))
    result += _other(found)
    if found.skipped:
        tensors = counted(len(found.skipped), "tensor was", "tensors were")
        result.append(("Not compared", f"{tensors} not compared. A table lists the reasons."))
    result += _where(found.matrices)
    result += _base(found)
    return [(topic, text) for topic, text in result if text]


def answer_of(found: Measurement) -> list[tuple[str, str]]:
    """Return the findings that answer the question of the page, at most five."""
    return [each for each in findings_of(found) if each[0] not in _DETAILS]


def details_of(found: Measurement) -> list[tuple[str, str]]:
    """Return the findings on single layers and on the comparison with W0."""
    return [each for each in findings_of(found) if each[0] in _DETAILS]


_DETAILS = ("Where", "Amplification", "Intruder dimensions")


def summary_of(found: Measurement) -> str:
    """Return the finding on rank in one line."""
    return " ".join(_rank(found).split())


def left_out_of(found: Measurement) -> list[str]:
    """Return the sentences on assumptions and left-out parts that begin every page."""
    sentences = [printable(text) for text in (*found.assumed, *in_words(found.left_out))]
    return [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in sentences]


def _changed(matrices: list[MeasuredMatrix]) -> list[MeasuredMatrix]:
    return [matrix for matrix in matrices if matrix.state == "changed"]


def _values(matrices: list[MeasuredMatrix], name: str) -> list[float]:
    readings = [matrix.readings[name].value for matrix in matrices if name in matrix.readings]
    return [value for value in readings if value is not None]


def _spread(values: list[float], noun: str) -> str:
    low, middle, high = (written(each(values), "rank") for each in (min, median, max))
    if low == high:
        return f"{low} {noun}" if low == "1" else f"{low} {noun}s"
    return f"{low} to {high} {noun}s (median {middle})"


def _size(matrices: list[MeasuredMatrix], total: int) -> str:
    changed = _changed(matrices)
    text = f"{len(changed)} of {counted(len(matrices), 'matrix', 'matrices')} changed"
    if len(matrices) < total:
        text += f"; {total - len(matrices)} more were not compared"
    known = [m.spectrum for m in matrices if m.spectrum.base_frobenius_norm > 0]
    if len(known) < len(matrices) or not changed:
        return f"{text}."
    update = math.hypot(*(spectrum.frobenius_norm for spectrum in known))
    base = math.hypot(*(spectrum.base_frobenius_norm for spectrum in known))
    return f"{text}; over all of them ‖ΔW‖ is {percent(update / base)} of ‖W0‖."


def _rank(found: Measurement) -> str:
    changed = _changed(found.matrices)
    if not changed and len(found.matrices) < found.total:
        compared = f"{len(found.matrices)} of {found.total} matrices were compared"
        return f"Only {compared}, and none of these changed."
    if not changed:
        text = "No matrix changed, so every rank is 0 and every ratio is undefined"
        vectors = sum(vector.norm_of_change > 0 for vector in found.vectors)
        return f"{text}. {counted(vectors, 'vector')} changed." if vectors else f"{text}."
    ranks = _values(changed, RANK)
    hidden = sum(matrix.readings[RANK].status == "not resolvable" for matrix in changed)
    matrices_word = counted(len(changed), "changed matrix", "changed matrices")
    if not ranks:
        return (
            f"The 90 % energy rank is not resolvable in {hidden} of {matrices_word}: "
            f"{_why_hidden(changed)}."
        )
    text = f"90 % of the energy of ΔW lies in {_spread(ranks, 'direction')}"
    noise = [
        float(round(noise_energy_rank(*matrix.spectrum.shape)))
        for matrix in changed
        if matrix.readings[RANK].value is not None
    ]
    text += f"; noise of the same shapes needs {_spread(noise, 'direction')}"
    if hidden:
        text += (
            f". In {hidden} of {matrices_word} the rank is not resolvable: {_why_hidden(changed)}"
        )
    return f"{text}."


def _why_hidden(matrices: list[MeasuredMatrix]) -> str:
    hidden = [m.spectrum for m in matrices if m.readings[RANK].status == "not resolvable"]
    dtypes = enumeration(sorted({printable(spectrum.storage_dtype) for spectrum in hidden}))
    if all(math.isnan(spectrum.rounding_edge) for spectrum in hidden):
        return f"the rounding of {dtypes} is unknown"
    return f"rounding in {dtypes} accounts for more than 10 % of the energy"


def _above_noise(matrices: list[MeasuredMatrix]) -> str:
    changed = [m for m in _changed(matrices) if not m.spectrum.factored]
    kept = _values(changed, "gavish_donoho_rank")
    if not kept:
        return ""
    text = f"The Gavish–Donoho threshold separates {_spread(kept, 'direction')} from noise"
    noisy = sum(value == 0 for value in kept)
    if noisy:
        matrices_word = counted(len(kept), "matrix", "matrices")
        text += f"; in {noisy} of {matrices_word} it finds none"
    return f"{text}."


def _where(matrices: list[MeasuredMatrix]) -> list[tuple[str, str]]:
    shares: dict[str, list[float]] = {}
    for matrix in _changed(matrices):
        value = matrix.readings[RANK].value
        if value is not None:
            share = value / min(matrix.spectrum.shape)
            shares.setdefault(printable(matrix.spectrum.role), []).append(share)
    if len(shares) < 2:
        return []
    middle = {role: median(values) for role, values in shares.items()}
    low, high = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    if middle[low] == middle[high]:
        return []
    text = (
        f"As a share of min(out, in), the 90 % energy rank is highest in {high} "
        f"(median {percent(middle[high])}) and lowest in {low} ({percent(middle[low])})."
    )
    return [("Where", text)]


def _base(found: Measurement) -> list[tuple[str, str]]:
    factors = _values(found.matrices, "amplification_factor")
    counts = _values(found.matrices, "intruder_dimensions")
    result = []
    if factors:
        low, high = written(min(factors), "rate"), written(max(factors), "rate")
        text = f"Along its leading directions, ΔW is {low} to {high} times as large as W0"
        result.append(("Amplification", f"{text} (median {written(median(factors), 'rate')})."))
    if counts:
        settings = found.settings
        text = (
            f"The top {settings.intruder_directions} directions of the tuned weights contain "
            f"{sum(counts):.0f} intruders, in {sum(count > 0 for count in counts)} of "
            f"{counted(len(counts), 'matrix', 'matrices')} "
            f"(|cos| < {settings.intruder_epsilon:g})."
        )
        result.append(("Intruder dimensions", text))
    return result


def _other(found: Measurement) -> list[tuple[str, str]]:
    alike = _values(found.matrices, "similarity")
    chance = _values(found.matrices, "similarity_chance")
    if not alike:
        return []
    text = (
        f"On the inputs, the leading directions of both updates have a similarity φ of "
        f"{min(alike):.2f} to {max(alike):.2f} (median {median(alike):.2f}); random directions "
        f"have {median(chance):.2g}."
    )
    return [("Two updates", text)]
