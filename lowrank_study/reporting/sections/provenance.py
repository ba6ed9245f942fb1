"""Where the numbers come from: every run, provenance, and the tables that are only CSV files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from lowrank_study.reporting.columns import columns
from lowrank_study.reporting.display import Column, Table, counted
from lowrank_study.reporting.study import StudyTables
from lowrank_study.runs.store import TrainedRun
from lowrank_study.sweeps.settings import shared_settings


def study_tables_shown(study: StudyTables) -> list[Table]:
    """Return the tables of the whole study: its runs and its provenance."""
    macro_f1 = Column("test_macro_f1", "macro F1", "decimal", "on test")
    return [
        Table(
            name="runs",
            title="Every run",
            note="One row per run, done or not. The CSV file has every recorded column.",
            frame=study.runs,
            columns=columns(
                study.metric,
                Column("run_id", "run", "text", "its name in the store"),
                "status seed learning_rate test_score validation_score",
                *([macro_f1] if study.runs["test_macro_f1"].notna().any() else []),
                Column("train_score", "train", "decimal", "{score} on training data"),
                "steps train_seconds",
                Column("precision", "precision", "text", "precision of the arithmetic"),
                Column("message", "message", "text", "why the run is not done"),
            ),
        ),
        Table(
            name="provenance",
            title="Provenance",
            note="Code, versions, data and machine behind these numbers.",
            frame=flat_provenance(study.provenance),
            columns=(Column("item", "item", "text", ""), Column("value", "value", "text", "")),
        ),
    ]


def long_tables(study: StudyTables) -> list[Table]:
    """Return the tables that are only CSV files, because they are long."""
    frames = {
        "spectra": ("Spectra", study.spectra),
        "singular_values": ("Singular values", study.singular_values),
        "trials": ("Runs that chose rates", study.rates),
        "cuts": ("Truncated updates", study.truncation),
    }
    return [
        Table(name=name, title=title, note=counted(len(frame), "row"), frame=frame, columns=())
        for name, (title, frame) in frames.items()
        if frame is not None
    ]


def shared_provenance(runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Return what runs have in common; where they differ, each value with its number of runs.

    Settings are grouped by task and model: runs that are compared share them (`check_alike`), those
    of a table over training sizes differ in some.
    """
    facts = _shared([run.record["provenance"] for run in runs if "provenance" in run.record])
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        setting = f"{run.spec.task.name} on {run.spec.model.name}"
        settings.setdefault(setting, []).append(shared_settings(run.spec))
    return facts | {setting: _shared(records) for setting, records in settings.items()}


def _shared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record.get(key, "not recorded") for record in records]
        counts = Counter(map(str, values))
        by_value = {value: counted(count, "run") for value, count in counts.items()}
        shared[key] = values[0] if len(counts) == 1 else by_value
    return shared


def flat_provenance(provenance: Mapping[str, object]) -> pd.DataFrame:
    """Return nested provenance as two columns, the path of an item and its value.

    >>> flat_provenance({"versions": {"torch": "2.13"}}).to_numpy().tolist()
    [['versions / torch', '2.13']]
    """
    return pd.DataFrame(list(_items(provenance, "")), columns=["item", "value"], dtype=object)


def _items(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _items(inner, f"{path} / {key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield path, ", ".join(str(item) for item in value)
    else:
        yield path, str(value)
