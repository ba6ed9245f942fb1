"""The data behind the plots of a measured report, as JSON inside the page."""

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrank_study.measurement.records import MeasuredMatrix, Measurement
from lowrank_study.reporting.display import printable
from lowrank_study.reporting.spectra_report.tables import NOT_MEASURED, OTHER, matrices_of
from lowrank_study.spectra.measures import Measure
from lowrank_study.spectra.noise import noise_energy_rank
from lowrank_study.spectra.readings import Reading

POINTS_DRAWN = 160
"""Values of a spectrum that the page holds: the first 40, then evenly on a logarithmic axis."""


def explorer_data(found: Measurement, measures: tuple[Measure, ...]) -> dict[str, Any]:
    """Return the matrices and measures that the page's plots draw."""
    return {
        "measures": [
            {"name": m.name, "label": m.label, "kind": m.kind, "meaning": m.meaning}
            for m in measures
        ],
        "matrices": [_matrix(update, matrix, measures) for update, matrix in matrices_of(found)],
    }


def _matrix(update: str, matrix: MeasuredMatrix, measures: tuple[Measure, ...]) -> dict[str, Any]:
    spectrum, alike = matrix.spectrum, matrix.similarity
    index = _drawn_indices(spectrum.singular_values.size)
    edge = matrix.readings["mp_edge"].value
    return {
        "update": 1 if update == OTHER else 0,
        "module": printable(spectrum.module),
        "layer": spectrum.layer,
        "role": printable(spectrum.role),
        "shape": f"{spectrum.shape[0]}×{spectrum.shape[1]}",
        "dtype": printable(spectrum.storage_dtype),
        "state": matrix.state,
        "noise": _number(noise_energy_rank(*spectrum.shape)),
        "floor": _number(spectrum.rounding_edge),
        "edge": None if edge is None else _number(edge),
        "index": (index + 1).tolist(),
        "sigma": [_number(value) for value in spectrum.singular_values[index]],
        "values": [_reading(matrix.readings.get(m.name, NOT_MEASURED)) for m in measures],
        "alike": None
        if alike is None
        else {
            "right": _grid(alike.right_grid),
            "rightDimension": alike.right_dimension,
            "left": _grid(alike.left_grid),
            "leftDimension": alike.left_dimension,
            "angles": [_number(angle) for angle in alike.angles],
        },
    }


def _drawn_indices(count: int) -> npt.NDArray[np.intp]:
    if count <= POINTS_DRAWN:
        return np.arange(count)
    later = np.geomspace(40, count - 1, POINTS_DRAWN - 40).round().astype(np.intp)
    return np.unique(np.concatenate([np.arange(40, dtype=np.intp), later]))


def _reading(reading: Reading) -> Any:
    """Return a number, or the status with the result of the formula."""
    if reading.value is not None:
        return _number(reading.value)
    return [reading.status, None if reading.as_read is None else _number(reading.as_read)]


def _grid(values: npt.NDArray[np.float64]) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in values]


def _number(value: float) -> float | None:
    """Round to five digits, more than a screen shows; NaN becomes null."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def embedded(data: dict[str, Any]) -> str:
    """Return JSON that is safe inside a script element: without any < or >."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
