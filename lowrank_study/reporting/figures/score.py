"""Test accuracy against adapter rank: the answer of a study in one drawing.

    figure = score_against_rank(data)
    figure.table.frame      # one row a run, with the mean and interval of its configuration

Seeds are points, means filled marks with their intervals, full fine-tuning a line in a band.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lowrank_study.reporting.columns import CONFIGURATION_COLUMNS, LEARNING_RATE, SEED
from lowrank_study.reporting.display import Column, printable
from lowrank_study.reporting.figures.drawing import (
    BAND,
    FAINT,
    INK,
    LOST,
    Entry,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.figures.rank_axis import (
    RankAxis,
    draw_marks,
    offsets,
    series_of,
)
from lowrank_study.reporting.tables import (
    CONFIGURATION,
    SettingData,
    at_several_scalings,
    full_row,
)

DOTTED = (0, (2, 2))

COLUMNS = (
    *CONFIGURATION_COLUMNS,
    LEARNING_RATE,
    SEED,
    Column("status", "status", "text", "what became of the run"),
    Column("test_score", "test accuracy", "share", "this seed’s"),
    Column("mean_test_score", "mean", "share", "over n seeds"),
    Column("test_low_95", "95 % low", "share", "interval of the mean"),
    Column("test_high_95", "95 % high", "share", "interval of mean"),
    Column("n", "n", "count", "done runs"),
)
CAPTION = (
    "Every open mark is one seed; filled marks are means, with the 95 % Student t interval "
    "of the mean over seeds as a whisker.{full} The intervals hold the spread over "
    "seeds, not that of drawing another test set. The vertical axis does not begin at zero; "
    "what leaves it is cut."
)
OF_FULL = " The line is the mean of full fine-tuning."
WITH_BAND = (
    " The line and the band are the mean of full fine-tuning and its interval, made the same way."
)
PREFERRED = " A rank that was run at several α or scalings stands at the one validation prefers."


def score_against_rank(data: SettingData) -> Figure:
    """Draw test accuracy against adapter rank, full fine-tuning as a band, seeds as points."""
    runs = data.runs
    axis, series = RankAxis.of(runs), series_of(runs)
    adapted = {target for _, target in axis.others if target} | {one.target for one in series}
    targets = sorted(adapted) or [""]
    full = full_row(data)
    done = runs[(runs["status"] == "done") & runs["test_score"].notna()]
    low, high = _limits(done["test_score"], full)
    majority = float(done["chance"].mean())
    chosen = data.chosen

    def draw(on: Paper) -> None:
        panels = on.panels(
            len(targets), across=(3, 1), height=(3.7, 2.5), beside=(0.0, 0.8), sharey=True
        )
        for panel, target in zip(panels, targets, strict=True):
            draw_target(panel, target)
        for panel in panels[:: 3 if on.wide else 1]:
            panel.set_ylabel("test accuracy")
        on.legend(legend(), columns=(2, 1))

    def draw_target(panel: Axes, target: str) -> None:
        panel.set_title(printable(target) or "full fine-tuning")
        panel.set_ylim(low, high)
        axis.dress(panel)
        if full is not None:
            if full["n"] > 1:
                panel.axhspan(full["test_low_95"], full["test_high_95"], color=BAND, lw=0, zorder=0)
            panel.axhline(full["mean_test_score"], color=INK, lw=1.1, zorder=1)
        if low < majority < high:
            panel.axhline(majority, color=FAINT, lw=1, ls=DOTTED)
        for method, other in axis.others:
            if method == "full" or other in {"", target}:
                rows = runs[(runs["method"] == method) & (runs["target"] == other)]
                draw_seeds(panel, rows, INK if method == "full" else FAINT, "o", 0.0)
                draw_means(panel, method, other, FAINT, "o", 0.0)
        shown = [one for one in series if one.target == target]
        for position, one in enumerate(shown):
            shift = (position - (len(shown) - 1) / 2) * 0.3
            draw_seeds(panel, one.rows(runs), one.colour, one.marker, shift)
            draw_means(panel, one.method, target, one.colour, one.marker, shift)

    def draw_seeds(panel: Axes, rows: pd.DataFrame, colour: str, marker: str, shift: float) -> None:
        places = axis.places(rows) + shift + offsets(rows["seed"], 0.13)
        lost = (rows["status"] != "done").to_numpy()
        good = rows["test_score"].notna().to_numpy() & ~lost
        values = rows["test_score"].to_numpy()[good]
        draw_marks(
            panel, places[good], values, marker=marker, colour=colour, ms=4.2, mew=0.9, zorder=3
        )
        if lost.any():
            foot = np.full(int(lost.sum()), low + 0.035 * (high - low))
            panel.plot(places[lost], foot, ls="none", marker="x", ms=5.5, color=LOST, mew=1.6)

    def draw_means(
        panel: Axes, method: str, target: str, colour: str, marker: str, shift: float
    ) -> None:
        means = chosen[(chosen["method"] == method) & (chosen["target"] == target)]
        if method == "full" or not len(means):
            return
        places = axis.places(means) + shift
        mean = means["mean_test_score"].to_numpy()
        half = np.nan_to_num(means["test_high_95"].to_numpy() - mean)
        panel.errorbar(places, mean, yerr=half, fmt="none", ecolor=colour, elinewidth=0.9)
        panel.plot(places, mean, color=colour, marker=marker, ms=5, lw=1.6, zorder=2)

    def legend() -> list[Entry]:
        entries: list[Entry] = [one.entry(f"{one.label}: mean") for one in series]
        entries.append(line("one seed", FAINT, marker="o", mfc="none", ms=4.2, ls="none"))
        if full is not None:
            entries.append(line("full fine-tuning: mean", INK, lw=1.1))
            if full["n"] > 1:
                entries.append(Patch(color=BAND, label="full fine-tuning: 95 % interval"))
        if (runs["status"] != "done").any():
            entries.append(line("diverged or failed", LOST, marker="x", mew=1.6, ls="none"))
        if low < majority < high:
            entries.append(line(f"commonest class: {majority:.3f}", FAINT, lw=1, ls=DOTTED))
        elif not math.isnan(majority):
            where = "below" if majority < low else "above"
            entries.append(line(f"(commonest class: {majority:.3f}, {where})", INK, ls="none"))
        return entries

    return draw_figure(
        draw,
        name=f"score_against_rank{data.suffix}",
        title="Accuracy against adapter rank",
        caption=CAPTION.format(full=_of_full(full))
        + (PREFERRED if at_several_scalings(data.accuracy) else ""),
        note="One row a run at its configuration’s chosen learning rate.",
        frame=_numbers(runs, chosen),
        columns=COLUMNS,
    )


def _of_full(full: dict[str, Any] | None) -> str:
    if full is None:
        return ""
    return WITH_BAND if full["n"] > 1 else OF_FULL


def _numbers(runs: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    keys = [*CONFIGURATION, "learning_rate"]
    means = ["n", "mean_test_score", "test_low_95", "test_high_95"]
    table = runs.merge(chosen[[*keys, *means]], on=keys, how="left")
    mine = ["run_id", "seed", "status", "test_score"]
    return table[[*keys, *mine, *means, "chance"]]


def _limits(accuracy: pd.Series, full: dict[str, Any] | None) -> tuple[float, float]:
    """Hold every seed, and the band too unless it is far wider than the seeds."""
    low, high = float(accuracy.min()), float(accuracy.max())
    room = max(high - low, 0.01)
    if full is not None and full["n"] > 1:
        low = max(min(low, full["test_low_95"]), low - room)
        high = min(max(high, full["test_high_95"]), high + room)
    room = max(high - low, 0.01)
    return low - 0.12 * room, high + 0.06 * room
