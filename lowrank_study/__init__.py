"""Finds out how low-rank fine-tuning really is: rank sweeps, spectra of updates, tested answers.

    >>> import lowrank_study as ls
    >>> specs = [ls.compose("method=lora", f"method.rank={rank}") for rank in (1, 8)]
    >>> runs = ls.sweep(specs, name="two_ranks", results=Path("results"))
    >>> path, finding = ls.report_sweep("two_ranks", results=Path("results"))

What is named here is imported when it is first used: `import lowrank_study` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_study.answers.tables import runs_table, spectra_tables
    from lowrank_study.config.run import compose
    from lowrank_study.errors import InputError
    from lowrank_study.reporting.spectra_report import report_spectra
    from lowrank_study.reporting.sweep_report import report_sweep, study_tables
    from lowrank_study.runs.store import RunStore, TrainedRun
    from lowrank_study.spec import RunSpec
    from lowrank_study.sweeps.sweep import sweep

_HOMES = {
    "InputError": "errors",
    "RunSpec": "spec",
    "RunStore": "runs.store",
    "TrainedRun": "runs.store",
    "compose": "config.run",
    "report_spectra": "reporting.spectra_report",
    "report_sweep": "reporting.sweep_report",
    "runs_table": "answers.tables",
    "spectra_tables": "answers.tables",
    "study_tables": "reporting.sweep_report",
    "sweep": "sweeps.sweep",
}

__all__ = [
    "InputError",
    "RunSpec",
    "RunStore",
    "TrainedRun",
    "compose",
    "report_spectra",
    "report_sweep",
    "runs_table",
    "spectra_tables",
    "study_tables",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lowrank_study' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowrank_study.{_HOMES[name]}"), name)
