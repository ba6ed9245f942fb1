"""A measurement as tidy tables, in which every number has a status.

    frame = matrices_table(found)
    frame[["module", "energy_rank_90", "energy_rank_90_status", "energy_rank_90_as_read"]]

`energy_rank_90` is missing if it is not resolvable, its status says why, and `_as_read` holds the
result of the formula anyway. `in_words` puts the status in place of missing numbers, as in the CSV
file and on the page. All names are made printable here.
"""

from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lowrank_study.measurement.records import MeasuredMatrix, Measurement
from lowrank_study.reporting.display import MISSING, printable, written
from lowrank_study.spectra.measures import MEASURES, Measure
from lowrank_study.spectra.noise import noise_energy_rank
from lowrank_study.spectra.readings import Reading
from lowrank_study.spectra.tables import singular_values_table

FIRST, OTHER = "first", "other"
NOISE_RANK = "noise_energy_rank_90"
"""Column: the 90 % energy rank of independent Gaussian noise of the same shape."""


def matrices_of(found: Measurement) -> list[tuple[str, MeasuredMatrix]]:
    """Return all measured matrices, each with the update it belongs to."""
    return [(FIRST, matrix) for matrix in found.matrices] + [
        (OTHER, matrix) for matrix in found.other_matrices
    ]


def measures_in(found: Measurement) -> tuple[Measure, ...]:
    """Return the measures that any matrix has a reading of, in the order of columns."""
    names = {name for _, matrix in matrices_of(found) for name in matrix.readings}
    return tuple(measure for measure in MEASURES if measure.name in names)


def matrices_table(found: Measurement) -> pd.DataFrame:
    """Return one row per matrix: its facts, and value, status and as_read of each measure."""
    measures = measures_in(found)
    rows = [
        _described(update, matrix) | _measured(matrix, measures)
        for update, matrix in matrices_of(found)
    ]
    frame = pd.DataFrame(rows)
    kinds: dict[str, Any] = {"layer": "Int64", "out_features": "Int64", "in_features": "Int64"}
    for measure in measures:
        for name in (measure.name, f"{measure.name}_as_read"):
            if name in frame:
                kinds[name] = "Int64" if measure.whole else "Float64"
    return frame.astype(kinds)


def _described(update: str, matrix: MeasuredMatrix) -> dict[str, Any]:
    spectrum = matrix.spectrum
    return {
        "update": update,
        "module": printable(spectrum.module),
        "layer": spectrum.layer,
        "role": printable(spectrum.role),
        "out_features": spectrum.shape[0],
        "in_features": spectrum.shape[1],
        "storage_dtype": spectrum.storage_dtype,
        "state": matrix.state,
        "decomposition": spectrum.method,
        "absolute_error": spectrum.absolute_error,
        "base_frobenius_norm": spectrum.base_frobenius_norm,
        NOISE_RANK: noise_energy_rank(*spectrum.shape),
    }


def _measured(matrix: MeasuredMatrix, measures: tuple[Measure, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for measure in measures:
        reading = matrix.readings.get(measure.name, NOT_MEASURED)
        row[measure.name] = reading.value
        row[f"{measure.name}_status"] = reading.status
    for measure in measures:
        if measure.may_be_hidden:
            reading = matrix.readings.get(measure.name, NOT_MEASURED)
            row[f"{measure.name}_as_read"] = reading.as_read
    return row


NOT_MEASURED = Reading(value=None, status="not computed", as_read=None)
"""Reading of a measure that does not apply to a matrix, such as one without W0."""


def in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table of matrices with the status in place of each missing number."""
    spoken = frame.copy()
    for measure in MEASURES:
        if measure.name in frame:
            status = f"{measure.name}_status"
            spoken[measure.name] = (
                frame[measure.name].astype(object).where(frame[measure.name].notna(), frame[status])
            )
            spoken = spoken.drop(columns=status)
    return spoken


def reading_text(reading: Reading, measure: Measure) -> str:
    """Write a reading for a table: the number if it is resolved, else its status."""
    if reading is NOT_MEASURED:
        return MISSING
    if reading.value is None:
        return reading.status
    return value_text(reading.value, measure.kind)


def value_text(value: object, kind: Literal["rank", "percent", "number"]) -> str:
    """Write a number of one kind of measure."""
    return written(value, "rate" if kind == "number" else kind)


def name_of(path: Path) -> str:
    """Return the usual name of a model or adapter from its path.

    In a hub's cache the name is two folders up. Common file names are preceded by their folder.
    """
    if path.parent.name == "snapshots":
        return printable(path.parent.parent.name.removeprefix("models--").replace("--", "/"))
    if path.name in _COMMON_NAMES and path.parent.name:
        return printable(f"{path.parent.name}/{path.name}")
    return printable(path.name)


_COMMON_NAMES = ("checkpoint", "model.safetensors", "pytorch_model.bin")


def vectors_table(found: Measurement) -> pd.DataFrame:
    """Return one row per tensor that is not a matrix."""
    columns = [
        "name", "length", "storage_dtype", "norm_before", "norm_of_change", "relative_change",
        "largest_change", "rounding_norm", "status",
    ]  # fmt: skip
    rows = [
        {
            "name": printable(vector.name),
            "length": vector.length,
            "storage_dtype": vector.storage_dtype,
            "norm_before": vector.norm_before,
            "norm_of_change": vector.norm_of_change,
            "relative_change": vector.norm_of_change / vector.norm_before
            if vector.norm_before
            else None,
            "largest_change": vector.largest_change,
            "rounding_norm": vector.rounding_norm,
            "status": _vector_status(vector.norm_of_change, vector.resolvable),
        }
        for vector in found.vectors
    ]
    return pd.DataFrame(rows, columns=columns)


def _vector_status(change: float, resolvable: bool) -> str:
    if change == 0.0:
        return "identical"
    return "resolved" if resolvable else "not resolvable"


def skipped_table(found: Measurement) -> pd.DataFrame:
    """Return one row per tensor that was left out, with the reason."""
    rows = [(printable(name), printable(reason)) for name, reason in found.skipped.items()]
    return pd.DataFrame(rows, columns=["name", "reason"])


def files_table(found: Measurement) -> pd.DataFrame:
    """Return one row per file that was read, with its hash."""
    rows = [(file.part, printable(file.name), file.size, file.sha256) for file in found.files]
    return pd.DataFrame(rows, columns=["part", "file", "bytes", "sha256"])


def sigma_table(found: Measurement) -> pd.DataFrame:
    """Return all singular values in long form, with the column `update` first."""
    parts = [
        singular_values_table(update, [matrix.spectrum]) for update, matrix in matrices_of(found)
    ]
    table = pd.concat(parts, ignore_index=True).rename(columns={"run_id": "update"})
    for name in ("module", "role"):
        table[name] = table[name].map(printable)
    return table
