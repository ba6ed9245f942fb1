"""What the empirical claims are measured from: tidy tables of trained runs, read once.

    evidence = load_evidence(Path("results"), sweeps=["rank_sweep"], records=[], serving=None)

They come from the run store, or from the tables that a record keeps of its runs: with these, claims
can be checked again where nothing was trained. A part that is not there is None, and the claims
that need it say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.answers.functional_rank import truncation_table
from lowrank_study.answers.tables import ranks_table, runs_table
from lowrank_study.claims.measures.outcome import Lacking
from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.errors import InputError
from lowrank_study.results import papers_folder, record_folder, runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.settings import shared_settings
from lowrank_study.sweeps.sweep import rates_sweep
from lowrank_study.sweeps.tuning import Preference, preference
from lowrank_study.tasks.metric import ACCURACY

Setting = tuple[Path, str, str]
"""A record's folder, a task and a model."""

CONFIGURATION = ["setting", "method", "target", "adapter_rank"]
TUNED = ["scaling", "learning_rate"]
"""What one configuration may have been run at several of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Tables of trained runs; None for what is not there."""

    runs: pd.DataFrame | None
    """A row a run, as `answers.tables.runs_table` gives, with what is alike in its `setting`."""
    spectra: pd.DataFrame | None
    """A row an updated matrix, as `answers.tables.ranks_table` gives."""
    rates: pd.DataFrame | None
    """A row a tuning run, as `runs`."""
    truncation: pd.DataFrame | None
    """A row an evaluation of a truncated update, as `truncation_table`."""
    serving: pd.DataFrame | None
    """A row a round of timing, a column a way to serve, in seconds."""
    papers: Mapping[str, pd.DataFrame]
    """Papers' tables beside own numbers, by the file in `conf/paper/` (`reporting/papers.py`)."""


NO_EVIDENCE = Evidence(
    runs=None,
    spectra=None,
    rates=None,
    truncation=None,
    serving=None,
    papers={},
)


def load_evidence(
    results: Path,
    *,
    sweeps: Sequence[str],
    records: Sequence[str],
    serving: pd.DataFrame | None,
) -> Evidence:
    """Read the tables of named sweeps and records from a results folder.

    Args:
        results: Folder of the run store and of the records.
        sweeps: The sweeps whose runs, spectra and truncated updates are read, and the runs that
            chose their rates; with none of them the papers' tables are not read either.
        records: Folders of `results/records` whose tables are read: those of a sweep, or of papers.
        serving: What `serving.measure_serving` timed; None if it did not.

    Raises:
        InputError: A sweep or record that there is not, or a sweep of which no run has ended.
    """
    folders = [_record(results, name) for name in records]
    trained, settings = _of_sweeps(results, sweeps), _kept_settings(folders)
    runs, trials = (
        [_kept_runs(folder, name, settings) for folder in folders] for name in ("runs", "trials")
    )
    return Evidence(
        runs=_together([trained.runs, *runs]),
        spectra=_together([trained.spectra, *(_kept(folder, "spectra") for folder in folders)]),
        rates=_together([trained.rates, *trials]),
        truncation=_together([trained.truncation, *(_kept(folder, "cuts") for folder in folders)]),
        serving=serving,
        papers=dict(trained.papers) | {k: v for one in folders for k, v in _papers(one).items()},
    )


def _of_sweeps(results: Path, sweeps: Sequence[str]) -> Evidence:
    store = RunStore(runs_folder(results))
    ended = _ended(store, sweeps)
    tuning = _ended(
        store, [rates_sweep(name) for name in sweeps if rates_sweep(name) in store.sweeps()]
    )
    settings = _settings([run.spec for run in (*ended, *tuning)])
    return Evidence(
        runs=_with_settings(ended, settings) if ended else None,
        spectra=ranks_table(ended, results) if ended else None,
        rates=_with_settings(tuning, settings) if tuning else None,
        truncation=truncation_table(ended, results) if ended else None,
        serving=None,
        papers=_papers(papers_folder(results)) if sweeps else {},
    )


def _record(results: Path, name: str) -> Path:
    folder = record_folder(results, name)
    if not (folder / "README.md").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/README.md"))
        raise InputError(f"record={name!r}: there is none; known are {', '.join(known) or 'none'}")
    return folder


def _papers(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the tables of a folder that are named as files in `conf/paper/` are."""
    known = {path.stem for path in (CONF_FOLDER / "paper").glob("*.yaml")}
    files = [path for path in sorted(folder.glob("*.csv")) if path.stem in known]
    return {path.stem: pd.read_csv(path) for path in files}


def _kept(record: Path, name: str) -> pd.DataFrame | None:
    """Read one of the tables of a record, if it keeps that."""
    path = record / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def _kept_runs(record: Path, name: str, settings: Mapping[Setting, str]) -> pd.DataFrame | None:
    """Read runs; those of one record, task and model were trained alike, or it would not be."""
    runs = _kept(record, name)
    if runs is None:
        return None
    keys = zip(runs["task"], runs["model"], strict=True)
    return runs.assign(setting=[settings[record, task, model] for task, model in keys])


def _kept_settings(records: Sequence[Path]) -> dict[Setting, str]:
    """Name what runs of each record are compared within: of records trained alike the first."""
    named: dict[Setting, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for record in records:
        runs, facts = _kept(record, "runs"), _kept(record, "provenance")
        if runs is None:
            continue
        for task, model in set(zip(runs["task"], runs["model"], strict=True)):
            alike: tuple[object, ...] = (record, task, model)
            if facts is not None:
                mine = facts[facts["item"].str.startswith(f"{task} on {model} / ")]
                alike = tuple(zip(mine["item"], mine["value"].astype(str), strict=True)) or alike
            label = f"{task}, {model}, {record.name}"
            named[record, task, model] = first.setdefault(alike, label)
    return named


def _together(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Join what there is; of a run that is in several of them the first stands."""
    there: list[pd.DataFrame] = []
    for table in tables:
        if table is not None:
            seen = {run_id for other in there for run_id in other["run_id"]}
            there.append(table[~table["run_id"].isin(seen)])
    there = [table for table in there if len(table)]
    return pd.concat(there, ignore_index=True) if there else None


def _with_settings(runs: Sequence[TrainedRun], settings: Mapping[str, str]) -> pd.DataFrame:
    """Give a row a run, with what has to be the same in runs that are compared."""
    return runs_table(runs).assign(setting=[settings[run.spec.run_id] for run in runs])


def _settings(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Say of each run what runs it may be compared with share; in full where the short form lies.

    Sweeps were each trained alike, which is not to say that they were trained like each other.
    """
    shared = {spec.run_id: shared_settings(spec) for spec in specs}
    of_short: dict[str, list[dict[str, Any]]] = {}
    for spec in specs:
        known = of_short.setdefault(_in_short(spec), [])
        if shared[spec.run_id] not in known:
            known.append(shared[spec.run_id])

    def in_full(spec: RunSpec) -> str:
        others = of_short[_in_short(spec)]
        mine = shared[spec.run_id].items()
        apart = (f"{k}={value}" for k, value in mine if any(each[k] != value for each in others))
        return ", ".join([_in_short(spec), *apart])

    return {spec.run_id: in_full(spec) for spec in specs}


def _in_short(spec: RunSpec) -> str:
    texts = f"{spec.task.train_size or 'all'} texts, read {spec.train.epochs}×"
    head = spec.train.head_learning_rate
    own = f", head at {head:g}" if head is not None else ""
    return f"{spec.task.name}, {spec.model.name}, {texts}{own}"


def _ended(store: RunStore, sweeps: Sequence[str]) -> list[TrainedRun]:
    """Give the ended runs of some sweeps, each once; those on shuffled labels are a control."""
    run_ids: dict[str, None] = {}
    for sweep in sweeps:
        planned = store.sweep(sweep)
        if not store.ended(planned):
            raise InputError(f"no run of the sweep {sweep!r} has ended yet: run it, then check")
        run_ids |= dict.fromkeys(planned)
    return [run for run in store.ended(list(run_ids)) if not run.spec.train.shuffle_labels]


def part(table: pd.DataFrame | None, needs: str) -> pd.DataFrame:
    """Give a part of the evidence.

    Raises:
        Lacking: It is not there; `needs` says what it is.
    """
    if table is None or table.empty:
        raise Lacking(needs)
    return table


def tuned_runs(evidence: Evidence) -> pd.DataFrame:
    """Give the runs that are done, of each configuration those at its best rate on validation.

    A configuration is a method, target and rank in a setting. Where it was run at several rates or
    scalings, of those with the most seeds the one that `sweeps.tuning.preference` prefers stands: a
    sweep that tried a rate with one seed does not speak for one that tried six.

    Raises:
        Lacking: There are no runs that are done.
    """
    runs = part(evidence.runs, "trained runs: sweep=NAME or record=NAME")
    if not (runs["status"] == "done").any():
        raise Lacking("trained runs that are done; those of the sweep diverged or failed")
    tried = [
        max((runs for _, runs in of_one.groupby(TUNED, dropna=False)), key=_worth)
        for _, of_one in runs.groupby(CONFIGURATION, dropna=False)
    ]
    best = pd.concat(tried).sort_index()
    return best[best["status"] == "done"]


def _worth(runs: pd.DataFrame) -> tuple[int, Preference]:
    done = runs[runs["status"] == "done"]
    return len(runs), preference(
        lost=len(runs) - len(done),
        metric=ACCURACY,
        score=float(done["validation_score"].mean()),
        loss=float(done["validation_loss"].mean()),
        rate=float(runs["learning_rate"].iloc[0]),
    )
