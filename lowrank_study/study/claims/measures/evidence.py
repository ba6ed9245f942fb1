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
from lowrank_study.spec import RunSpec
from lowrank_study.study.claims.measures.outcome import Lacking
from lowrank_study.study.sweep import rates_sweep
from lowrank_study.study.tables import ranks_table, runs_table
from lowrank_study.study.truncation_tables import truncation_table
from lowrank_study.study.tuning import Preference, preference

CONFIGURATION = ["setting", "method", "target", "adapter_rank"]
TUNED = ["scaling", "learning_rate"]
"""What one configuration may have been run at several of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Tables of trained runs; None for what is not there."""

    runs: pd.DataFrame | None
    """A row a run, as `study.tables.runs_table` gives, with what is alike in its `setting`."""
    spectra: pd.DataFrame | None
    """A row an updated matrix, as `study.tables.ranks_table` gives."""
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
    return Evidence(
        runs=_with_settings(ended) if ended else None,
        spectra=ranks_table(ended, results) if ended else None,
        rates=_with_settings(tuning) if tuning else None,
        truncation=truncation_table(ended, results) if ended else None,
        serving=serving,
        papers={
            path.stem: pd.read_csv(path)
            for path in sorted((results / "papers").glob("*.csv"))
            if sweeps
        },
    )


def _with_settings(runs: Sequence[TrainedRun]) -> pd.DataFrame:
    """Give a row a run, with what has to be the same in runs that are compared."""
    return runs_table(runs).assign(setting=[_setting(run.spec) for run in runs])


def _setting(spec: RunSpec) -> str:
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
    scalings, of those with the most seeds the one that `study.tuning.preference` prefers stands: a
    sweep that tried a rate with one seed does not speak for one that tried six.

    Raises:
        Lacking: There are no runs that are done.
    """
    runs = part(evidence.runs, "trained runs: sweep=NAME")
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
        accuracy=float(done["validation_accuracy"].mean()),
        loss=float(done["validation_loss"].mean()),
        rate=float(runs["learning_rate"].iloc[0]),
    )
