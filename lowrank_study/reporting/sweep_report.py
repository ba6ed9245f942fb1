"""The report of a sweep, from the run store and the measured spectra.

>>> report_sweep("rank_sweep", results=Path("results"))
(PosixPath('results/report/report.html'), '45 of 45 planned runs are done. LoRA on ...')
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lowrank_study.answers.curves import curves_table
from lowrank_study.answers.forgetting import forgetting_table
from lowrank_study.answers.full_runs import chosen_full_runs
from lowrank_study.answers.functional_rank import truncation_table
from lowrank_study.answers.looks import Looks
from lowrank_study.answers.measured_controls import read_controls
from lowrank_study.answers.scores import chosen_runs, score_by_rank
from lowrank_study.answers.sequential import looks_of
from lowrank_study.answers.sufficient_rank import COMPARISON_COLUMNS, against_full
from lowrank_study.answers.tables import runs_table, spectra_tables, without_folders
from lowrank_study.answers.test_sets import scores_of_sets
from lowrank_study.errors import InputError
from lowrank_study.reporting.composition import compose
from lowrank_study.reporting.display import counted
from lowrank_study.reporting.report import write_composed
from lowrank_study.reporting.sections.provenance import shared_provenance
from lowrank_study.reporting.study import StudyTables
from lowrank_study.results import report_folder, runs_folder, truncation_file
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.sweeps.measured_spectra import without_spectra
from lowrank_study.sweeps.settings import check_alike
from lowrank_study.sweeps.sweep import rates_sweep
from lowrank_study.sweeps.trials import at_any_rate


def study_tables(sweep: str, *, results: Path, margin: float | str | None = None) -> StudyTables:
    """Gather a sweep's tables from the store, also while it is running.

    Runs on shuffled labels do not answer the sweep's question: they count as controls.

    Args:
        sweep: Name of the sweep.
        results: Folder of the run store and the spectra.
        margin: Largest loss of the score that counts as none, set before the results are read
            (`Metric.read_margin`). Without one no rank is tested against full fine-tuning.

    Raises:
        InputError: There is no such sweep, none of its runs has ended, or some were not trained
            alike.
    """
    store = RunStore(runs_folder(results))
    run_ids = store.sweep(sweep)
    ended = store.ended(run_ids)
    runs = [run for run in ended if not run.spec.train.shuffle_labels]
    if not runs:
        raise InputError(f"no run of the sweep {sweep!r} has ended yet: run it first")
    check_alike(runs, sweep=sweep)
    spectra, singular_values = spectra_tables(runs, results)
    table = runs_table(runs)
    compared = _compared(runs, table)
    return StudyTables(
        title=sweep.replace("_", " ").capitalize(),
        question=store.question(sweep),
        metric=runs[0].spec.task.metric,
        runs=table,
        spectra=spectra,
        singular_values=singular_values,
        comparison=_comparison(compared, margin, results, looks_of(store, sweep)),
        test_sets=scores_of_sets(compared),
        planned=len(run_ids) - (len(ended) - len(runs)),
        provenance=shared_provenance(runs),
        rates=_rates(store, sweep, runs),
        truncation=truncation_table(runs, results),
        controls=_controls(sweep, results, table),
        forgetting=forgetting_table(compared, results),
        curves=curves_table(runs),
        left_out=tuple(_left_out(store, sweep, runs, results)),
    )


def _left_out(store: RunStore, sweep: str, runs: list[TrainedRun], results: Path) -> Iterator[str]:
    """Yield a sentence for everything in the sweep that its report does not include."""
    yield from dict.fromkeys(line for run in runs for line in run.record.get("left_out", []))
    unmeasured: dict[str, list[str]] = {}
    for run_id, reason in without_spectra(runs, results).items():
        unmeasured.setdefault(without_folders(reason), []).append(run_id)
    for reason, run_ids in unmeasured.items():
        named = ", ".join(run_ids[:3]) + (" …" if len(run_ids) > 3 else "")
        verb = "has" if len(run_ids) == 1 else "have"
        yield f"{counted(len(run_ids), 'run')} {verb} no spectra ({named}): {reason}"
    yield from _not_truncated(runs, results)
    if earlier := store.earlier(sweep):
        verb = "is" if len(earlier) == 1 else "are"
        yield (
            f"{counted(len(earlier), 'run')} planned earlier as sweep {sweep} {verb} no longer "
            "part of it"
        )


def _not_truncated(runs: list[TrainedRun], results: Path) -> Iterator[str]:
    """Yield which runs were trained after the others had been truncated."""
    for chosen in chosen_full_runs(runs):
        ids = [run.spec.run_id for run in chosen]
        missing = [run_id for run_id in ids if not truncation_file(results, run_id).is_file()]
        if missing and len(missing) < len(ids):
            verb = "has" if len(missing) == 1 else "have"
            yield (
                f"{len(missing)} of {counted(len(ids), 'run')} of full fine-tuning {verb} not been "
                f"truncated ({', '.join(missing[:3])}{' …' if missing[3:] else ''}): rerun "
                "experiments/truncate.py on the sweep"
            )


def _rates(store: RunStore, sweep: str, runs: list[TrainedRun]) -> pd.DataFrame | None:
    """Return the runs that chose the rates of these runs, if any.

    Other runs may have had the sweep's name before; the runs that chose their rates don't count.
    """
    name = rates_sweep(sweep)
    if name not in store.sweeps():
        return None
    reported: dict[str, set[float]] = {}
    for run in runs:
        reported.setdefault(at_any_rate(run.spec).run_id, set()).add(run.spec.method.learning_rate)
    keys = {t.spec.run_id: at_any_rate(t.spec).run_id for t in store.ended(store.sweep(name))}
    trials = [t for t in store.ended([*keys]) if keys[t.spec.run_id] in reported]
    if not trials:
        return None
    return runs_table(trials).assign(
        reported=[t.spec.method.learning_rate in reported[keys[t.spec.run_id]] for t in trials]
    )


def _controls(sweep: str, results: Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Return the measured controls if they belong to these runs."""
    controls = read_controls(sweep, results)
    if controls is None:
        return None
    trained = set(controls.loc[controls["control"] == "trained", "run_id"])
    return controls if trained <= set(runs["run_id"]) else None


def report_sweep(
    sweep: str, *, results: Path, margin: float | str | None = None, folder: Path | None = None
) -> tuple[Path, str]:
    """Write the report of a sweep and return the path of its HTML file and its answer in one line.

    Args:
        sweep: Name of the sweep.
        results: Folder of the run store and the spectra.
        margin: As in `study_tables`.
        folder: Where the report goes, `results/report` by default.

    Raises:
        InputError: A planned run has not ended: resume the sweep first.
    """
    report = compose(study_tables(sweep, results=results, margin=margin))
    path = write_composed(report, folder or report_folder(results))
    return path, report.in_one_line


def _compared(runs: list[TrainedRun], table: pd.DataFrame) -> list[TrainedRun]:
    """Return the runs at each configuration's chosen learning rate."""
    chosen = set(chosen_runs(table, score_by_rank(table, runs[0].spec.task.metric))["run_id"])
    return [run for run in runs if run.spec.run_id in chosen]


def _comparison(
    compared: list[TrainedRun],
    margin: float | str | None,
    results: Path,
    looks: Looks | None,
) -> pd.DataFrame:
    """Compare every rank with full fine-tuning, at each configuration's chosen learning rate."""
    if margin is None:
        return pd.DataFrame(columns=list(COMPARISON_COLUMNS))
    return against_full(compared, margin=margin, results=results, looks=looks)
