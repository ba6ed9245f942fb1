"""Where numbers come from, as a table.

>>> flat_provenance({"versions": {"torch": "2.13"}}).to_numpy().tolist()
[['versions / torch', '2.13']]
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from lowrank_study.reporting.display import counted
from lowrank_study.runs.store import TrainedRun
from lowrank_study.sweeps.settings import shared_settings


def shared_provenance(runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Give what runs have in common; where they differ, every value with its number of runs.

    Settings are by task and model: runs that are held against each other share them
    (`check_alike`), those of a table over numbers of texts differ in some.
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
        told = {value: counted(count, "run") for value, count in counts.items()}
        shared[key] = values[0] if len(counts) == 1 else told
    return shared


def flat_provenance(provenance: Mapping[str, object]) -> pd.DataFrame:
    """Give nested provenance as two columns: the path of the item, and its value."""
    return pd.DataFrame(list(_items(provenance, "")), columns=["item", "value"], dtype=object)


def _items(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _items(inner, f"{path} / {key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield path, ", ".join(str(item) for item in value)
    else:
        yield path, str(value)
