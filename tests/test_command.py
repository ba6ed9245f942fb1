"""Each outcome of a command is one line and an exit code; only a defect has a traceback."""

import errno
import os
import signal
import sys
from collections.abc import Callable

import pytest

from lowrank_study.command import reported
from lowrank_study.errors import InputError, Unfinished


def ended(happens: Callable[[], object]) -> int:
    """Return the exit code of a command that raises an exception."""
    with pytest.raises(SystemExit) as exit, reported():
        happens()
    assert isinstance(exit.value.code, int)
    return exit.value.code


def raiser(error: BaseException) -> Callable[[], object]:
    def happens() -> None:
        raise error

    return happens


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("method.rank=0: no"), 2, "error: method.rank=0: no\n"),
        (InputError("a name\nwith a break"), 2, "error: a name\\nwith a break\n"),
        (Unfinished("failed: a: x\n1 of 2"), 1, "failed: a: x\n1 of 2\n"),
        (KeyboardInterrupt(), 130, "interrupted: finished runs are kept; rerun to resume\n"),
        (
            MemoryError(),
            2,
            "error: out of memory: set workers=1 or pack=1 to use less\n",
        ),
        (
            OSError(errno.EROFS, "", "/data/results"),
            2,
            "error: /data/results: the file system is read-only; choose a path on another disk\n",
        ),
    ],
)
def test_errors_give_one_line_and_an_exit_code(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raiser(error)) == code
    assert capsys.readouterr().err == told


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_sigterm_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert ended(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 130
    assert capsys.readouterr().err.startswith("interrupted: ")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_closed_pipe_is_not_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert ended(lambda: print("much", flush=True)) == 1
