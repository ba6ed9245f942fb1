"""How learning rates were chosen on validation, and how the best rate depends on the rank.

One panel per target (and rule for α where there are several) has a curve per rank; the last panel
shows the best rate of each rank, with full fine-tuning's as a line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lowrank_study.answers.learning_rates import best_rates
from lowrank_study.answers.rows import CONFIGURATION, groups, records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    counted,
    enumeration,
    printable,
    span,
    written,
)
from lowrank_study.reporting.drawing.figure import INK, Entry, Figure, Paper, draw_figure, line
from lowrank_study.reporting.drawing.rank_axis import RankAxis, series_style
from lowrank_study.reporting.drawing.svg import LIGHT
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData


def section(data: SettingData) -> Section | None:
    """Show which rates were chosen; nothing if the sweep chose none."""
    if not len(data.rates):
        return None
    ranked = data.rates["adapter_rank"].notna().any()
    return Section(
        name=f"rates{data.suffix}",
        title="Which learning rates are best?",
        figures=[_figure(data)] if ranked else [],
        findings=[_finding(data)],
        reading=[
            "The runs that choose a rate have their own seeds. "
            + (
                "They were raced: a run that fell behind was stopped and has no score here, and "
                "ranks of one target share their runs."
                if data.rates["stopped"].any()
                else "The two best rates are run with more seeds."
            ),
            "Only the marked rates were tried, so the best rate is known only to one step of the "
            "grid. A search continues until its best rate has neighbours on both sides, or until "
            "it reaches its limit.",
        ],
        tables=[_table(data)],
    )


def _table(data: SettingData) -> Table:
    return Table(
        name=f"best_rates{data.suffix}",
        title="Learning rates chosen on validation",
        note="One row per configuration. Ratios are to full fine-tuning’s rate.",
        frame=best_rates(data.rates),
        columns=data.columns(
            "method target adapter_rank rule learning_rate",
            Column("ratio_to_full", "of full’s", "ratio", "rate over full fine-tuning’s"),
            "validation_score",
            Column("rates_tried", "tried", "count", "rates tried"),
            Column("lowest_tried", "from", "rate", "lowest rate tried"),
            Column("highest_tried", "to", "rate", "highest rate tried"),
            Column("inside", "inside", "text", "whether rates on both sides were tried"),
        ),
    )


# ---------------------------------------------------------------- in words


def _finding(data: SettingData) -> Finding:
    best = best_rates(data.rates)
    parts = []
    for key, rows in groups(best[best["adapter_rank"].notna()], ["method", "target", "rule"]):
        lowest, highest = rows["learning_rate"].min(), rows["learning_rate"].max()
        tried = span(written(lowest, "rate"), written(highest, "rate"))
        ratio = rows["ratio_to_full"].median()
        times = f", median {written(ratio, 'ratio')} full fine-tuning’s" if ratio == ratio else ""
        parts.append(
            f"{tried} for {adapter_name(key['method'], key['target'])} ({key['rule']}{times})"
        )
    text = (
        "Each configuration’s learning rate was chosen on validation, by runs that never read the "
        "test split."
    )
    if parts:
        text += f" Over all ranks, the chosen rate is {enumeration(parts)}."
    full = best.loc[best["method"] == "full", "learning_rate"]
    if len(full):
        text += f" Full fine-tuning’s rate is {written(full.iloc[0], 'rate')}."
    compared, tied = next_best(data.rates)
    if compared:
        text += (
            f" In {tied} of {counted(compared, 'case')} the chosen rate is not clearly better than "
            f"the next best one (the paired 95{NARROW_SPACE}% t interval over seeds contains 0). "
            "Other seeds might choose the next best rate there."
        )
    at_end = best[~best["inside"].astype(bool)]
    ends = len(at_end.drop_duplicates([*CONFIGURATION, "learning_rate", "validation_loss"]))
    if ends:
        text += f" In {counted(ends, 'case')} the chosen rate is at an end of the grid."
    return Finding(topic="Learning rates", text=text)


def next_best(rates: pd.DataFrame) -> tuple[int, int]:
    """Count the cases whose two best rates can be compared, and those that are tied.

    A configuration that follows two rules of α has two rows and counts once.
    """
    nearest = {}
    known = rates[rates["behind_low_95"].notna()]
    for key, rows in groups(known, [*CONFIGURATION, "rule"]):
        row = min(records(rows), key=lambda row: row["behind"])
        tried = tuple(zip(rows["learning_rate"], rows["behind"], strict=True))
        nearest[*(key[name] for name in CONFIGURATION), tried] = row["behind_low_95"]
    return len(nearest), sum(low <= 0.0 for low in nearest.values())


# ---------------------------------------------------------------- drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panels and the legend share."""

    label: str
    rates: pd.DataFrame
    ranked: pd.DataFrame
    full: pd.DataFrame
    series: Sequence[tuple[str, str]]
    """targets with their rule for α"""
    ranks: Sequence[int]

    def draw(self, on: Paper) -> None:
        panels = on.panels(
            len(self.series) + 1, across=(3, 1), height=(2.5, 2.3), beside=(0.5, 0.9)
        )
        for panel, one in zip(panels, self.series, strict=False):
            self._draw_curves(panel, *one)
        for panel in panels[:-1]:
            panel.set_ylim(*_limits(self.rates["validation_score"]))
        for panel in panels[: -1 : 3 if on.wide else 1]:
            panel.set_ylabel(f"validation {self.label}")
        self._draw_best(panels[-1])
        on.legend(self._legend(), columns=(5, 2))

    def _rows(self, target: str, rule: str) -> pd.DataFrame:
        return self.ranked[(self.ranked["target"] == target) & (self.ranked["rule"] == rule)]

    def _name(self, target: str, rule: str) -> str:
        several = len({rule for _, rule in self.series}) > 1
        return printable(f"{target}, {rule}" if several else target)

    def _shade(self, rank: int) -> str:
        return LIGHT[f"depth-{round(8 * self.ranks.index(rank) / max(1, len(self.ranks) - 1))}"]

    def _draw_curves(self, panel: Axes, target: str, rule: str) -> None:
        panel.set_title(self._name(target, rule))
        _rate_axis(panel, self.rates["learning_rate"])
        mine = self._rows(target, rule)
        if len(self.full):
            panel.plot(self.full["learning_rate"], self.full["validation_score"], color=INK, lw=1.1)
        for rank in self.ranks:
            curve = mine[mine["adapter_rank"] == rank].sort_values("learning_rate")
            panel.plot(
                curve["learning_rate"],
                curve["validation_score"],
                color=self._shade(rank),
                marker=".",
                ms=5,
                lw=1.2,
            )
        ring: dict[str, Any] = {"ls": "none", "marker": "o", "mfc": "none", "mec": INK, "ms": 6}
        for rows in (mine, self.full):
            best = rows[rows["chosen"]]
            panel.plot(best["learning_rate"], best["validation_score"], **ring)

    def _draw_best(self, panel: Axes) -> None:
        panel.set_title("chosen rate")
        axis = RankAxis([*self.ranks], [])
        axis.dress(panel)
        panel.set_yscale("log")
        chosen = self.rates.loc[self.rates["chosen"], "learning_rate"]
        _plain_ticks(panel.yaxis, sorted(set(chosen)))
        for index, one in enumerate(self.series):
            best = self._rows(*one)
            best = best[best["chosen"]].sort_values("adapter_rank")
            places = axis.places(best) + 0.1 * (index - (len(self.series) - 1) / 2)
            panel.plot(places, best["learning_rate"], ms=4.5, **series_style(index))
        for rate in self.full.loc[self.full["chosen"], "learning_rate"]:
            panel.axhline(rate, color=INK, lw=1.1)

    def _legend(self) -> list[Entry]:
        ranks = self.ranks
        shown = ranks if len(ranks) < 5 else [ranks[0], ranks[len(ranks) // 2], ranks[-1]]
        entries: list[Entry] = [
            line(f"rank {rank}", self._shade(rank), marker=".") for rank in shown
        ]
        if len(self.full):
            entries.append(line("full fine-tuning", INK, lw=1.1))
        return entries + [
            line(self._name(*one), ms=4.5, **series_style(index))
            for index, one in enumerate(self.series)
        ]


def _figure(data: SettingData) -> Figure:
    rates = data.rates
    ranked = rates[rates["adapter_rank"].notna()]
    drawing = _Drawing(
        label=data.metric.axis_label,
        rates=rates,
        ranked=ranked,
        full=rates[rates["method"] == "full"].sort_values("learning_rate"),
        series=sorted(set(zip(ranked["target"], ranked["rule"], strict=True))),
        ranks=sorted({int(rank) for rank in ranked["adapter_rank"]}),
    )
    return draw_figure(
        drawing.draw,
        name=f"rate_curves{data.suffix}",
        title="Learning rates, chosen on validation",
        caption=(
            f"Validation {data.metric.label} of the runs that choose the rate, one curve per rank; "
            "rings mark the chosen rates. The last panel shows the chosen rate against the rank; "
            "the line without marks is full fine-tuning’s."
        ),
        note="One row per configuration and rate that was tried.",
        frame=rates,
        columns=data.columns(
            "method target adapter_rank rule learning_rate validation_score",
            Column("runs", "runs", "count", "runs at this rate: more for the two best rates"),
            Column("lost", "lost", "count", "runs that are not done"),
            Column("stopped", "stopped", "count", "of these, runs that a race stopped"),
            Column("behind", "behind", "decimal", "worse than the chosen rate, over shared seeds"),
            Column("behind_low_95", "95 % low", "decimal", "95 % interval of that, lower end"),
            Column("behind_high_95", "95 % high", "decimal", "95 % interval of that, upper end"),
            Column("chosen", "chosen", "text", "the best on validation"),
        ),
    )


def _rate_axis(panel: Axes, rates: "pd.Series[float]") -> None:
    panel.set_xscale("log")
    panel.set_xlabel("learning rate")
    powers = range(math.floor(math.log10(rates.min())), math.ceil(math.log10(rates.max())) + 1)
    _plain_ticks(panel.xaxis, [10.0**power for power in powers])
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))


def _plain_ticks(axis: Axis, rates: Sequence[float]) -> None:
    """Write rates without exponents where that is shorter."""
    axis.set_major_locator(FixedLocator(rates))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value, "rate")))
    axis.set_minor_locator(NullLocator())


def _limits(scores: "pd.Series[float]") -> tuple[float, float]:
    """Return the panel's limits; scores far below the best may lie outside."""
    best = scores.max()
    low = max(scores.min(), best - 0.25)
    room = max(best - low, 0.02)
    return low - 0.08 * room, best + 0.08 * room
