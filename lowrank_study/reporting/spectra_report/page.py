"""The measurement as one self-contained HTML page to explore.

    Path("report.html").write_text(page_of(found))

The page contains the plotting library and the data. Names reach the script as JSON without any
`<`, and the script escapes them again for the plots, which render some HTML.
"""

from typing import Any

from markupsafe import Markup

from lowrank_study.measurement.records import Measurement
from lowrank_study.measurement.subjects import AdapterOnBase, Subject
from lowrank_study.provenance import provenance
from lowrank_study.reporting.display import counted, in_bytes, printable
from lowrank_study.reporting.spectra_report.explorer import embedded, explorer_data
from lowrank_study.reporting.spectra_report.findings import answer_of, details_of, left_out_of
from lowrank_study.reporting.spectra_report.tables import (
    NOT_MEASURED,
    files_table,
    matrices_of,
    measures_in,
    name_of,
    reading_text,
    skipped_table,
    value_text,
    vectors_table,
)
from lowrank_study.reporting.web_page import packaged, web_page
from lowrank_study.spectra.measures import Measure
from lowrank_study.spectra.noise import noise_energy_rank
from lowrank_study.spectra.readings import Reading

ROWS_SHOWN = 2000
"""Rows of a table on the page. More are slow to open; the CSV files hold all."""


def page_of(found: Measurement) -> str:
    """Return the whole page."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped, unused-ignore]

    scripts = [
        get_plotlyjs().replace("\r\n", "\n"),
        packaged("script.html.j2"),
        packaged("spectra_script.html.j2"),
    ]
    measures = measures_in(found)
    settings = found.settings
    vectors = vectors_table(found)
    return web_page(
        "spectra.html.j2",
        scripts=scripts,
        more_style=packaged("spectra_style.html.j2"),
        images="data: blob:",
        title=_title(found.subject),
        left_out=left_out_of(found),
        question=_question(found),
        facts=_facts(found),
        answer=answer_of(found),
        details=details_of(found),
        flags=[printable(flag) for flag in found.flags],
        measures=measures,
        settings=settings,
        two=bool(found.other_matrices),
        similar=any(matrix.similarity is not None for matrix in found.matrices),
        rows=_rows(found, measures)[:ROWS_SHOWN],
        rows_all=len(found.matrices) + len(found.other_matrices),
        vectors=[_vector_row(row) for row in vectors.head(ROWS_SHOWN).to_dict("records")],
        vectors_all=len(vectors),
        skipped=skipped_table(found).to_dict("records"),
        files=[row | {"size": in_bytes(row["bytes"])} for row in _records(found)],
        provenance=provenance(),
        data=Markup(embedded(explorer_data(found, measures))),
    )


def _records(found: Measurement) -> list[dict[str, Any]]:
    return [
        {str(key): value for key, value in row.items()}
        for row in files_table(found).to_dict("records")
    ]


def _title(subject: Subject) -> str:
    if isinstance(subject, AdapterOnBase):
        return f"What {name_of(subject.adapter)} adds"
    return f"From {name_of(subject.before)} to {name_of(subject.after)}"


def _question(found: Measurement) -> str:
    text = "How large is each weight update ΔW, what rank does it have, and is it above noise?"
    second = found.other_subject
    if second is None:
        return text
    path = second.adapter if isinstance(second, AdapterOnBase) else second.after
    return f"{text} And how does it compare with {name_of(path)}?"


def _facts(found: Measurement) -> list[tuple[str, str]]:
    dtypes = sorted({matrix.spectrum.storage_dtype for _, matrix in matrices_of(found)})
    methods = sorted({matrix.spectrum.method for _, matrix in matrices_of(found)})
    return [
        ("Matrices", f"{len(found.matrices):,}"),
        ("Vectors", f"{len(found.vectors):,}"),
        ("Not compared", f"{len(found.skipped):,}"),
        ("Stored as", ", ".join(printable(dtype) for dtype in dtypes)),
        ("Decomposed by", ", ".join(methods)),
        ("Read", in_bytes(sum(file.size for file in found.files))),
    ]


def _rows(found: Measurement, measures: tuple[Measure, ...]) -> list[dict[str, Any]]:
    rows = []
    for update, matrix in matrices_of(found):
        spectrum = matrix.spectrum
        cells = []
        for measure in measures:
            reading = matrix.readings.get(measure.name, NOT_MEASURED)
            cells.append(
                {
                    "text": reading_text(reading, measure),
                    # Cells without a number sort last.
                    "order": "Infinity" if reading.value is None else repr(reading.value),
                    "status": reading.status,
                    "hint": _hint(reading, measure),
                }
            )
        noise = noise_energy_rank(*spectrum.shape)
        rows.append(
            {
                "update": update,
                "module": printable(spectrum.module),
                "layer": "–" if spectrum.layer is None else spectrum.layer,
                "shape": f"{spectrum.shape[0]}×{spectrum.shape[1]}",
                "size": spectrum.shape[0] * spectrum.shape[1],
                "dtype": printable(spectrum.storage_dtype),
                "state": matrix.state,
                "noise": f"{noise:.0f}",
                "cells": cells,
            }
        )
    return rows


def _hint(reading: Reading, measure: Measure) -> str:
    if reading.value is not None or reading.as_read is None:
        return ""
    text = value_text(reading.as_read, measure.kind)
    return f"{reading.status}: rounding decides it (the formula gives {text})"


def _vector_row(row: dict[Any, Any]) -> dict[str, str]:
    return {
        "name": row["name"],
        "length": counted(row["length"], "entry", "entries"),
        "dtype": printable(row["storage_dtype"]),
        "before": value_text(row["norm_before"], "number"),
        "change": value_text(row["norm_of_change"], "number"),
        "relative": value_text(row["relative_change"], "percent"),
        "largest": value_text(row["largest_change"], "number"),
        "rounding": value_text(row["rounding_norm"], "number"),
        "status": row["status"],
    }
