"""Pages with a paper's numbers beside our own, as CSV and Markdown.

>>> write_paper(paper, runs_of(paper, results), results / "papers")
PosixPath('results/papers/lora_table6.md')
>>> record_papers([paper], results=results, name="2026-11-26_papers")
PosixPath('results/records/2026-11-26_papers')
"""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.files import write_whole
from lowrank_study.papers.tables import Paper, beside, runs_of
from lowrank_study.reporting.display import csv_text, is_missing, printable, significant
from lowrank_study.reporting.sections.provenance import flat_provenance, shared_provenance
from lowrank_study.results import papers_folder, record_folder
from lowrank_study.runs.store import TrainedRun

HEADINGS = {"own": "here", "low": "95 % from", "high": "to", "of_noise": "of noise"}
HERE = "Here: "
LEGEND = (
    "`here` is the mean over `n` seeds with its 95 % interval (Student t over seeds; a jackknife "
    "over pairs of seeds). It holds for this test set and these learning rates only."
)
NOISE_LEGEND = (
    " `of noise` is the value for random matrices of the same shapes and norms. Values that depend "
    "only on W0 are the same for all seeds."
)


def write_paper(paper: Paper, runs: Sequence[TrainedRun], folder: Path) -> Path:
    """Write `<name>.csv` and `<name>.md` into a folder, and return the latter's path."""
    table = beside(paper, runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{paper.name}.csv", csv_text(table).encode())
    path = folder / f"{paper.name}.md"
    write_whole(path, markdown_of(paper, table, runs).encode())
    return path


def record_papers(papers: Sequence[Paper], *, results: Path, name: str) -> Path:
    """Copy pages from `results/papers` into a record, with their provenance.

    Pages of other papers and other files of the record, such as notes, stay.
    """
    folder = record_folder(results, name)
    folder.mkdir(parents=True, exist_ok=True)
    made_from = folder / "provenance.csv"
    made = {paper.name: runs_of(paper, results) for paper in papers}
    for paper, suffix in product(made, (".csv", ".md")):
        page = papers_folder(results) / f"{paper}{suffix}"
        write_whole(folder / page.name, page.read_bytes())
    fresh = flat_provenance({name: shared_provenance(runs) for name, runs in made.items()})
    if made_from.is_file():
        earlier = pd.read_csv(made_from, dtype=str, keep_default_na=False)
        stale = earlier["item"].str.partition(" / ")[0].isin(made)
        fresh = pd.concat([earlier[~stale], fresh])
    write_whole(made_from, csv_text(fresh).encode())
    pages = sorted(page for page in folder.glob("*.md") if page.with_suffix(".csv").is_file())
    lines = ["# Papers' numbers beside our own", "", *map(_entry, pages), ""]
    lines += [
        "`python experiments/reproduce.py experiments=[] papers=[NAME,...]` writes the pages "
        "again. `provenance.csv` lists what the runs of each page share. `NOTES.md`, if present, "
        "says what the pages show.",
    ]
    write_whole(folder / "README.md", ("\n".join(lines) + "\n").encode())
    return folder


def _entry(page: Path) -> str:
    """Return a list entry with a page's source and what was trained for it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    source = lines[0].removeprefix("# ")
    here = next(line.removeprefix(HERE) for line in lines if line.startswith(HERE))
    return f"- [{source}]({page.name}): {here}"


def markdown_of(paper: Paper, table: pd.DataFrame, runs: Sequence[TrainedRun]) -> str:
    """Return the table in Markdown, with its source and how our runs differ."""
    lines = [
        f"# {paper.source}",
        "",
        f"Published: {paper.setting}.",
        "",
        f"{HERE}{trained_here(runs)} (`experiment={paper.experiment}`)",
        "",
        paper.remark,
        "",
        f"Unit: {paper.unit}. {LEGEND}{NOISE_LEGEND if 'of_noise' in table else ''}",
        "",
        "| " + " | ".join(HEADINGS.get(str(name), str(name)) for name in table.columns) + " |",
        "|" + " --- |" * len(table.columns),
    ]
    for row in table.to_dict("records"):
        cells = (_written(value, exact=name == "published") for name, value in row.items())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def trained_here(runs: Sequence[TrainedRun]) -> str:
    """Describe the runs: model, task, sizes, learning rates, seeds and how many are done."""
    specs = [run.spec for run in runs]
    done = [run for run in runs if run.status == "done"]
    rates = {spec.method.learning_rate for spec in specs}
    parts = [
        f"{_each(spec.model.name for spec in specs)} on {_each(spec.task.name for spec in specs)}",
        f"{_each(run.record['examples']['train'] for run in done)} training texts",
        f"{_each(run.record['steps'] for run in done)} steps of {specs[0].train.batch_size}",
        f"learning rates {_each(rates)}",
        f"seeds {_each(spec.seed for spec in specs)}",
        f"{len(done)} of {len(runs)} runs done",
    ]
    return "; ".join(parts) + "."


def _each(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def _written(value: object, *, exact: bool) -> str:
    if is_missing(value):
        return "–"
    if isinstance(value, float):
        if exact or value == round(value):
            return f"{value:g}"
        return significant(value, 3)
    return printable(value).replace("|", "\\|")
