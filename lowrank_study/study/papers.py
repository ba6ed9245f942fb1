"""What a paper reports beside what this suite finds: the same question, one row a number.

    beside(paper, runs)      # the paper's keys, published, own, low, high, n

A paper's YAML (`conf/paper/`) names the experiment that asks its question here, how it is measured
(`MEASURES`), and the published numbers. A measure gives a tidy table: what a row is of, `own`, and
where runs were repeated the 95 % interval over seeds. Models, data and scale differ from the
paper's, so it is the pattern that can agree, and a level only by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from lowrank_study.config import CONF_FOLDER, plain
from lowrank_study.errors import InputError
from lowrank_study.fields import Fields
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.study.paper_measures import MEASURES


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """One table, figure or finding of a paper."""

    name: str
    source: str
    """Authors, year, title, table or figure."""
    setting: str
    """Which model and data the published numbers are of."""
    experiment: str
    """Of `conf/experiment/`: what is trained here."""
    measure: str
    """Name of the measure, of `MEASURES`."""
    unit: str
    """Of the published numbers and ours."""
    published: tuple[Mapping[str, Any], ...]
    """Rows: the measure's keys, and `published`."""
    remark: str
    """What differs, and what to look for."""


def read_paper(name: str, mapping: Mapping[str, Any]) -> Paper:
    """Read a paper's YAML.

    Raises
    ------
    InputError
        A field is missing, or the measure is unknown.
    """
    fields = Fields(f"paper {name}: ", mapping)
    rows = fields.value("published")
    if not isinstance(rows, Sequence) or not all(
        isinstance(row, Mapping) and "published" in row for row in rows
    ):
        raise InputError(f"paper {name}: published: a list of rows with `published` is needed")
    return Paper(
        name=name,
        source=fields.text("source"),
        setting=fields.text("setting"),
        experiment=fields.text("experiment"),
        measure=fields.one_of("measure", tuple(MEASURES)),
        unit=fields.text("unit"),
        published=tuple(dict(row) for row in rows),
        remark=fields.text("remark"),
    )


def load_paper(name: str) -> Paper:
    """Read a paper of `conf/paper/` by its name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    path = CONF_FOLDER / "paper" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"papers: {name!r} is unknown: there are {known}")
    return read_paper(name, plain(OmegaConf.load(path)))


def done_runs(paper: Paper, results: Path) -> list[TrainedRun]:
    """Return the done runs of a paper's experiment.

    Raises
    ------
    InputError
        The experiment was not run, or none of its runs is done.
    """
    store = RunStore(results / "runs")
    runs = store.ended(store.sweep(paper.experiment))
    done = [run for run in runs if run.status == "done"]
    if not done:
        raise InputError(f"no run of {paper.experiment} is done: run experiment={paper.experiment}")
    return done


def beside(paper: Paper, runs: Sequence[TrainedRun]) -> pd.DataFrame:
    """Return published and own numbers, a row each; what only one side has is missing.

    Parameters
    ----------
    paper
        With its measure.
    runs
        Those of its experiment that are done.
    """
    own = MEASURES[paper.measure](runs)
    published = pd.DataFrame(list(paper.published))
    keys = [key for key in published.columns if key != "published"]
    if unknown := set(keys) - set(own.columns):
        raise InputError(
            f"paper {paper.name}: {sorted(unknown)} are no keys of {paper.measure}: it has "
            f"{', '.join(own.columns)}"
        )
    for key in keys:
        published[key] = published[key].astype(own[key].dtype)
    merged = own.merge(published, on=keys, how="outer", sort=False)
    order = [*keys, "published", "own", "low", "high", "n"]
    return merged[order].sort_values(keys, ignore_index=True)
