"""The bar of a measurement, drawn on terminals of several widths."""

import io
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from lowrank_study.measurement.records import Step
from lowrank_study.reporting.spectra_report import progress
from lowrank_study.reporting.spectra_report.progress import bar_on, progress_shown, update

NAME = "model.layers.31.self_attn.[red]q_proj"


def step(done: int, name: str = NAME) -> Step:
    return Step(done=done, total=60, share=done / 60, name=name, outcome="90 % energy rank 8")


def drawn(bar: Progress) -> str:
    with bar.console.capture() as capture:
        bar.console.print(bar.get_renderable())
    (line,) = capture.get().splitlines()
    return line


@pytest.mark.parametrize("width", [44, 60, 100])
def test_the_bar_keeps_its_place_and_names_are_cut(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    now = time.monotonic()
    bar = bar_on(console, now - 90)
    assert drawn(bar).rstrip().endswith("1:30 reading headers")
    lines = []
    for each in (step(6), step(30, "q"), step(30, 20 * NAME)):
        update(bar, each, now - 30)
        lines.append(drawn(bar))
    for line, count in zip(lines, (" 6/60", "30/60", "30/60"), strict=True):
        assert len(line) <= width
        assert line[16:23] == f" {count} "
    # A minute for 6 of 60 leaves nine, of which half a minute has gone by since.
    assert "1:30, 8:30 left " in lines[0]
    assert "1:30, 0:30 left q" in lines[1]
    assert lines[2].rstrip().endswith("…")
    if width == 100:
        assert lines[0].rstrip().endswith(f"{NAME}: 90 % energy rank 8")


def test_time_that_is_over_is_not_negative_and_the_last_step_leaves_none() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    now = time.monotonic()
    bar = bar_on(console, now - 100)
    update(bar, step(59), now - 40)
    assert "1:40, 0:00 left" in drawn(bar)
    update(bar, step(60, "SHA-256"), now)
    assert "60/60 1:40 SHA-256: 90" in drawn(bar)


def test_a_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()

    def terminal(*, stderr: bool) -> Console:
        assert stderr, "standard output is for the result"
        return Console(file=written, force_terminal=True, color_system=None, width=80)

    monkeypatch.setattr(progress, "Console", terminal)
    with progress_shown() as on_progress:
        on_progress(step(6))
    text = written.getvalue()
    assert "6/60" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is hidden"
    assert text.rstrip("\r").endswith("\x1b[2K"), "the bar is still there"
