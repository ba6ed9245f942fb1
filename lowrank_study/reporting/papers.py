"""Published and own numbers side by side, as CSV and Markdown.

>>> write_paper(paper, beside(paper, runs), Path("results/papers"))
PosixPath('results/papers/lora_table6.md')
"""

from pathlib import Path

import pandas as pd

from lowrank_study.files import write_whole
from lowrank_study.reporting.display import csv_text, is_missing, printable, significant
from lowrank_study.study.papers import Paper


def write_paper(paper: Paper, table: pd.DataFrame, folder: Path) -> Path:
    """Write `<name>.csv` and `<name>.md` into a folder, and return the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{paper.name}.csv", csv_text(table).encode())
    path = folder / f"{paper.name}.md"
    write_whole(path, markdown_of(paper, table).encode())
    return path


def markdown_of(paper: Paper, table: pd.DataFrame) -> str:
    """Give the table in Markdown, with what it is of and what differs."""
    headings = {"own": "here", "low": "95 % from", "high": "to"}
    lines = [
        f"# {paper.source}",
        "",
        f"Published: {paper.setting}. Here: `experiment={paper.experiment}`. Unit: {paper.unit}.",
        "",
        paper.remark,
        "",
        "| " + " | ".join(headings.get(str(name), str(name)) for name in table.columns) + " |",
        "|" + " --- |" * len(table.columns),
    ]
    for row in table.itertuples(index=False, name=None):
        lines.append("| " + " | ".join(_written(value) for value in row) + " |")
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    if is_missing(value):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value == round(value) else significant(value, 3)
    return printable(value).replace("|", "\\|")
