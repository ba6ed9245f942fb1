"""Learning rates: how validation accuracy depends on them, and the best one against rank.

    figure = rate_curves(data)      # None where no rate was chosen

One panel a series (a target, and a rule for α where there are several) with a curve a rank, and one
panel with the best rate of each rank, full fine-tuning's as a line.
"""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lowrank_study.reporting.columns import CONFIGURATION_COLUMNS, LEARNING_RATE
from lowrank_study.reporting.display import Column, printable, written
from lowrank_study.reporting.figures.drawing import INK, Entry, Figure, Paper, draw_figure, line
from lowrank_study.reporting.figures.rank_axis import MARKERS, RankAxis, series_colour
from lowrank_study.reporting.svg import LIGHT
from lowrank_study.reporting.tables import SettingData

COLUMNS = (
    *CONFIGURATION_COLUMNS,
    Column("rule", "scaling", "text", "α, and the factor before B·A"),
    LEARNING_RATE,
    Column("validation_score", "validation accuracy", "share", "mean of the choosing runs"),
    Column("runs", "runs", "count", "choosing runs: more for the two best rates"),
    Column("lost", "lost", "count", "of them not done"),
    Column("behind", "behind", "share", "the chosen rate, over the seeds of both"),
    Column("behind_low_95", "95 % low", "share", "of that"),
    Column("behind_high_95", "95 % high", "share", "of that"),
    Column("chosen", "chosen", "text", "the best on validation"),
)
CAPTION = (
    "Accuracy on the validation split of the runs that choose the rate, a curve a rank (light: low "
    "ranks); the ring is the chosen rate. These runs have seeds of their own, more of them at the "
    "two best rates, and never read the test split. Last, the chosen rate against rank; a line "
    "without marks is that of full fine-tuning. Rates were tried at the marks only, so a best rate "
    "is known to a step of the grid."
)


def rate_curves(data: SettingData) -> Figure | None:
    """Draw validation accuracy against rate for each rank, and the chosen rates against rank."""
    rates = data.rates
    ranked = rates[rates["adapter_rank"].notna()]
    if not len(ranked):
        return None
    series = sorted(set(zip(ranked["target"], ranked["rule"], strict=True)))
    several = len({rule for _, rule in series}) > 1
    ranks = sorted({int(rank) for rank in ranked["adapter_rank"]})
    full = rates[rates["method"] == "full"].sort_values("learning_rate")

    def rows_of(target: str, rule: str) -> pd.DataFrame:
        return ranked[(ranked["target"] == target) & (ranked["rule"] == rule)]

    def named(target: str, rule: str) -> str:
        return printable(f"{target}, {rule}" if several else target)

    def shade(rank: int) -> str:
        return LIGHT[f"depth-{round(8 * ranks.index(rank) / max(1, len(ranks) - 1))}"]

    def draw(on: Paper) -> None:
        panels = on.panels(len(series) + 1, across=(3, 1), height=(2.5, 2.3), beside=(0.5, 0.9))
        for panel, one in zip(panels, series, strict=False):
            draw_curves(panel, *one)
        for panel in panels[:-1]:
            panel.set_ylim(*_limits(rates))
        draw_best(panels[-1])
        on.legend(legend(), columns=(5, 2))

    def draw_curves(panel: Axes, target: str, rule: str) -> None:
        panel.set_title(named(target, rule))
        _rate_axis(panel, rates["learning_rate"])
        if len(full):
            panel.plot(full["learning_rate"], full["validation_score"], color=INK, lw=1.1)
        for rank in ranks:
            curve = rows_of(target, rule)
            curve = curve[curve["adapter_rank"] == rank].sort_values("learning_rate")
            panel.plot(
                curve["learning_rate"],
                curve["validation_score"],
                color=shade(rank),
                marker=".",
                ms=5,
                lw=1.2,
            )
        for rows in (rows_of(target, rule), full):
            best = rows[rows["chosen"]]
            panel.plot(
                best["learning_rate"],
                best["validation_score"],
                ls="none",
                marker="o",
                mfc="none",
                mec=INK,
                ms=6,
            )

    def draw_best(panel: Axes) -> None:
        panel.set_title("chosen rate")
        axis = RankAxis(ranks, [])
        axis.dress(panel)
        panel.set_yscale("log")
        _plain_ticks(panel.yaxis, sorted(set(rates.loc[rates["chosen"], "learning_rate"])))
        for index, (target, rule) in enumerate(series):
            best = rows_of(target, rule)
            best = best[best["chosen"]].sort_values("adapter_rank")
            places = axis.places(best) + 0.1 * (index - (len(series) - 1) / 2)
            panel.plot(
                places,
                best["learning_rate"],
                color=series_colour(index),
                marker=MARKERS[index % 6],
                ms=4.5,
            )
        for rate in full.loc[full["chosen"], "learning_rate"]:
            panel.axhline(rate, color=INK, lw=1.1)

    def legend() -> list[Entry]:
        shown = ranks if len(ranks) < 5 else [ranks[0], ranks[len(ranks) // 2], ranks[-1]]
        entries: list[Entry] = [line(f"rank {rank}", shade(rank), marker=".") for rank in shown]
        if len(full):
            entries.append(line("full fine-tuning", INK, lw=1.1))
        return entries + [
            line(named(*one), series_colour(index), marker=MARKERS[index % 6], ms=4.5)
            for index, one in enumerate(series)
        ]

    return draw_figure(
        draw,
        name=f"rate_curves{data.suffix}",
        title="Learning rates, chosen on validation",
        caption=CAPTION,
        note="One row a configuration and rate that was tried.",
        frame=rates,
        columns=COLUMNS,
    )


def _rate_axis(panel: Axes, rates: pd.Series) -> None:
    panel.set_xscale("log")
    panel.set_xlabel("learning rate")
    powers = range(math.floor(math.log10(rates.min())), math.ceil(math.log10(rates.max())) + 1)
    _plain_ticks(panel.xaxis, [10.0**power for power in powers])
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))


def _plain_ticks(axis: Axis, rates: Sequence[float]) -> None:
    """Rates written out as far as that is shorter."""
    axis.set_major_locator(FixedLocator(rates))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value, "rate")))
    axis.set_minor_locator(NullLocator())


def _limits(rates: pd.DataFrame) -> tuple[float, float]:
    """What is far below the best rates may leave the panel."""
    best = rates["validation_score"].max()
    low = max(rates["validation_score"].min(), best - 0.25)
    room = max(best - low, 0.02)
    return low - 0.08 * room, best + 0.08 * room
