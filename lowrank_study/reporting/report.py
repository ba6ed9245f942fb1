"""From the tables of a study to a folder that holds its report.

    write_report(study, Path("results/report"))

writes

    report.html              everything in one file: text, tables, figures
    report.tex               the same for LaTeX; includes the files below
    tables/*.csv, *.tex      every table, exact as CSV and rounded as shown for LaTeX
    figures/*.svg, *.pdf     every figure; *_dark.svg for dark backgrounds
    files.json               the SHA-256 of each file above

Everything is computed before anything is written, and each file is renamed into place when it is
complete, so an interrupted report leaves only whole files. Files that an earlier report listed in
`files.json` and this one lacks are removed; other files in the folder stay. The same study gives
the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lowrank_study.files import require_folder, write_whole
from lowrank_study.reporting.composition import Report, compose
from lowrank_study.reporting.display import csv_text
from lowrank_study.reporting.drawing.svg import DARK, LIGHT, file_svg
from lowrank_study.reporting.html_report import html_of
from lowrank_study.reporting.latex_report import latex_of, latex_table
from lowrank_study.reporting.study import StudyTables

MANIFEST = "files.json"


def write_report(study: StudyTables, folder: Path) -> Path:
    """Write the report of a study into a folder and return the path of its HTML file.

    Raises:
        InputError: The tables can't be reported on (see `checked`), or the folder is a file.
    """
    return write_composed(compose(study), folder)


def write_composed(report: Report, folder: Path) -> Path:
    """Write a composed report; see `write_report`."""
    files: dict[str, bytes] = {}
    for table in [*report.shown_tables, *report.data]:
        files[f"tables/{table.name}.csv"] = csv_text(table.frame).encode()
    for table in report.shown_tables:
        files[f"tables/{table.name}.tex"] = latex_table(table).encode()
    for figure in report.figures:
        files[f"figures/{figure.name}.svg"] = file_svg(figure.wide, LIGHT).encode()
        files[f"figures/{figure.name}_dark.svg"] = file_svg(figure.wide, DARK).encode()
        files[f"figures/{figure.name}.pdf"] = figure.pdf
    files["report.tex"] = latex_of(report).encode()
    files["report.html"] = html_of(report).encode()
    _write_all(files, folder)
    return folder / "report.html"


def _write_all(files: Mapping[str, bytes], folder: Path) -> None:
    before = _listed_files(require_folder(folder))
    for name, content in files.items():
        write_whole(folder / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_whole(folder / MANIFEST, (json.dumps(digests, indent=1, sort_keys=True) + "\n").encode())
    for name in before - set(files):
        (folder / name).unlink(missing_ok=True)


def _listed_files(folder: Path) -> set[str]:
    """Return the tables and figures that an earlier report wrote."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return set()
    if not isinstance(listed, dict):
        return set()
    return {
        name
        for name in listed
        if name.count("/") == 1
        and name.split("/")[0] in {"tables", "figures"}
        and name.split("/")[1] not in {"", ".", ".."}
    }
