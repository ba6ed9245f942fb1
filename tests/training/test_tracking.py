"""The tracker never stops training, and delays it by a few seconds at most."""

import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowrank_study.config.run import compose
from lowrank_study.training import tracking
from lowrank_study.training.tracking import make_tracker, why_offline

KEY = "a" * 40


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up a user without wandb settings; no request leaves the machine."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ERROR_REPORTING", "WANDB_SILENT", "NETRC"):
        monkeypatch.setenv(name, "")  # so that the test can't leave it set
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Return the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_without_a_key_for_the_server_it_is_offline(tmp_path: Path) -> None:
    assert "no key for 127.0.0.1" in str(why_offline())
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine github.com login me password {KEY}\n")
    netrc.chmod(0o600)
    assert "no key for 127.0.0.1" in str(why_offline())
    netrc.write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    assert "can't be reached" in str(why_offline())


def test_a_closed_port_is_offline_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.monotonic()
    assert "can't be reached" in str(why_offline())
    assert time.monotonic() - started < tracking._ANSWER_SECONDS


def test_a_silent_server_is_offline_within_seconds(
    silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setattr(tracking, "_ANSWER_SECONDS", 0.2)
    assert why_offline() is not None


class FakeRun:
    """A wandb run that fails at every use."""

    def log(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("the service is gone")

    def finish(self, **_: Any) -> None:
        time.sleep(5.0)


def fake_wandb(fails: set[str]) -> tuple[types.ModuleType, list[str]]:
    """Return a stand-in for wandb that fails in some modes, and the modes that were tried."""
    modes: list[str] = []
    module = types.ModuleType("wandb")

    def init(**arguments: Any) -> FakeRun:
        modes.append(arguments["mode"])
        if arguments["mode"] in fails:
            raise RuntimeError("401\nbad key")
        return FakeRun()

    module.init = init  # type: ignore[attr-defined]
    module.Settings = lambda **_: None  # type: ignore[attr-defined]
    return module, modes


@pytest.mark.parametrize(
    ("fails", "modes"),
    [
        (set(), ["online"]),
        ({"online"}, ["online", "offline"]),
        ({"online", "offline"}, ["online", "offline"]),
    ],
)
def test_training_continues_when_wandb_fails(
    fails: set[str],
    modes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, started = fake_wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracking, "why_offline", lambda: None)
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 0.1)
    with make_tracker("wandb", compose(), tmp_path, "sweep") as tracker:
        tracker.log(step=1, metrics={"train_loss": 0.5})
        tracker.log(step=2, metrics={"train_loss": 0.4})
    assert started == modes
    told = capsys.readouterr().err
    assert told.count("is lost") == 1
    assert "Traceback" not in told


def test_a_server_that_hangs_at_the_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _ = fake_wandb(set())
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracking, "why_offline", lambda: None)
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 0.1)
    started = time.monotonic()
    with make_tracker("wandb", compose(), tmp_path, "sweep"):
        pass
    assert time.monotonic() - started < 4.0
    assert "wandb sync" in capsys.readouterr().err
