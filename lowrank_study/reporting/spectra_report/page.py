"""The measurement as one self-contained HTML page to explore.

    Path("report.html").write_text(page_of(found))

The page contains the plotting library and the data. Names reach the script as JSON without any
`<`, and the script escapes them again for the plots, which render some HTML.
"""

from markupsafe import Markup

from lowrank_study.measurement.records import MeasuredMatrix, Measurement
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
    measures, matrices, vectors = measures_in(found), matrices_of(found), vectors_table(found)
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
        settings=found.settings,
        two=bool(found.other_matrices),
        similar=any(matrix.similarity is not None for matrix in found.matrices),
        matrices=matrices[:ROWS_SHOWN],
        matrices_all=len(matrices),
        cell=_cell,
        noise_rank=noise_energy_rank,
        vectors=vectors.head(ROWS_SHOWN).to_dict("records"),
        vectors_all=len(vectors),
        value_text=value_text,
        counted=counted,
        skipped=skipped_table(found).to_dict("records"),
        files=files_table(found).to_dict("records"),
        in_bytes=in_bytes,
        provenance=provenance(),
        data=Markup(embedded(explorer_data(found, measures))),
    )


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


def _cell(matrix: MeasuredMatrix, measure: Measure) -> dict[str, str]:
    """Return a reading's text, sort key, status and hint; cells without a number sort last."""
    reading = matrix.readings.get(measure.name, NOT_MEASURED)
    hint = ""
    if reading.value is None and reading.as_read is not None:
        text = value_text(reading.as_read, measure.kind)
        hint = f"{reading.status}: rounding decides it (the formula gives {text})"
    return {
        "text": reading_text(reading, measure),
        "order": "Infinity" if reading.value is None else repr(reading.value),
        "status": reading.status,
        "hint": hint,
    }
