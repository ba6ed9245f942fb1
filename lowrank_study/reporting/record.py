"""The record of a sweep: the parts of a report that are worth keeping in the repository.

    >>> record_sweep("mine", results=Path("results"), name="2026-11-22_mine", margin=0.02)
    PosixPath('results/records/2026-11-22_mine')

A record has the report in words, every table that is not long, and the figures in light and dark.
It has no weights, no data and no file over 1 MB.
"""

import re
import shutil
import tempfile
from pathlib import Path

from lowrank_study.errors import InputError
from lowrank_study.reporting.composition import Report, compose
from lowrank_study.reporting.report import write_composed
from lowrank_study.reporting.section import Section
from lowrank_study.reporting.sweep_report import study_tables
from lowrank_study.results import record_folder

_LARGEST_BYTES = 1_000_000


def record_sweep(sweep: str, *, results: Path, name: str, margin: float | str) -> Path:
    """Write the record of a sweep below `results/records` and replace an earlier one.

    Other files beside the record's own, such as notes, stay. Its folders are replaced.

    Raises:
        InputError: The name is not a file name, there is no such sweep, or a run has not ended.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"record={name!r}: use letters, digits and ._- only, starting with a letter or digit"
        )
    report = compose(study_tables(sweep, results=results, margin=margin))
    target = record_folder(results, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        write_composed(report, Path(folder) / "report")
        made = Path(folder) / "record"
        for kind, suffix in (("tables", "*.csv"), ("figures", "*.svg")):
            (made / kind).mkdir(parents=True)
            for file in sorted((Path(folder) / "report" / kind).glob(suffix)):
                if file.stat().st_size <= _LARGEST_BYTES:
                    shutil.copy(file, made / kind)
        (made / "README.md").write_text(_readme(report, made))
        if target.exists():
            for kept in target.iterdir():
                if not (made / kept.name).exists():
                    (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, made / kept.name)
            target.rename(Path(folder) / "earlier")
        made.rename(target)
    return target


def _readme(report: Report, folder: Path) -> str:
    lines = [f"# {report.study.title}", "", report.study.question, ""]
    lines += [report.completeness.text, ""]
    for part in report.parts:
        lines += [f"## {part.title}", ""]
        lines += [f"- {line}" for line in part.answer] + [""]
        for section in part.sections:
            lines += _section(section, folder)
    lines += [
        "## Provenance",
        "",
        "`tables/provenance.csv` shows where the numbers come from, and `tables/runs.csv` lists "
        "every run. `NOTES.md`, if present, tells how the sweep was run and what it can't show.",
    ]
    return "\n".join(lines) + "\n"


def _section(section: Section, folder: Path) -> list[str]:
    lines = [f"### {section.title}", ""]
    for figure in section.figures:
        if (folder / "figures" / f"{figure.name}.svg").is_file():
            lines += [f"![{figure.title}](figures/{figure.name}.svg)", "", figure.caption, ""]
    if section.findings:
        lines += [*(f"- **{item.topic}.** {item.text}" for item in section.findings), ""]
    if section.reading:
        lines += ["<details><summary>How to read this</summary>", ""]
        lines += [*(f"- {text}" for text in section.reading), "", "</details>", ""]
    return lines
