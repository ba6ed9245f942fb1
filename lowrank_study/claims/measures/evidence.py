"""Evidence for empirical claims: tidy tables of trained runs, read once.

    evidence = load_evidence(Path("results"), sweeps=["rank_sweep"], records=[], serving=None)

The tables come from the run store or from records, which allow checks without training.
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
from lowrank_study.sweeps.trials import Preference, preference
from lowrank_study.tasks.metric import ACCURACY

CONFIGURATION = ["setting", "method", "target", "adapter_rank"]
TUNED = ["scaling", "learning_rate"]
"""Columns in which the runs of one configuration may differ."""
_EARLIER_COLUMNS = {
    "validation_accuracy": "validation_score",
    "test_accuracy": "test_score",
    "train_accuracy": "train_score",
    "majority_accuracy": "chance",
}
"""Column in records of earlier versions → its name now."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Tables of trained runs; None if absent."""

    runs: pd.DataFrame | None
    """One row per run, as from `answers.tables.runs_table`. Runs with one `setting` compare."""
    spectra: pd.DataFrame | None
    """One row per updated matrix, as from `answers.tables.ranks_table`."""
    rates: pd.DataFrame | None
    """One row per tuning run, like `runs`."""
    truncation: pd.DataFrame | None
    """One row per evaluation of a truncated update, as from `truncation_table`."""
    serving: pd.DataFrame | None
    """One row per round of timing, one column per way to serve, in seconds."""
    papers: Mapping[str, pd.DataFrame]
    """Published beside our own numbers, by the file in `conf/paper/` (`reporting/papers.py`)."""


NO_EVIDENCE = Evidence(
    runs=None, spectra=None, rates=None, truncation=None, serving=None, papers={}
)


def load_evidence(
    results: Path,
    *,
    sweeps: Sequence[str],
    records: Sequence[str],
    serving: pd.DataFrame | None,
) -> Evidence:
    """Read the tables of sweeps and records from a results folder.

    Args:
        results: Folder of the run store and of the records.
        sweeps: Sweeps to read, with their tuning runs. Without a sweep, `results/papers` is not
            read either.
        records: Folders in `results/records`.
        serving: Times from `serving.measure_serving`.
    """
    names: dict[tuple[object, ...], str] = {}
    folders = [_record(results, name) for name in records]
    parts = [_of_sweeps(results, sweeps), *(_of_record(folder, names) for folder in folders)]
    return Evidence(
        runs=_together([one.runs for one in parts]),
        spectra=_together([one.spectra for one in parts]),
        rates=_together([one.rates for one in parts]),
        truncation=_together([one.truncation for one in parts]),
        serving=serving,
        papers={name: table for one in parts for name, table in one.papers.items()},
    )


def _together(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Concatenate tables; a run that several tables contain comes from the first."""
    found: list[pd.DataFrame] = []
    for table in tables:
        if table is not None:
            seen = {run_id for other in found for run_id in other["run_id"]}
            found.append(table[~table["run_id"].isin(seen)])
    found = [table for table in found if len(table)]
    return pd.concat(found, ignore_index=True) if found else None


# ---------------------------------------------------------------- records


def _record(results: Path, name: str) -> Path:
    folder = record_folder(results, name)
    if not (folder / "README.md").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/README.md"))
        raise InputError(f"record={name!r} does not exist; known are {', '.join(known) or 'none'}")
    return folder


def _of_record(record: Path, names: dict[tuple[object, ...], str]) -> Evidence:
    """Read a record's tables. `names` gives records that were trained alike the same setting."""
    facts = _kept(record, "provenance")

    def setting(task: str, model: str) -> str:
        alike: tuple[object, ...] = (record, task, model)
        if facts is not None:
            mine = facts[facts["item"].str.startswith(f"{task} on {model} / ")]
            alike = tuple(zip(mine["item"], mine["value"].astype(str), strict=True)) or alike
        return names.setdefault(alike, f"{task}, {model}, {record.name}")

    def with_settings(runs: pd.DataFrame | None) -> pd.DataFrame | None:
        if runs is None:
            return None
        keys = list(zip(runs["task"], runs["model"], strict=True))
        of_key = {key: setting(*key) for key in set(keys)}
        return runs.assign(setting=[of_key[key] for key in keys])

    return Evidence(
        runs=with_settings(_kept(record, "runs")),
        spectra=_kept(record, "spectra"),
        rates=with_settings(_kept(record, "trials")),
        truncation=_kept(record, "cuts"),
        serving=None,
        papers=_papers(record),
    )


def _kept(record: Path, name: str) -> pd.DataFrame | None:
    path = record / "tables" / f"{name}.csv"
    return pd.read_csv(path).rename(columns=_EARLIER_COLUMNS) if path.is_file() else None


def _papers(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the tables of a folder that are named after a file in `conf/paper/`."""
    known = {path.stem for path in (CONF_FOLDER / "paper").glob("*.yaml")}
    files = [path for path in sorted(folder.glob("*.csv")) if path.stem in known]
    return {path.stem: pd.read_csv(path) for path in files}


# ---------------------------------------------------------------- sweeps


def _of_sweeps(results: Path, sweeps: Sequence[str]) -> Evidence:
    store = RunStore(runs_folder(results))
    ended = _ended(store, sweeps)
    rates = [rates_sweep(name) for name in sweeps]
    tuning = _ended(store, [name for name in rates if name in store.sweeps()])
    settings = _settings([run.spec for run in (*ended, *tuning)])

    def with_settings(runs: Sequence[TrainedRun]) -> pd.DataFrame:
        return runs_table(runs).assign(setting=[settings[run.spec.run_id] for run in runs])

    return Evidence(
        runs=with_settings(ended) if ended else None,
        spectra=ranks_table(ended, results) if ended else None,
        rates=with_settings(tuning) if tuning else None,
        truncation=truncation_table(ended, results) if ended else None,
        serving=None,
        papers=_papers(papers_folder(results)) if sweeps else {},
    )


def _ended(store: RunStore, sweeps: Sequence[str]) -> list[TrainedRun]:
    """Return the ended runs of some sweeps without duplicates and without shuffled labels."""
    run_ids: dict[str, None] = {}
    for sweep in sweeps:
        planned = store.sweep(sweep)
        if not store.ended(planned):
            raise InputError(f"no run of the sweep {sweep!r} has ended yet: run it, then check")
        run_ids |= dict.fromkeys(planned)
    return [run for run in store.ended(list(run_ids)) if not run.spec.train.shuffle_labels]


def _settings(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Name the setting of each run: a short name, plus the values in which such names differ."""
    shared = {spec.run_id: shared_settings(spec) for spec in specs}
    of_short: dict[str, list[dict[str, Any]]] = {}
    for spec in specs:
        known = of_short.setdefault(_short_name(spec), [])
        if shared[spec.run_id] not in known:
            known.append(shared[spec.run_id])

    def full_name(spec: RunSpec) -> str:
        short, mine = _short_name(spec), shared[spec.run_id].items()
        others = of_short[short]
        apart = (f"{k}={value}" for k, value in mine if any(each[k] != value for each in others))
        return ", ".join([short, *apart])

    return {spec.run_id: full_name(spec) for spec in specs}


def _short_name(spec: RunSpec) -> str:
    head = spec.train.head_learning_rate
    own = f", head at {head:g}" if head is not None else ""
    texts = f"{spec.task.train_size or 'all'} texts, read {spec.train.epochs}×"
    return f"{spec.task.name}, {spec.model.name}, {texts}{own}"


# ---------------------------------------------------------------- choosing runs


def part(table: pd.DataFrame | None, needs: str) -> pd.DataFrame:
    """Return a table of the evidence."""
    if table is None or table.empty:
        raise Lacking(needs)
    return table


def tuned_runs(evidence: Evidence) -> pd.DataFrame:
    """Return the completed runs of each configuration at its best rate and scaling on validation.

    A configuration is a method, target and rank in a setting. Only rates and scalings with the
    most seeds compete, in the order of `sweeps.trials.preference`.
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
