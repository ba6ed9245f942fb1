"""What the empirical claims are measured from: tidy tables of trained runs, read once.

    evidence = load_evidence(Path("results"), sweeps=["rank_sweep"], rates=[], truncation=None)

A part that is not there is None, and the claims that need it say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.study.claim_measures.outcome import Lacking
from lowrank_study.study.tables import runs_table, spectra_tables

TRUNCATION_COLUMNS = ("run_id", "task", "scope", "kept_rank", "test_accuracy")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Tables of trained runs; None for what is not there."""

    runs: pd.DataFrame | None
    """A row a run, as `study.tables.runs_table` gives."""
    spectra: pd.DataFrame | None
    """A row an updated matrix, as `study.tables.spectra_tables` gives."""
    singular_values: pd.DataFrame | None
    """A row a singular value, likewise."""
    rates: pd.DataFrame | None
    """A row a tuning run, as `runs_table`."""
    truncation: pd.DataFrame | None
    """A row an evaluation of a truncated update: `TRUNCATION_COLUMNS`."""
    serving: pd.DataFrame | None
    """A row a round of timing, a column a way to serve, in seconds."""


NO_EVIDENCE = Evidence(
    runs=None, spectra=None, singular_values=None, rates=None, truncation=None, serving=None
)


def load_evidence(
    results: Path,
    *,
    sweeps: Sequence[str],
    rates: Sequence[str],
    truncation: Path | None,
    serving: pd.DataFrame | None,
) -> Evidence:
    """Read the tables of named sweeps from a results folder.

    Args:
        results: Folder of the run store.
        sweeps: The sweeps whose runs and spectra are read; none for no trained runs.
        rates: The sweeps of the tuning runs; none for no rates.
        truncation: A CSV or Parquet file of truncated updates; None for none.
        serving: What `serving.measure_serving` timed; None if it did not.

    Raises:
        InputError: A sweep that there is not or of which no run has ended, or a truncation
            file without its columns.
    """
    store = RunStore(results / "runs")
    ended, tuning = _ended(store, sweeps), _ended(store, rates)
    spectra = singular_values = None
    if ended:
        spectra, singular_values = spectra_tables(ended, results)
    return Evidence(
        runs=runs_table(ended) if ended else None,
        spectra=spectra,
        singular_values=singular_values,
        rates=runs_table(tuning) if tuning else None,
        truncation=None if truncation is None else _read_truncation(truncation),
        serving=serving,
    )


def _ended(store: RunStore, sweeps: Sequence[str]) -> list[TrainedRun]:
    """Give the ended runs of some sweeps, each once."""
    run_ids: dict[str, None] = {}
    for sweep in sweeps:
        planned = store.sweep(sweep)
        if not store.ended(planned):
            raise InputError(f"no run of the sweep {sweep!r} has ended yet: run it, then check")
        run_ids |= dict.fromkeys(planned)
    return store.ended(list(run_ids))


def _read_truncation(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"truncation={path}: no such file; give the table of truncated updates")
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if missing := [name for name in TRUNCATION_COLUMNS if name not in frame.columns]:
        raise InputError(f"truncation={path}: has no column {missing[0]!r}")
    return frame


def part(table: pd.DataFrame | None, needs: str) -> pd.DataFrame:
    """Give a part of the evidence.

    Raises:
        Lacking: It is not there; `needs` says what it is.
    """
    if table is None or table.empty:
        raise Lacking(needs)
    return table


def tuned_runs(evidence: Evidence) -> pd.DataFrame:
    """Give the runs that are done, of each setting those at its best rate on validation.

    A setting is a task, model, method, target and rank; where it was run at several rates or
    scalings, the one with the highest mean validation accuracy stands. A column `setting` says
    task and model.

    Raises:
        Lacking: There are no runs that are done.
    """
    runs = part(evidence.runs, "trained runs: sweep=NAME")
    done = runs[runs["status"] == "done"]
    if done.empty:
        raise Lacking("trained runs that are done; those of the sweep diverged or failed")
    cell = ["task", "model", "method", "target", "adapter_rank"]
    tried = ["scaling", "learning_rate"]
    mean = done.groupby([*cell, *tried], dropna=False)["validation_accuracy"].mean()
    means = mean.reset_index().sort_values(
        "validation_accuracy", kind="stable", na_position="first"
    )
    best = means.drop_duplicates(cell, keep="last")[[*cell, *tried]]
    chosen = done.merge(best, on=[*cell, *tried])
    return chosen.assign(setting=chosen["task"] + ", " + chosen["model"])
