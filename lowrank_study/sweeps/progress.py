"""What a sweep looks like while it runs: runs done, running, and the time that is left.

    >>> with SweepProgress("rank_sweep", costs, store.progress(run_ids)) as progress:
    ...     progress.show(store.progress(run_ids))

A bar on a terminal; one line an ended run in a log.
"""

import sys
import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class SweepProgress:
    """Shows the shares of a sweep's runs that are done, as the store gives them.

    Parameters
    ----------
    name
        Of the sweep.
    costs
        Run id → what the run costs in relation to the others, for the time that is left.
    shares
        Run id → share that is done already, in [0, 1].
    """

    def __init__(self, name: str, costs: Mapping[str, float], shares: Mapping[str, float]) -> None:
        self._costs = costs
        self._told = {run_id for run_id, share in shares.items() if share == 1.0}
        self._done_at_start = self._done(shares)
        self._started = time.monotonic()
        self._console = Console(stderr=True)
        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs  {task.fields[state]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._display.add_task(name, total=len(costs), state="starting")

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def show(self, shares: Mapping[str, float]) -> None:
        """Show the shares of the runs that are ended (1.0) or running."""
        ended = [run_id for run_id, share in shares.items() if share == 1.0]
        left = self._time_left(shares)
        running = len(shares) - len(ended)
        state = f"{running} running, {left}" if running else left
        self._display.update(self._bar, completed=len(ended), state=state)
        if not self._console.is_terminal:
            for run_id in set(ended) - self._told:
                print(f"[{len(ended)}/{len(self._costs)}] {run_id}, {left}", file=sys.stderr)
        self._told.update(ended)

    def _time_left(self, shares: Mapping[str, float]) -> str:
        """From the shares of all runs, so there is one before the first run has ended."""
        new = self._done(shares) - self._done_at_start
        if new < 1e-3:
            return "time left is known after the first steps"
        to_do = sum(self._costs.values()) - self._done(shares)
        return f"{clock((time.monotonic() - self._started) * to_do / new)} left"

    def _done(self, shares: Mapping[str, float]) -> float:
        return sum(self._costs[run_id] * share for run_id, share in shares.items())


def clock(seconds: float) -> str:
    """Write a duration as 2:05 (minutes and seconds) or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
