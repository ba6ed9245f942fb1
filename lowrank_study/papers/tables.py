"""Published numbers beside those of this suite, one row per number.

A file in `conf/paper/` holds the published numbers and names the experiment that asks the same
question here and its measure (`measures.py`). Models, data and scale differ from the paper's, so
compare patterns, not levels.
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
from lowrank_study.papers.measures import PAPER_MEASURES
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """One table, figure or finding of a paper."""

    name: str
    source: str
    """Authors, year, title, table or figure."""
    setting: str
    """Model and data behind the published numbers."""
    experiment: str
    """Name in `conf/experiment/` of what is trained here."""
    sweep: str
    """Name of the sweep: the experiment's, with that of the scale if there is one."""
    measure: str
    """Name in `PAPER_MEASURES`."""
    unit: str
    """Unit of the published numbers and ours."""
    published: tuple[Mapping[str, Any], ...]
    """Rows with keys of the measure and `published`."""
    remark: str
    """How the measure differs from the paper's and what to look for."""

    def at_scale(self, scale: str | None) -> "Paper":
        """Return the paper at a scale of `conf/scale/`, with a name and sweep of its own."""
        return replace(
            self, name=at_scale(self.name, scale), sweep=at_scale(self.experiment, scale)
        )


def at_scale(name: str, scale: str | None) -> str:
    """Return the name of a sweep or paper at a scale, so that scales don't overwrite each other."""
    return name if scale is None else f"{name}_{scale}"


def read_paper(name: str, mapping: Mapping[str, Any]) -> Paper:
    """Read a paper's YAML."""
    fields = Fields(f"paper {name}: ", mapping)
    rows = fields.value("published")
    if not isinstance(rows, Sequence) or not all(
        isinstance(row, Mapping) and "published" in row for row in rows
    ):
        raise InputError(f"paper {name}: published: give a list of rows with `published`")
    experiment = fields.text("experiment")
    return Paper(
        name=name,
        source=fields.text("source"),
        setting=fields.text("setting"),
        experiment=experiment,
        sweep=experiment,
        measure=fields.one_of("measure", tuple(PAPER_MEASURES)),
        unit=fields.text("unit"),
        published=tuple(dict(row) for row in rows),
        remark=fields.text("remark"),
    )


def load_paper(name: str) -> Paper:
    """Read a paper of `conf/paper/` by its name."""
    path = CONF_FOLDER / "paper" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"papers: {name!r} is unknown; valid: {known}")
    return read_paper(name, read_yaml(path))


def runs_of(paper: Paper, results: Path) -> list[TrainedRun]:
    """Return all runs of a paper's experiment, whatever their status."""
    store = RunStore(runs_folder(results))
    planned = store.sweep(paper.sweep)
    runs = store.ended(planned)
    if len(runs) < len(planned):
        raise InputError(
            f"{len(runs)} of {len(planned)} runs of {paper.sweep} have ended: rerun "
            f"experiment={paper.experiment} to finish the others"
        )
    if not any(run.status == "done" for run in runs):
        raise InputError(f"no run of {paper.sweep} is done: there is nothing to compare")
    return runs


def beside(paper: Paper, runs: Sequence[TrainedRun]) -> pd.DataFrame:
    """Return published and own numbers side by side; NA if one of them is absent.

    Raises:
        InputError: The published rows have keys that the measure lacks.
    """
    own = PAPER_MEASURES[paper.measure]([run for run in runs if run.status == "done"])
    published = pd.DataFrame(list(paper.published))
    keys = [key for key in published.columns if key != "published"]
    if unknown := set(keys) - set(own.columns):
        raise InputError(
            f"paper {paper.name}: {sorted(unknown)} are not keys of {paper.measure}. Keys: "
            f"{', '.join(own.columns)}"
        )
    for key in keys:
        published[key] = published[key].astype(own[key].dtype)
    merged = own.merge(published, on=keys, how="outer", sort=False)
    noise = ["of_noise"] if "of_noise" in own else []
    order = [*keys, "published", "own", "low", "high", "n", *noise]
    return merged[order].sort_values(keys, ignore_index=True)
