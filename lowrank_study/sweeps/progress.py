"""How far a command is: one live display on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


class Display:
    """The live display of a command: one line per stage, such as a sweep."""

    def __init__(self, *, transient: bool = False) -> None:
        console = Console(stderr=True)
        self.is_live = console.is_terminal
        """Whether standard error is a terminal; if not, the caller prints lines."""
        # Fixed widths come first and names last, so that the bar stays in its place.
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._progress = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.fields[count]}"),
            _Times(),
            TextColumn("{task.fields[state]}", table_column=rest),
            console=console,
            disable=not self.is_live,
            redirect_stdout=sys.stdout.isatty(),
            transient=transient,
            get_time=lambda: time.monotonic(),
            expand=True,
        )
        self._lines: dict[str, Line] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish_lines()
        self._progress.stop()

    def _finish_lines(self) -> None:
        for name, line in self._lines.items():
            line.finish(f"{name}: done")

    def line(self, name: str, state: str = "") -> "Line":
        """Return the line of that name; a new one marks the lines above it as done."""
        if name not in self._lines:
            self._finish_lines()
            self._lines[name] = Line(self._progress, state)
        return self._lines[name]

    def stage(self, name: str, costs: Mapping[str, float], shares: Mapping[str, float]) -> "Stage":
        """Return a stage that consists of runs."""
        return Stage(name, costs, shares, line=self.line(name), is_live=self.is_live)


class Line:
    """One line of a display: bar, count, time, time left, and what is happening."""

    def __init__(self, progress: Progress, state: str) -> None:
        self._progress = progress
        self._task = progress.add_task(
            "", total=1.0, count="", state=escape(state), at=0.0, left=None
        )

    def show(self, *, count: str, share: float, state: str, left: float | None) -> None:
        """Show the share that is done, and the seconds that are left, if known."""
        self._progress.update(
            self._task,
            completed=share,
            count=count,
            state=escape(state),
            at=time.monotonic(),
            left=left,
        )

    def finish(self, state: str) -> None:
        """Stop the clock of the line."""
        self._progress.update(self._task, state=escape(state), left=None)
        self._progress.stop_task(self._task)


class _Times(ProgressColumn):
    """The time since the start, and the time left, which counts down between two updates."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Return the elapsed time, and the time left if it is known."""
        text = clock(task.elapsed or 0.0)
        if (left := task.fields["left"]) is not None:
            text += f", {clock(max(left - (time.monotonic() - task.fields['at']), 0.0))} left"
        return Text(text)


class Stage:
    """Shows how many runs of a stage are done, and the time that is left."""

    def __init__(
        self,
        name: str,
        costs: Mapping[str, float],
        shares: Mapping[str, float],
        *,
        line: Line,
        is_live: bool,
    ) -> None:
        self._name, self._costs, self._line, self._is_live = name, costs, line, is_live
        self._printed = {run_id for run_id, share in shares.items() if share == 1.0}
        self._done_at_start = self._done(shares)
        self._started = time.monotonic()

    def show(self, shares: Mapping[str, float]) -> None:
        """Show the shares of the runs that have ended (1.0) or are running."""
        ended = [run_id for run_id, share in shares.items() if share == 1.0]
        running = len(shares) - len(ended)
        all_ended = len(ended) == len(self._costs)
        doing = "spectra of the last runs" if all_ended else f"{running} running"
        total = len(self._costs)
        left = self.seconds_left(shares)
        self._line.show(
            count=f"{len(ended):{len(str(total))}}/{total}",
            share=self._done(shares) / sum(self._costs.values()),
            state=f"{self._name}: {doing}",
            left=left,
        )
        if not self._is_live:
            time_left = "" if left is None else f", {clock(left)} left"
            for run_id in [run_id for run_id in ended if run_id not in self._printed]:
                print(f"[{len(ended)}/{total}] {run_id}{time_left}", file=sys.stderr)
        self._printed.update(ended)

    def seconds_left(self, shares: Mapping[str, float]) -> float | None:
        """Return the time left, from the shares of all runs; None before the first steps."""
        new = self._done(shares) - self._done_at_start
        if new < 1e-3:
            return None
        to_do = sum(self._costs.values()) - self._done(shares)
        return (time.monotonic() - self._started) * to_do / new

    def _done(self, shares: Mapping[str, float]) -> float:
        return sum(self._costs[run_id] * share for run_id, share in shares.items())


def clock(seconds: float) -> str:
    """Write a duration as 2:05 (minutes and seconds) or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
