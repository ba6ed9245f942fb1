"""How far a measurement is: a bar on a terminal, one line per matrix in a log.

    with progress_shown() as on_progress:
        measure_spectra(subject, ..., on_progress=on_progress)

A line of a log is, for example,

    [  3/72] encoder.layer.0.attention.self.query: 90 % energy rank 12 (0:41 left)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lowrank_study.measurement.records import OnProgress, Step
from lowrank_study.reporting.display import printable
from lowrank_study.sweeps.progress import Display, clock


@contextmanager
def progress_shown() -> Iterator[OnProgress]:
    """Yield a function that shows each step."""
    started = time.monotonic()
    with Display(transient=True) as display:
        line = display.line("", "reading headers")

        def show(step: Step) -> None:
            seconds = time.monotonic() - started
            if display.is_live:
                state = f"{printable(step.name)}: {step.outcome}"
                left = seconds_left(step, seconds)
                line.show(count=_count(step), share=step.share, state=state, left=left)
            else:
                print(line_of(step, seconds), flush=True)

        yield show


def tell_left_out(sentences: list[str]) -> None:
    """Print the left-out parts above the progress bar."""
    for sentence in sentences:
        print(printable(sentence), flush=True)


def seconds_left(step: Step, seconds: float) -> float | None:
    """Return the time left if the rest is as fast; None at the start and at the end."""
    return seconds * (1.0 - step.share) / step.share if 0.0 < step.share < 1.0 else None


def line_of(step: Step, seconds: float) -> str:
    """Return a line on one step, with the time left."""
    text = f"[{_count(step)}] {printable(step.name)}: {step.outcome}"
    left = seconds_left(step, seconds)
    return text if left is None else f"{text} ({clock(left)} left)"


def _count(step: Step) -> str:
    return f"{step.done:{len(str(step.total))}}/{step.total}"
