"""The record of a sweep: what is worth keeping in the repository of a report.

    >>> record_sweep("mine", results=Path("results"), name="2026-11-22_mine", margin=0.02)
    PosixPath('results/records/2026-11-22_mine')

Findings in words, every table but the long ones, and the figures for light and dark paper. No
weights, no data, no file over 1 MB.
"""

import re
import shutil
import tempfile
from pathlib import Path

from lowrank_study.errors import InputError
from lowrank_study.reporting.contents import Report, compose
from lowrank_study.reporting.report import write_composed
from lowrank_study.reporting.sweep_report import study_tables
from lowrank_study.results import record_folder

_LARGEST_BYTES = 1_000_000


def record_sweep(sweep: str, *, results: Path, name: str, margin: float) -> Path:
    """Write the record of a sweep below `results/records`, in the place of an earlier one.

    What is beside the record's own files (notes of who made it) stays; its folders are its own.

    Raises
    ------
    InputError
        The name is no file name, there is no such sweep, or a run of it has not ended.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"record={name!r}: a name of letters, digits and ._- is needed")
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
        (made / "README.md").write_text(_findings(report))
        if target.exists():
            for kept in target.iterdir():
                if not (made / kept.name).exists():
                    (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, made / kept.name)
            target.rename(Path(folder) / "earlier")
        made.rename(target)
    return target


def _findings(report: Report) -> str:
    lines = [f"# {report.study.title}", "", report.study.question, "", report.completeness.text]
    lines += ["", "`NOTES.md`, where there is one, says how it was made and what it can't tell."]
    for part in report.parts:
        lines += ["", f"## {part.setting.task} on {part.setting.model}", ""]
        lines += [f"- **{finding.topic}.** {finding.text}" for finding in part.findings]
    lines += [
        "",
        "Where each number comes from: `tables/provenance.csv`; every run: `tables/runs.csv`.",
    ]
    return "\n".join(lines) + "\n"
