"""How far a measurement has come: a bar on a terminal, plain lines where there is none.

    with progress_shown() as on_progress:
        measure_spectra(subject, ..., on_progress=on_progress)

A line a matrix on a pipe, such as

    [  3/72] encoder.layer.0.attention.self.query: 90 % energy rank 12 (0:41 left)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lowrank_study.reporting.display import printable
from lowrank_study.study.measurement import OnProgress, Step


@contextmanager
def progress_shown() -> Iterator[OnProgress]:
    """Give a function that shows each step, until the block ends."""
    console = Console(stderr=True)
    started = time.monotonic()
    if not console.is_terminal:
        yield lambda step: print(line_of(step, time.monotonic() - started), flush=True)
        return
    columns = (
        TextColumn("measuring"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as display:
        bar = display.add_task("", total=1.0, state="reading headers")

        def show(step: Step) -> None:
            state = escape(f"{line_of(step, time.monotonic() - started)}")
            display.update(bar, completed=step.share, state=state)

        yield show


def line_of(step: Step, seconds: float) -> str:
    """Write one step, with the time that is left if the rest goes on as fast per work.

    Args:
        step: What was done.
        seconds: Time since the beginning.
    """
    width = len(str(step.total))
    text = f"[{step.done:{width}}/{step.total}] {printable(step.name)}: {step.outcome}"
    if 0.0 < step.share < 1.0:
        text += f" ({_clock(seconds * (1.0 - step.share) / step.share)} left)"
    return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
