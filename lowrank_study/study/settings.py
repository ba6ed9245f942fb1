"""What runs have to share before one mean or one test speaks for them: all but method and seeds.

>>> check_alike(store.ended(store.sweep("mine")), sweep="mine")
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank_study.errors import InputError
from lowrank_study.runs import TrainedRun
from lowrank_study.spec import RunSpec, without_paths

_UNSEEN = ("trainer.read_test", "trainer.shuffle_labels")
"""These tell runs of other purposes apart, and whoever compares runs has left those out."""


def check_alike(runs: Sequence[TrainedRun], *, sweep: str) -> None:
    """Refuse runs of one task and model that were not trained or tested alike.

    Raises
    ------
    InputError
        Two of them differ in the task's texts, the model or the training: it names in what.
    """
    check_same_rows(runs)
    if told := difference(run.spec for run in runs):
        raise InputError(
            f"sweep={sweep}: {told}, so that no mean can speak for them: give each a sweep=NAME of "
            "its own"
        )


def difference(specs: Iterable[RunSpec]) -> str | None:
    """Say in what the first runs of one task and model that are not alike differ, if any do."""
    firsts: dict[tuple[str, str], dict[str, Any]] = {}
    for spec in specs:
        task, model = spec.task.name, spec.model.name
        mine = shared_settings(spec)
        first = firsts.setdefault((task, model), mine)
        differing = [
            f"{name} ({first[name]} and {value})"
            for name, value in mine.items()
            if first[name] != value
        ]
        if differing:
            return f"its runs of {task} on {model} differ in {', '.join(differing)}"
    return None


def check_same_rows(runs: Sequence[TrainedRun], splits: Mapping[str, str] | None = None) -> None:
    """Refuse runs of one task and model whose splits hold other rows, in spite of equal settings.

    An older version may have carved them by other rules, or a hub data set has changed.

    Parameters
    ----------
    runs
        Ended ones; those without a hash (failed, say) are passed over.
    splits
        The hash of the splits that further runs would be trained on, by `rows_key`.

    Raises
    ------
    InputError
        Two hashes differ: it names a run of each.
    """
    seen = {key: (digest, "the runs to come") for key, digest in (splits or {}).items()}
    for run in runs:
        digest = run.record.get("provenance", {}).get("data_sha256")
        if digest is None:
            continue
        first, where = seen.setdefault(rows_key(run.spec), (digest, run.spec.run_id))
        if digest != first:
            raise InputError(
                f"{run.spec.run_id} and {where} have equal settings but other rows in their splits "
                f"(data_sha256 {digest[:12]}… and {first[:12]}…): an older version split them, or "
                f"the data set has changed since; delete {run.folder} and its like to train them "
                "again, or keep both apart with another results=FOLDER"
            )


def rows_key(spec: RunSpec) -> str:
    """Return what decides which tokens a run is trained on: its task, and whose tokenizer it is."""
    mapping = without_paths(spec)
    return json.dumps([mapping["task"], mapping["model"]["source"]], sort_keys=True)


def shared_settings(spec: RunSpec) -> dict[str, Any]:
    """Return what runs have to share, by name as in `trainer.epochs`: no path of this machine."""
    mapping = without_paths(spec)
    parts = {"task": mapping["task"], "model": mapping["model"], "trainer": mapping["train"]}
    return {
        name: value
        for part, record in parts.items()
        for field, value in record.items()
        if (name := f"{part}.{field}") not in _UNSEEN
    }
