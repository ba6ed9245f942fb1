"""What a paper reports beside what this suite finds: the same question, one row a number.

    beside(paper, runs)      # the paper's keys, published, own, low, high, n, of_noise

A paper's YAML (`conf/paper/`) names the experiment that asks its question here, how it is measured
(`MEASURES`), and the published numbers. A measure gives a tidy table: what a row is of, `own`, and
where runs were repeated the 95 % interval over seeds. Models, data and scale differ from the
paper's, so it is the pattern that can agree, and a level only by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.fields import Fields
from lowrank_study.config.run import read_yaml
from lowrank_study.errors import InputError
from lowrank_study.papers.measures import MEASURES
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun


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
    sweep: str
    """The name its runs are planned under: the experiment's, and the scale's if there is one."""
    measure: str
    """Name of the measure, of `MEASURES`."""
    unit: str
    """Of the published numbers and ours."""
    published: tuple[Mapping[str, Any], ...]
    """Rows: the measure's keys, and `published`."""
    remark: str
    """How the measure differs from the paper's, and what to look for."""

    def at_scale(self, scale: str | None) -> "Paper":
        """Return the same at a scale of `conf/scale/`, under a name of its own."""
        return replace(
            self, name=at_scale(self.name, scale), sweep=at_scale(self.experiment, scale)
        )


def at_scale(name: str, scale: str | None) -> str:
    """Return what a sweep or paper is called at a scale: nothing of the embedded one's is lost."""
    return name if scale is None else f"{name}_{scale}"


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
    experiment = fields.text("experiment")
    return Paper(
        name=name,
        source=fields.text("source"),
        setting=fields.text("setting"),
        experiment=experiment,
        sweep=experiment,
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
    return read_paper(name, read_yaml(path))


def runs_of(paper: Paper, results: Path) -> list[TrainedRun]:
    """Return all runs of a paper's experiment: done, diverged or failed.

    Raises
    ------
    InputError
        The experiment was not run, a planned run of it has not ended, or none is done.
    """
    store = RunStore(runs_folder(results))
    planned = store.sweep(paper.sweep)
    runs = store.ended(planned)
    if len(runs) < len(planned):
        raise InputError(
            f"{len(runs)} of {len(planned)} runs of {paper.sweep} have ended: run "
            f"experiment={paper.experiment} to its end"
        )
    if not any(run.status == "done" for run in runs):
        raise InputError(f"no run of {paper.sweep} is done: there is nothing to put beside it")
    return runs


def beside(paper: Paper, runs: Sequence[TrainedRun]) -> pd.DataFrame:
    """Return published and own numbers, a row each; what only one side has is missing.

    Parameters
    ----------
    paper
        With its measure.
    runs
        Those of its experiment; the done ones are measured.
    """
    own = MEASURES[paper.measure]([run for run in runs if run.status == "done"])
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
    noise = ["of_noise"] if "of_noise" in own else []
    order = [*keys, "published", "own", "low", "high", "n", *noise]
    return merged[order].sort_values(keys, ignore_index=True)
