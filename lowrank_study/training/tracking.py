"""Where a run's curve goes while it trains: nowhere, a JSON-lines file, or wandb.

>>> with make_tracker("jsonl", spec, folder) as tracker:
...     tracker.log(step=10, metrics={"train_loss": 0.61})
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from lowrank_study.spec import RunSpec, without_paths


class Tracker(Protocol):
    """Takes a run's numbers as they come."""

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class NoTracker:
    """Keeps nothing: the run's record has its metrics anyway."""

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Drop the metrics."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class JsonLinesTracker:
    """Appends one JSON object a step to `curve.jsonl` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "curve.jsonl").open("a", encoding="utf-8")

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics at once, so that a watcher sees them."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class WandbTracker:
    """One wandb run a run; offline wherever no key is set, so that it never waits for a network."""

    def __init__(self, spec: RunSpec, folder: Path, group: str) -> None:
        online = os.environ.get("WANDB_API_KEY") or Path("~/.netrc").expanduser().is_file()
        os.environ.setdefault("WANDB_MODE", "online" if online else "offline")
        if os.environ["WANDB_MODE"] == "offline":  # its exit would wait for the error reporter
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._run = wandb.init(
            project="lowrank_study",
            name=spec.run_id,
            group=group,
            config=without_paths(spec),
            dir=str(folder),
            reinit="create_new",
        )

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics to wandb."""
        self._run.log(dict(metrics), step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)


def make_tracker(name: str, spec: RunSpec, folder: Path, group: str) -> Tracker:
    """Return the tracker of that name, writing below the run's folder."""
    match name:
        case "jsonl":
            return JsonLinesTracker(folder)
        case "wandb":
            return WandbTracker(spec, folder, group)
        case _:
            return NoTracker()
