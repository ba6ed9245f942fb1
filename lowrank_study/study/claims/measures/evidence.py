"""What the empirical claims are measured from: tidy tables of trained runs, read once.

    evidence = load_evidence(Path("results"), sweeps=["rank_sweep"], serving=None)

A part that is not there is None, and the claims that need it say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lowrank_study.errors import InputError
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.study.claims.measures.outcome import Lacking
from lowrank_study.study.sweep import rates_sweep
from lowrank_study.study.tables import runs_table, spectra_tables
from lowrank_study.study.truncation_tables import truncation_table


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
    """A row an evaluation of a truncated update, as `truncation_table`, with its task."""
    serving: pd.DataFrame | None
    """A row a round of timing, a column a way to serve, in seconds."""
    papers: Mapping[str, pd.DataFrame]
    """Papers' tables beside own numbers, by the file in `conf/paper/` (`reporting/papers.py`)."""


NO_EVIDENCE = Evidence(
    runs=None,
    spectra=None,
    singular_values=None,
    rates=None,
    truncation=None,
    serving=None,
    papers={},
)


def load_evidence(
    results: Path,
    *,
    sweeps: Sequence[str],
    serving: pd.DataFrame | None,
) -> Evidence:
    """Read the tables of named sweeps from a results folder.

    Args:
        results: Folder of the run store.
        sweeps: The sweeps whose runs, spectra and truncated updates are read, and the runs that
            chose their rates; none for no trained runs, and none of the papers' tables.
        serving: What `serving.measure_serving` timed; None if it did not.

    Raises:
        InputError: A sweep that there is not, or of which no run has ended.
    """
    store = RunStore(results / "runs")
    ended = _ended(store, sweeps)
    tuning = _ended(
        store, [rates_sweep(name) for name in sweeps if rates_sweep(name) in store.sweeps()]
    )
    spectra = singular_values = truncation = None
    if ended:
        spectra, singular_values = spectra_tables(ended, results)
        tasks = {run.spec.run_id: run.spec.task.name for run in ended}
        truncation = truncation_table(ended, results)
        truncation["task"] = truncation["run_id"].map(tasks)
    return Evidence(
        runs=runs_table(ended) if ended else None,
        spectra=spectra,
        singular_values=singular_values,
        rates=runs_table(tuning) if tuning else None,
        truncation=truncation,
        serving=serving,
        papers={
            path.stem: pd.read_csv(path)
            for path in sorted((results / "papers").glob("*.csv"))
            if sweeps
        },
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
    scalings, of those with the most seeds the one with the highest mean validation accuracy
    stands. A column `setting` says task and model.

    Raises:
        Lacking: There are no runs that are done.
    """
    runs = part(evidence.runs, "trained runs: sweep=NAME")
    done = runs[runs["status"] == "done"]
    if done.empty:
        raise Lacking("trained runs that are done; those of the sweep diverged or failed")
    cell = ["task", "model", "method", "target", "adapter_rank"]
    tried = ["scaling", "learning_rate"]
    validation = done.groupby([*cell, *tried], dropna=False)["validation_accuracy"]
    means = validation.agg(["size", "mean"]).reset_index()
    means = means.sort_values(["size", "mean"], kind="stable", na_position="first")
    best = means.drop_duplicates(cell, keep="last")[[*cell, *tried]]
    chosen = done.merge(best, on=[*cell, *tried])
    return chosen.assign(setting=chosen["task"] + ", " + chosen["model"])
