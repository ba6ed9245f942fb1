"""The figure of the test score against the adapter rank: seeds, means with intervals, a baseline.

figure = score_against_rank(data)
figure.table.frame      # one row a run, with the mean and interval of its configuration
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lowrank_study.answers.rows import CONFIGURATION
from lowrank_study.answers.scores import at_several_scalings
from lowrank_study.reporting.display import Column, method_label, printable
from lowrank_study.reporting.drawing.figure import (
    DOTTED,
    FAINT,
    INK,
    LOST,
    Entry,
    Figure,
    Paper,
    baseline_entries,
    draw_baseline,
    draw_figure,
    line,
)
from lowrank_study.reporting.drawing.rank_axis import RankAxis, Series, offsets, series_of
from lowrank_study.reporting.setting import SettingData, full_row


def score_against_rank(data: SettingData) -> Figure:
    """Draw the test score against the rank, with full fine-tuning as a line in a band."""
    drawing = _Drawing.of(data)
    score = data.metric.label
    caption = (
        "Open marks are single seeds. Filled marks are means with their 95 % Student t intervals "
        "over seeds."
    )
    if drawing.full is not None:
        several = drawing.full["n"] > 1
        caption += f" The line{' and the band are' if several else ' is'} full fine-tuning’s mean"
        caption += " and interval." if several else "."
    if at_several_scalings(data.scores):
        caption += (
            " A rank that was trained at several values of α or scalings is shown at the one with "
            f"the best validation {score}."
        )
    return draw_figure(
        drawing.draw,
        name=f"score_against_rank{data.suffix}",
        title=f"{score.capitalize()} against adapter rank",
        caption=f"{caption} The vertical axis does not start at zero.",
        note="One row per run at its configuration’s chosen learning rate.",
        frame=_numbers(drawing.runs, drawing.chosen),
        columns=data.columns(
            "method target adapter_rank learning_rate seed status test_score",
            Column("mean_test_score", "mean", "decimal", "over n seeds"),
            "test_low_95 test_high_95",
            Column("n", "n", "count", "done runs"),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panels and the legend share."""

    data: SettingData
    runs: pd.DataFrame
    chosen: pd.DataFrame
    axis: RankAxis
    series: Sequence[Series]
    targets: Sequence[str]
    full: dict[str, Any] | None
    limits: tuple[float, float]
    chance: float

    @classmethod
    def of(cls, data: SettingData) -> "_Drawing":
        runs, full = data.runs, full_row(data)
        axis, series = RankAxis.of(runs), series_of(runs)
        adapted = {target for _, target in axis.others if target} | {one.target for one in series}
        done = runs[(runs["status"] == "done") & runs["test_score"].notna()]
        return cls(
            data=data,
            runs=runs,
            chosen=data.chosen,
            axis=axis,
            series=series,
            targets=sorted(adapted) or [""],
            full=full,
            limits=_limits(done["test_score"], data.chosen),
            chance=float(done["chance"].mean()),
        )

    @property
    def shows_chance(self) -> bool:
        low, high = self.limits
        return low < self.chance < high

    def draw(self, on: Paper) -> None:
        panels = on.panels(
            len(self.targets), across=(3, 1), height=(3.3, 2.5), beside=(0.0, 0.8), sharey=True
        )
        for panel, target in zip(panels, self.targets, strict=True):
            self._draw_target(panel, target)
        for panel in panels[:: 3 if on.wide else 1]:
            panel.set_ylabel(f"test {self.data.metric.axis_label}")
        on.legend(self._legend(), columns=(2, 1))

    def _draw_target(self, panel: Axes, target: str) -> None:
        panel.set_title(printable(target) or method_label("full"))
        panel.set_ylim(*self.limits)
        self.axis.dress(panel)
        if self.full is not None:
            draw_baseline(panel, self.full)
        if self.shows_chance:
            panel.axhline(self.chance, color=FAINT, lw=1, ls=DOTTED)
        for method, other in self.axis.others:
            if method == "full" or other in {"", target}:
                one = Series(method, other, "", INK if method == "full" else FAINT, "o")
                self._draw_seeds(panel, one, 0.0)
                if method != "full":
                    self._draw_means(panel, one, 0.0)
        shown = [one for one in self.series if one.target == target]
        for position, one in enumerate(shown):
            shift = (position - (len(shown) - 1) / 2) * 0.3
            self._draw_seeds(panel, one, shift)
            self._draw_means(panel, one, shift)

    def _draw_seeds(self, panel: Axes, one: Series, shift: float) -> None:
        rows, (low, high) = one.rows(self.runs), self.limits
        places = self.axis.places(rows) + shift + offsets(rows["seed"], 0.13)
        lost = (rows["status"] != "done").to_numpy()
        good = rows["test_score"].notna().to_numpy() & ~lost
        values = rows["test_score"].to_numpy()[good]
        one.draw_runs(panel, places[good], values, ms=4.2, mew=0.9, zorder=3)
        if lost.any():
            foot = np.full(int(lost.sum()), low + 0.035 * (high - low))
            panel.plot(places[lost], foot, ls="none", marker="x", ms=5.5, color=LOST, mew=1.6)

    def _draw_means(self, panel: Axes, one: Series, shift: float) -> None:
        means = one.rows(self.chosen)
        if not len(means):
            return
        places = self.axis.places(means) + shift
        mean = means["mean_test_score"].to_numpy()
        half = np.nan_to_num(means["test_high_95"].to_numpy() - mean)
        panel.errorbar(places, mean, yerr=half, fmt="none", ecolor=one.colour, elinewidth=0.9)
        panel.plot(places, mean, **one.style, ms=5, lw=1.6, zorder=2)

    def _legend(self) -> list[Entry]:
        entries: list[Entry] = [one.entry(f"{one.label}: mean") for one in self.series]
        entries.append(line("one seed", FAINT, marker="o", mfc="none", ms=4.2, ls="none"))
        if self.full is not None:
            entries += baseline_entries(self.full)
        if (self.runs["status"] != "done").any():
            entries.append(line("diverged or failed", LOST, marker="x", mew=1.6, ls="none"))
        level = f"{self.data.metric.baseline}: {self.chance:.3f}"
        if self.shows_chance:
            entries.append(line(level, FAINT, lw=1, ls=DOTTED))
        elif not math.isnan(self.chance):
            where = "below" if self.chance < self.limits[0] else "above"
            entries.append(line(f"({level}, {where} the axis)", INK, ls="none"))
        return entries


def _numbers(runs: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    keys = [*CONFIGURATION, "learning_rate"]
    means = ["n", "mean_test_score", "test_low_95", "test_high_95"]
    table = runs.merge(chosen[[*keys, *means]], on=keys, how="left")
    mine = ["run_id", "seed", "status", "test_score"]
    return table[[*keys, *mine, *means, "chance"]]


def _limits(scores: pd.Series, means: pd.DataFrame) -> tuple[float, float]:
    """Hold every seed, and the intervals unless they are far wider than the seeds' spread."""
    low, high = float(scores.min()), float(scores.max())
    room = max(high - low, 0.01)
    if (means["n"] > 1).any():
        low = max(min(low, float(means["test_low_95"].min())), low - room)
        high = min(max(high, float(means["test_high_95"].max())), high + room)
    room = max(high - low, 0.01)
    return low - 0.12 * room, high + 0.06 * room
