"""The live display on terminals of several widths, and the lines of a log."""

import io

import pytest
from rich.console import Console

from lowrank_study.measurement.records import Step
from lowrank_study.reporting.spectra_report.progress import progress_shown
from lowrank_study.sweeps import progress
from lowrank_study.sweeps.progress import Display

NAME = "model.layers.31.self_attn.[red]q_proj"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time in a list, which tests change."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    """Let the display write to a terminal of this width, and return what it writes."""
    written = io.StringIO()

    def terminal(*, stderr: bool) -> Console:
        assert stderr, "standard output is for the result"
        return Console(file=written, force_terminal=True, color_system=None, width=width)

    monkeypatch.setattr(progress, "Console", terminal)
    return written


def drawn(display: Display) -> list[str]:
    console = display._progress.console
    with console.capture() as capture:
        console.print(display._progress.get_renderable())
    return capture.get().splitlines()


def test_a_log_gets_one_line_per_ended_run_with_the_time_left(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    costs = {"full": 1.5, "a": 1.0, "b": 1.0, "old": 1.0}
    with Display() as display:
        stage = display.stage("s", costs, {"old": 1.0})
        stage.show({"old": 1.0, "full": 0.0})
        clock[0] += 60  # 1.0 of the 3.5 that were left
        stage.show({"old": 1.0, "full": 0.2, "a": 0.7})
        stage.show({"old": 1.0, "full": 1 / 3, "a": 1.0})
        clock[0] += 60
        stage.show({"old": 1.0, "full": 1.0, "a": 1.0, "b": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[2/4] a, 1:20 left", "[3/4] full, 0:20 left"]


def test_the_time_left_is_known_before_the_first_run_has_ended(clock: list[float]) -> None:
    stage = Display().stage("s", {"a": 1.0, "b": 1.0}, {})
    assert stage.seconds_left({"a": 0.0}) is None
    clock[0] += 30.0
    assert stage.seconds_left({"a": 0.25, "b": 0.25}) == 90.0


def test_tuning_rounds_share_one_line_and_the_sweep_has_its_own(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    on_terminal(monkeypatch, 80)
    display = Display()
    display.stage("mine_rates", {"a": 1.0}, {}).show({"a": 1.0})
    display.stage("mine_rates", {"a": 1.0, "b": 1.0}, {"a": 1.0}).show({"a": 1.0, "b": 0.5})
    assert "mine_rates: 1 running" in drawn(display)[0]
    display.stage("mine", {"c": 1.0}, {}).show({"c": 0.0})
    rates, mine = drawn(display)
    assert "1/2" in rates
    assert "mine_rates: done" in rates
    assert "0/1" in mine
    assert "mine: 1 running" in mine


@pytest.mark.parametrize("width", [44, 60, 100])
def test_the_bar_keeps_its_place_and_long_names_are_shortened(
    width: int, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    on_terminal(monkeypatch, width)
    display = Display()
    line = display.line("", "reading headers")
    clock[0] += 90
    assert drawn(display)[0].rstrip().endswith("1:30 reading headers")
    lines = []
    for count, name, left in ((" 6/60", NAME, 540.0), ("30/60", "q", 60.0), ("30/60", 9 * NAME, 9)):
        line.show(count=count, share=0.5, state=f"{name}: 90 % energy rank 8", left=left)
        clock[0] += 30
        lines += drawn(display)
        clock[0] -= 30
    for text, count in zip(lines, (" 6/60", "30/60", "30/60"), strict=True):
        assert len(text) <= width
        assert text[16:23] == f" {count} "
    assert "2:00, 8:30 left " in lines[0]
    assert "2:00, 0:30 left q" in lines[1]
    assert "2:00, 0:00 left " in lines[2]  # never negative
    assert lines[2].rstrip().endswith("…")
    if width == 100:
        assert lines[0].rstrip().endswith(f"{NAME}: 90 % energy rank 8")


def test_a_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_terminal(monkeypatch, 80)
    with progress_shown() as on_progress:
        on_progress(Step(done=6, total=60, share=0.1, name=NAME, outcome="90 % energy rank 8"))
    text = written.getvalue()
    assert " 6/60" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is hidden"
    assert text.rstrip("\r").endswith("\x1b[2K"), "the bar is still there"
