"""Trackers store a run's learning curve: nowhere, in a JSON-lines file, or in wandb."""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from lowrank_study.spec import RunSpec, without_paths

_ANSWER_SECONDS = 3
_FINISH_SECONDS = 10


class Tracker:
    """Stores the metrics of a run during training; this one stores nothing."""

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Store the metrics of one step."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class JsonLinesTracker(Tracker):
    """Appends one JSON object for each step to `curve.jsonl` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "curve.jsonl").open("a", encoding="utf-8")

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics and flush, so that other processes see them at once."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def __exit__(self, *error: object) -> None:
        self._file.close()


class WandbTracker(Tracker):
    """Stores each run in wandb. No failure of wandb stops training or delays it by much.

    wandb runs online if there is a key for the server and the server answers. Otherwise it writes
    to the run's folder, and a message on standard error gives the reason.
    """

    def __init__(self, spec: RunSpec, folder: Path, group: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        if os.environ.get("WANDB_MODE", "online") == "online" and (why := why_offline()):
            _go_offline(why)
        arguments = {
            "project": "lowrank_study",
            "name": spec.run_id,
            "group": group,
            "config": without_paths(spec),
            "dir": str(folder),
            "reinit": "create_new",
        }
        self._run: Any = None
        while self._run is None:
            try:
                self._run = _started(arguments)
            except Exception as error:  # of any type, such as a refused key or a failing server
                if os.environ.get("WANDB_MODE") == "offline":
                    _warn(f"the curve of {spec.run_id} is lost: {_first_line(error)}")
                    break
                _go_offline(_first_line(error))

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Pass the metrics to wandb."""
        if self._run is None:
            return
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:
            _warn(f"the rest of the curve is lost: {_first_line(error)}")
            self._run = None

    def __exit__(self, *error: object) -> None:
        run, failed = self._run, error[0] is not None

        def finish() -> None:
            try:
                run.finish(exit_code=int(failed))
            except Exception as error:
                _warn(f"wandb could not finish the run: {_first_line(error)}")

        if run is not None and not within(_FINISH_SECONDS, finish):
            _warn("the server is too slow; send the rest of the run later with `wandb sync`")


def why_offline() -> str | None:
    """Return why wandb can't run online: no key, or no answer; None if it can."""
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urlsplit(server).hostname or server
    if not os.environ.get("WANDB_API_KEY") and not _has_netrc_entry(host):
        return f"there is no key for {host} (WANDB_API_KEY, or `wandb login`)"
    failed: list[str] = []

    def ask() -> None:
        try:
            urlopen(server, timeout=_ANSWER_SECONDS).close()
        except HTTPError:  # this is an answer, too
            pass
        except (OSError, ValueError, HTTPException) as error:
            failed.append(f"{server} can't be reached ({getattr(error, 'reason', error)})")

    if not within(_ANSWER_SECONDS, ask):
        return f"{host} does not answer within {_ANSWER_SECONDS} s"
    return failed[0] if failed else None


def _has_netrc_entry(host: str) -> bool:
    file = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return host in netrc(file).hosts
    except (OSError, NetrcParseError):
        return False


def within(seconds: float, call: Callable[[], None]) -> bool:
    """Call a function that may hang, and return whether it finished in time."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _started(arguments: Mapping[str, Any]) -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would delay the process's exit
    import wandb

    settings = wandb.Settings(init_timeout=_FINISH_SECONDS)
    asked = {**arguments, "mode": os.environ.get("WANDB_MODE", "online")}
    return wandb.init(**asked, settings=settings)


def _go_offline(why: str) -> None:
    os.environ["WANDB_MODE"] = "offline"  # also for the other runs of this process
    _warn(f"{why}: curves stay in the runs' folders; send them later with `wandb sync`")


def _warn(message: str) -> None:
    print(f"tracker=wandb: {message}", file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def make_tracker(name: str, spec: RunSpec, folder: Path, group: str) -> Tracker:
    """Return a tracker by its name, `none`, `jsonl` or `wandb`, for a run's folder."""
    match name:
        case "jsonl":
            return JsonLinesTracker(folder)
        case "wandb":
            return WandbTracker(spec, folder, group)
        case _:
            return Tracker()
