"""The report as one self-contained HTML file.

    Path("report.html").write_text(html_of(report))

See `web_page.py`. Only the drawings bypass Jinja's autoescape: their text was escaped when the SVG
was written.
"""

import math

from markupsafe import Markup

from lowrank_study.reporting.composition import Report
from lowrank_study.reporting.display import Table, is_missing, written
from lowrank_study.reporting.drawing.figure import Figure
from lowrank_study.reporting.drawing.svg import inline_svg
from lowrank_study.reporting.web_page import packaged, web_page

ROWS_SHOWN = 400
"""Pages with more rows per table open slowly; the CSV files have all rows."""


def html_of(report: Report) -> str:
    """Return the whole page."""
    return web_page(
        "report.html.j2",
        scripts=[packaged("script.html.j2")],
        title=report.study.title,
        report=report,
        cell=written,
        order=_order,
        drawing=_drawing,
        rows_of=_rows_of,
        rows_shown=ROWS_SHOWN,
    )


def _drawing(figure: Figure, width: str) -> Markup:
    svg = figure.wide if width == "wide" else figure.narrow
    name = f"{figure.name}-{width}"
    return Markup(inline_svg(svg, name=name, label=f"{figure.title}. {figure.caption}"))


def _rows_of(table: Table) -> list[tuple[bool, tuple[object, ...]]]:
    """Return the shown rows, each with whether it is a run that is not done."""
    names = [column.name for column in table.columns]
    place = names.index("status") if "status" in names else None
    rows = table.rows(ROWS_SHOWN)
    return [(place is not None and row[place] != "done", row) for row in rows]


def _order(value: object) -> str:
    """Return the sort key of a cell: the exact number, or nothing for text and missing values."""
    if is_missing(value) or isinstance(value, str | bool):
        return ""
    number = float(str(value))
    return repr(number) if math.isfinite(number) else ""
