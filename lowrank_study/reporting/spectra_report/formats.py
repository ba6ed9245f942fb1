"""A measurement as JSON and as a LaTeX table."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.measurement.records import MeasuredMatrix, Measurement
from lowrank_study.measurement.subjects import CheckpointPair, Subject
from lowrank_study.provenance import provenance
from lowrank_study.reporting.display import Column, Table, printable
from lowrank_study.reporting.latex_report import escaped, latex_table
from lowrank_study.reporting.spectra_report.findings import findings_of, left_out_of
from lowrank_study.reporting.spectra_report.tables import (
    NOT_MEASURED,
    files_table,
    matrices_of,
    measures_in,
    name_of,
    reading_text,
    skipped_table,
    vectors_table,
)
from lowrank_study.spectra.noise import noise_energy_rank

FORMAT = "lowrank_study.measurement/1"


def json_of(found: Measurement) -> str:
    """Return the matrices with settings, hashes and similarities as JSON."""
    content = {
        "format": FORMAT,
        "assumed": [printable(text) for text in found.assumed],
        "left_out": [
            asdict(part) | {"share": part.share, "sentence": printable(part.sentence)}
            for part in found.left_out
        ],
        "subject": subject_names(found.subject),
        "other_subject": None
        if found.other_subject is None
        else subject_names(found.other_subject),
        "settings": asdict(found.settings),
        "provenance": provenance(),
        "findings": [{"topic": topic, "text": text} for topic, text in findings_of(found)],
        "flags": [printable(flag) for flag in found.flags],
        "files": files_table(found).to_dict("records"),
        "measures": {m.name: m.meaning for m in measures_in(found)},
        "matrices": [_record(update, matrix) for update, matrix in matrices_of(found)],
        "vectors": vectors_table(found).to_dict("records"),
        "skipped": skipped_table(found).to_dict("records"),
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def subject_names(subject: Subject) -> dict[str, str | None]:
    """Return the names of what was measured, without their folders."""
    if isinstance(subject, CheckpointPair):
        paths: dict[str, Path | None] = {"before": subject.before, "after": subject.after}
    else:
        paths = {"adapter": subject.adapter, "base": subject.base}
    return {key: None if path is None else name_of(path) for key, path in paths.items()}


def _record(update: str, matrix: MeasuredMatrix) -> dict[str, Any]:
    spectrum, alike = matrix.spectrum, matrix.similarity
    return {
        "update": update,
        "module": printable(spectrum.module),
        "layer": spectrum.layer,
        "role": printable(spectrum.role),
        "shape": list(spectrum.shape),
        "active_shape": list(spectrum.active_shape),
        "storage_dtype": spectrum.storage_dtype,
        "state": matrix.state,
        "decomposition": spectrum.method,
        "complete": spectrum.complete,
        "absolute_error": spectrum.absolute_error,
        "base_frobenius_norm": spectrum.base_frobenius_norm,
        "rounding_frobenius_norm": spectrum.rounding_frobenius_norm,
        "noise_energy_rank_90": noise_energy_rank(*spectrum.shape),
        "measures": {name: asdict(reading) for name, reading in matrix.readings.items()},
        "intruder_cosines": list(matrix.intruder_cosines),
        "similarity": None
        if alike is None
        else {
            "right": alike.right_grid.tolist(),
            "right_dimension": alike.right_dimension,
            "left": alike.left_grid.tolist(),
            "left_dimension": alike.left_dimension,
            "angles_in_degrees": alike.angles.tolist(),
        },
    }


def _plain(value: Any) -> Any:
    """Replace NaN and infinities by null, because JSON has neither."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def latex_of(found: Measurement) -> str:
    """Return the LaTeX table after the sentences on what was left out."""
    before = "".join(rf"\noindent {escaped(each)}\par" + "\n" for each in left_out_of(found))
    return before + latex_table(_latex_table(found))


def _latex_table(found: Measurement) -> Table:
    measures = [measure for measure in measures_in(found) if "latex" in measure.shown]
    rows = []
    for update, matrix in matrices_of(found):
        spectrum = matrix.spectrum
        row = {"update": update, "module": spectrum.module, "storage_dtype": spectrum.storage_dtype}
        row["shape"] = f"{spectrum.shape[0]}×{spectrum.shape[1]}"
        for measure in measures:
            reading = matrix.readings.get(measure.name, NOT_MEASURED)
            row[measure.name] = reading_text(reading, measure)
        rows.append(row)
    labels = {"module": "matrix", "shape": "shape", "storage_dtype": "stored as"}
    if found.other_matrices:
        labels = {"update": "update"} | labels
    labels |= {measure.name: measure.label for measure in measures}
    return Table(
        name="spectra",
        title="Updates, matrix by matrix",
        note="A rank is not resolvable if rounding in storage decides it.",
        frame=pd.DataFrame(rows),
        columns=tuple(Column(name, label, "text", label) for name, label in labels.items()),
    )
