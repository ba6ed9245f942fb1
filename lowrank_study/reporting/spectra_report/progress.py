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
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from lowrank_study.measurement.records import OnProgress, Step
from lowrank_study.reporting.display import printable
from lowrank_study.sweeps.progress import clock


@contextmanager
def progress_shown() -> Iterator[OnProgress]:
    """Give a function that shows each step, until the block ends."""
    console = Console(stderr=True)
    started = time.monotonic()
    if not console.is_terminal:
        yield lambda step: print(line_of(step, time.monotonic() - started), flush=True)
        return
    with bar_on(console, started) as bar:

        def show(step: Step) -> None:
            update(bar, step, time.monotonic())

        yield show


def tell_left_out(sentences: list[str]) -> None:
    """Print the left-out parts above the progress bar."""
    for sentence in sentences:
        print(printable(sentence), flush=True)


def bar_on(console: Console, started: float) -> Progress:
    """Give a bar for a terminal, before the first step.

    What keeps its width comes first and names last, cut to what is left of the line: else the
    bar would jump from matrix to matrix.

    Args:
        console: The terminal.
        started: When the measurement began, in seconds of `time.monotonic`.
    """
    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}"),
        _Times(started),
        TextColumn("{task.fields[state]}", table_column=rest),
    )
    bar = Progress(*columns, console=console, transient=True, expand=True)
    bar.add_task("", total=1.0, count="", state="reading headers", step=None)
    return bar


def update(bar: Progress, step: Step, now: float) -> None:
    """Show a step on a bar of `bar_on`."""
    bar.update(
        bar.task_ids[0],
        completed=step.share,
        count=_count(step),
        state=escape(f"{printable(step.name)}: {step.outcome}"),
        step=(now, step),
    )


class _Times(ProgressColumn):
    """Time since the beginning, and what is left of it: counted down until the next step."""

    def __init__(self, started: float) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._started = started

    def render(self, task: Task) -> Text:
        """Write both."""
        now = time.monotonic()
        text = clock(now - self._started)
        if task.fields["step"] is not None:
            at, step = task.fields["step"]
            left = seconds_left(step, at - self._started)
            if left is not None:
                text += f", {clock(max(left - (now - at), 0.0))} left"
        return Text(text)


def seconds_left(step: Step, seconds: float) -> float | None:
    """Give the time that is left if the rest goes on as fast per work; None at either end.

    Args:
        step: What was done.
        seconds: Time it took from the beginning.
    """
    return seconds * (1.0 - step.share) / step.share if 0.0 < step.share < 1.0 else None


def _count(step: Step) -> str:
    return f"{step.done:{len(str(step.total))}}/{step.total}"


def line_of(step: Step, seconds: float) -> str:
    """Write one step, with the time that is left.

    Args:
        step: What was done.
        seconds: Time since the beginning.
    """
    text = f"[{_count(step)}] {printable(step.name)}: {step.outcome}"
    left = seconds_left(step, seconds)
    return text if left is None else f"{text} ({clock(left)} left)"
