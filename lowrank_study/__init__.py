"""Measure how low-rank fine-tuning really is: rank sweeps, spectra of updates, tested answers.

    >>> import lowrank_study as ls
    >>> specs = [ls.compose("method=lora", f"method.rank={rank}") for rank in (1, 8)]
    >>> runs = ls.sweep(specs, name="two_ranks", results=Path("results"))
    >>> path, finding = ls.report_sweep("two_ranks", results=Path("results"))

Each name is imported when it is first used, so `import lowrank_study` is instant.
"""

import importlib
from typing import Any

_MODULES = {
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lowrank_study' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowrank_study.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
