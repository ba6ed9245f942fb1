"""Where numbers come from, as a table.

>>> flat_provenance({"versions": {"torch": "2.13"}}).to_numpy().tolist()
[['versions / torch', '2.13']]
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from lowrank_study.runs import TrainedRun
from lowrank_study.study.settings import shared_settings


def shared_provenance(runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Give what runs have in common; where they differ, every value with its number of runs."""
    recorded = [run.record["provenance"] for run in runs if "provenance" in run.record]
    facts: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in recorded for key in record):
        values = [record.get(key, "not recorded") for record in recorded]
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        only = next(iter(counts)) if len(counts) == 1 else None
        facts[key] = only or {value: f"{count} runs" for value, count in counts.items()}
    # One run speaks for all of its task and model: `check_alike` has seen to it.
    specs = {f"{run.spec.task.name} on {run.spec.model.name}": run.spec for run in runs}
    return facts | {setting: shared_settings(spec) for setting, spec in specs.items()}


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
