"""Time functions in interleaved rounds, and write ratios as a table and a JSON file.

    times = interleaved({"ours": ours, "numpy": theirs}, rounds=3, warm_up=small_ones)
    figure = ratio("exact spectrum, against numpy", times["numpy"], times["ours"], at_least=5.0)
    write_results(Path("benchmarks/results"), "spectra", {"exact": [figure]}, provenance=facts())

A machine is rarely idle and its clock changes, so seconds taken minutes apart can't be compared.
Every round therefore runs all contestants one after the other, and a ratio compares two times of
one round. The result is the median ratio over the rounds, with the smallest and the largest.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info  # type: ignore[import-untyped, unused-ignore]

from lowrank_study.provenance import provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number beside its target."""

    what: str
    """What was measured."""
    value: float
    """The number, or the median of several rounds."""
    lowest: float
    """Smallest of the rounds."""
    highest: float
    """Largest of the rounds."""
    unit: str
    """"×" for a ratio, "s", "σ₁", ..."""
    at_least: float | None
    """The lowest value that meets the target, or None."""
    at_most: float | None
    """The highest value that meets the target, or None. Without either there is no target."""

    @property
    def verdict(self) -> str:
        """Return "met" or "missed", or an empty text if there is no target."""
        if self.at_least is not None:
            return "met" if self.value >= self.at_least else "missed"
        if self.at_most is not None:
            return "met" if self.value <= self.at_most else "missed"
        return ""


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: Callable[[], object],
    shortest: float = 0.0,
) -> dict[str, list[float]]:
    """Time functions in turn, round after round.

    Args:
        contestants: Name to the function that is timed; its result is dropped.
        rounds: How often each is run.
        warm_up: Run once before, untimed: the same calls on small inputs, so that libraries are
            loaded, threads started and code compiled.
        shortest: Least seconds of a contestant in each round. A shorter call is repeated until
            they have passed, and its time is the mean of these calls.

    Returns:
        Name to the seconds of each round.
    """
    warm_up()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            gc.collect()
            calls, start, passed = 0, time.perf_counter(), 0.0
            while calls == 0 or passed < shortest:
                run()
                calls, passed = calls + 1, time.perf_counter() - start
            seconds[name].append(passed / calls)
            print(
                f"round {number + 1} of {rounds}, {name}: {seconds[name][-1]:.3g} s",
                file=sys.stderr,
            )
    return seconds


def figure(
    what: str,
    values: Sequence[float],
    *,
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Return the median of some rounds' numbers, with their spread and the target."""
    return Figure(
        what=what,
        value=statistics.median(values),
        lowest=min(values),
        highest=max(values),
        unit=unit,
        at_least=at_least,
        at_most=at_most,
    )


def ratio(
    what: str,
    slower: Sequence[float],
    faster: Sequence[float],
    *,
    at_least: float | None = None,
) -> Figure:
    """Return how many times faster the second is, round by round; see `figure`."""
    each = [slow / fast for slow, fast in zip(slower, faster, strict=True)]
    return figure(what, each, unit="×", at_least=at_least)


def facts(**more: str) -> dict[str, str]:
    """Return the provenance of figures: versions, commit, processor, threads, load.

    Args:
        more: Further facts, such as the dtype.
    """
    libraries = {
        f"{pool.get('internal_api')} {pool.get('version') or ''}".strip(): pool["num_threads"]
        for pool in threadpool_info()
    }
    return provenance() | {
        "threads": ", ".join(f"{name}: {threads}" for name, threads in sorted(libraries.items())),
        # A load well above 0 before the first round comes from other processes.
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **more,
    }


def table(cases: Mapping[str, Sequence[Figure]]) -> list[tuple[str, str, str, str, str]]:
    """Return one row per figure for people: what, median, spread, target, verdict."""
    rows = []
    for figures in cases.values():
        for each in figures:
            spread = f"{_number(each.lowest)} – {_number(each.highest)}"
            target = ""
            if each.at_least is not None:
                target = f"≥ {_number(each.at_least)} {each.unit}"
            elif each.at_most is not None:
                target = f"≤ {_number(each.at_most)} {each.unit}"
            median = f"{_number(each.value)} {each.unit}"
            alone = each.lowest == each.highest
            rows.append((each.what, median, "" if alone else spread, target, each.verdict))
    return rows


HEADINGS = ("measured", "median", "range over rounds", "target", "")


def write_results(
    folder: Path,
    name: str,
    cases: Mapping[str, Sequence[Figure]],
    *,
    provenance: Mapping[str, str],
    failed: Mapping[str, str] = {},
) -> None:
    """Write `<name>.json` and `<name>.md`, and keep cases that did not run now.

    Args:
        folder: It is made if it is missing.
        name: Of the benchmark.
        cases: Case to figures.
        provenance: Of these figures, as `facts` gives it.
        failed: Case to the reason why it has no figures; an empty reason counts for nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for case, figures in cases.items():
        content[case] = {
            "figures": [asdict(each) | {"verdict": each.verdict} for each in figures],
            "provenance": dict(provenance),
        }
        if failed.get(case):
            content[case]["failed"] = failed[case]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (folder / f"{name}.md").write_text(_markdown(content))


def _markdown(content: Mapping[str, Any]) -> str:
    """Return all cases as Markdown, grouped by run, with the provenance below each group."""
    runs: dict[str, list[str]] = {}
    for case, found in content.items():
        runs.setdefault(json.dumps(found["provenance"]), []).append(case)
    lines: list[str] = []
    for run, names in runs.items():
        cases = {
            case: [
                Figure(**{key: value for key, value in each.items() if key != "verdict"})
                for each in content[case]["figures"]
            ]
            for case in names
        }
        lines += ["| " + " | ".join(HEADINGS) + " |", "| --- | ---: | ---: | ---: | --- |"]
        lines += ["| " + " | ".join(row) + " |" for row in table(cases)]
        failed = [
            f"- {case} failed: {content[case]['failed']}"
            for case in names
            if "failed" in content[case]
        ]
        lines += ["", *failed, *([""] if failed else [])]
        lines += ["; ".join(f"{key} {value}" for key, value in json.loads(run).items()), ""]
    return "\n".join(lines)


def _number(value: float) -> str:
    """Return three significant digits, without an exponent if possible."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
