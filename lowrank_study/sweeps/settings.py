"""Check that runs may be compared: they differ only in method, learning rate and seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank_study.errors import InputError
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec, without_paths

_UNSEEN = ("trainer.read_test", "trainer.shuffle_labels")
"""Settings of runs that tune or control; comparisons leave such runs out beforehand."""


def check_alike(runs: Sequence[TrainedRun], *, sweep: str) -> None:
    """Refuse runs of one task and model that were not trained or tested alike."""
    check_same_rows(runs)
    if differing := difference(run.spec for run in runs):
        raise InputError(
            f"sweep={sweep}: {differing}, so they can't be averaged: give each its own sweep=NAME"
        )


def difference(specs: Iterable[RunSpec]) -> str | None:
    """Return the settings in which runs of one task and model differ; None if they agree."""
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
    """Refuse runs of one task and model that have equal settings but different rows.

    An older version may have split them by other rules, or a hub data set has changed. `splits`
    maps `rows_key` to the hash of the splits that further runs use.
    """
    seen = {key: (digest, "the task has now") for key, digest in (splits or {}).items()}
    for run in runs:
        digest = run.record.get("provenance", {}).get("data_sha256")
        if digest is None:
            continue
        first, where = seen.setdefault(rows_key(run.spec), (digest, run.spec.run_id))
        if digest != first:
            raise InputError(
                f"{run.spec.run_id} was trained on other rows than {where}, although their "
                f"settings are equal (data_sha256 {digest[:12]}… and {first[:12]}…): another "
                "version split them, or the data set has changed since; delete "
                f"{run.folder} and similar runs to train them again, or start again with another "
                "results=FOLDER"
            )


def rows_key(spec: RunSpec) -> str:
    """Return what determines the tokens of a run: its task and the owner of its tokenizer."""
    mapping = without_paths(spec)
    return json.dumps([mapping["task"], mapping["model"]["source"]], sort_keys=True)


def shared_settings(spec: RunSpec) -> dict[str, Any]:
    """Return what runs have to share, by names such as `trainer.epochs`, without local paths."""
    mapping = without_paths(spec)
    parts = {"task": mapping["task"], "model": mapping["model"], "trainer": mapping["train"]}
    return {
        name: value
        for part, record in parts.items()
        for field, value in record.items()
        if (name := f"{part}.{field}") not in _UNSEEN
    }
