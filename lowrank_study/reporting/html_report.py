"""The report as one HTML file that needs nothing but itself.

    Path("report.html").write_text(html_of(report))

See `web_page.py`. The drawings are the one thing that does not go through Jinja's autoescape:
their text was escaped when the SVG was written.
"""

import math

from markupsafe import Markup

from lowrank_study.reporting.contents import Report
from lowrank_study.reporting.display import Table, is_missing, written
from lowrank_study.reporting.figures import Figure
from lowrank_study.reporting.svg import inline_svg
from lowrank_study.reporting.web_page import packaged, web_page

ROWS_SHOWN = 400
"""A page with more rows in a table is slow to open; the CSV files hold all."""


def html_of(report: Report) -> str:
    """Give the whole page."""
    return web_page(
        "report.html.j2",
        scripts=[packaged("script.html.j2")],
        title=report.study.title,
        report=report,
        cell=_cell,
        order=_order,
        drawing=_drawing,
        rows_of=_rows_of,
        rows_shown=ROWS_SHOWN,
    )


def _drawing(figure: Figure, width: str) -> Markup:
    svg = figure.wide if width == "wide" else figure.narrow
    name = f"{figure.name}-{width}"
    return Markup(inline_svg(svg, name=name, label=f"{figure.title}. {figure.caption}"))


def _rows_of(table: Table) -> list[tuple[bool, list[object]]]:
    """Give the rows that are shown, each with whether it is a run that is not done."""
    names = [column.name for column in table.columns]
    shown = table.frame[names].head(ROWS_SHOWN)
    rows = [list(row) for row in shown.itertuples(index=False, name=None)]
    if "status" not in names:
        return [(False, row) for row in rows]
    place = names.index("status")
    return [(row[place] != "done", row) for row in rows]


def _cell(value: object, kind: str) -> str:
    return written(value, kind)  # type: ignore[arg-type]  # a template has no types


def _order(value: object) -> str:
    """Give what a column is sorted by: the exact number; nothing for text or what is missing."""
    if is_missing(value) or isinstance(value, str | bool):
        return ""
    number = float(str(value))
    return repr(number) if math.isfinite(number) else ""
