"""Report how the runs of a sweep ended, in words and by the exit code."""

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_study.config.fields import Fields
from lowrank_study.config.run import RunConfig
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.methods import Method
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun


def in_words(runs: Sequence[TrainedRun], *, sweep: str, results: Path) -> str:
    """Return how runs ended, with the path of one run or the command that reports several."""
    if len(runs) > 1:
        counts = Counter(run.status for run in runs)
        listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        return f"{len(runs)} runs: {listed}; {report_command(sweep, results)} reports them"
    [run] = runs
    outcome = run.record.get("message") or _score(run)
    return f"{run.status}: {outcome}; everything is in {run.folder}"


def _score(run: TrainedRun) -> str:
    split, metric = "test" if run.spec.train.read_test else "validation", run.spec.task.metric
    return f"{split} {metric.label} {metric.in_words(run.record[split][metric.name])}"


def report_command(sweep: str, results: Path) -> str:
    """Return the command that writes the report of a sweep."""
    where = "" if results == Path("results") else " " + shlex.quote(f"results={results}")
    return f"python analysis/report.py sweep={sweep}{where}"


def warn_of_differences(configs: Sequence[RunConfig]) -> None:
    """Say before a sweep is trained that its runs are too different for one report."""
    from lowrank_study.sweeps.settings import difference

    if differing := difference(config.spec for config in configs):
        print(f"sweep={configs[0].sweep} will have no report: {differing}", file=sys.stderr)


def progress_in_words(sweep: str, results: Path) -> str:
    """Return how many runs of a sweep are in each state, then a line for each lost run."""
    store = RunStore(runs_folder(results))
    run_ids = store.sweep(sweep)
    ended = store.ended(run_ids)
    counts = Counter(run.status for run in ended)
    counts["running"] = sum(share < 1.0 for share in store.progress(run_ids).values())
    counts["planned"] = len(run_ids) - counts.total()
    listed = [f"{count} {state}" for state, count in counts.items() if count > 0]
    return "\n".join([f"{sweep}: {len(run_ids)} runs: {', '.join(listed)}", *_lost(ended)])


def _lost(runs: Sequence[TrainedRun]) -> list[str]:
    """Return a line for each run that failed or diverged, with the reason."""
    return [
        f"{run.status}: {run.spec.run_id}: {run.record['message']}"
        for run in runs
        if run.status != "done"
    ]


def incomplete(
    runs: Sequence[TrainedRun], *, planned: int, sweep: str, results: Path, allow_partial: bool
) -> list[str]:
    """Return one line per run that failed, diverged or has no spectra, and per left-out part."""
    lines = _lost(runs)
    if lost := len(lines):
        lines.append(f"sweep {sweep}: {lost} of {planned} runs failed or diverged")
    if waiting := planned - len(runs):
        lines.append(f"sweep {sweep}: {waiting} of {planned} runs have not ended")
    from lowrank_study.sweeps.measured_spectra import without_spectra  # it loads slow libraries

    unmeasured = without_spectra(runs, results, is_readable=True)
    lines += [f"no spectra: {run_id}: {reason}" for run_id, reason in unmeasured.items()]
    parts = [part for run in runs for part in run.record.get("left_out", [])]
    if parts and not allow_partial:
        lines += [*dict.fromkeys(parts), "allow_partial=true accepts what was left out"]
    return lines


def check_complete(runs: Sequence[TrainedRun], config: RunConfig) -> None:
    """Make a command end with exit code 1 if `incomplete` returns any line."""
    lines = incomplete(
        runs,
        planned=len(runs),
        sweep=config.sweep,
        results=config.results,
        allow_partial=config.allow_partial,
    )
    if lines:
        raise Unfinished("\n".join(lines))


def require_sweeps(config: Mapping[str, Any]) -> None:
    """Refuse a sweep that was never planned, before anything slow is imported.

    Raises:
        InputError: The sweep does not exist, or none of its ended runs is done.
    """
    fields = Fields("", config)
    store = RunStore(runs_folder(fields.path_of("results")))
    for name in fields.names("sweep"):
        runs = store.ended(store.sweep(name))
        if runs and not any(run.status == "done" for run in runs):
            reasons = Counter(str(run.record.get("message")) for run in runs)
            [(reason, count)] = reasons.most_common(1)
            raise InputError(
                f"sweep={name}: none of its {len(runs)} ended runs is done; {count} ended with: "
                f"{reason}. Fix this and run the sweep again"
            )


def check_sweeps(
    config: Mapping[str, Any], *, names: Sequence[str] = (), method: type[Method] | None = None
) -> None:
    """Apply `check_complete` to the sweeps that a command has read.

    Args:
        names: Further sweeps that the command has trained.
        method: Check only runs of this method; None checks all.
    """
    fields = Fields("", config)
    store = RunStore(runs_folder(fields.path_of("results")))
    planned = store.sweeps()
    lines: list[str] = []
    for name in (*fields.names("sweep"), *(name for name in names if name in planned)):
        run_ids = store.sweep(name)
        runs = store.ended(run_ids)
        read = [run for run in runs if method is None or isinstance(run.spec.method, method)]
        waiting = len(_waiting(store, {*run_ids} - {run.spec.run_id for run in runs}, method))
        allow_partial = fields.flag("allow_partial")
        lines += incomplete(
            read,
            planned=len(read) + waiting,
            sweep=name,
            results=fields.path_of("results"),
            allow_partial=allow_partial,
        )
    if lines:
        raise Unfinished("\n".join(lines))


def _waiting(store: RunStore, run_ids: set[str], method: type[Method] | None) -> list[str]:
    """Return the planned runs of a method; all of them if it is None."""
    if method is None:
        return list(run_ids)
    specs = {run_id: store.planned_spec(run_id) for run_id in run_ids}
    return [run_id for run_id, spec in specs.items() if spec and isinstance(spec.method, method)]
