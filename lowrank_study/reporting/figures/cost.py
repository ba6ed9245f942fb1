"""What it costs: parameters, checkpoint size, time and memory against adapter rank.

    figure = cost_by_method(data)
    figure.table.frame      # one row a done run, times and memory also as ratios to full

Times and memory are ratios to full fine-tuning where there is one.
"""

import math
from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lowrank_study.reporting.columns import CONFIGURATION_COLUMNS, SEED, TRAINABLE
from lowrank_study.reporting.display import Column
from lowrank_study.reporting.figures.drawing import (
    FAINT,
    INK,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.figures.rank_axis import RankAxis, draw_marks, offsets, series_of
from lowrank_study.reporting.tables import CONFIGURATION, SettingData

MEASURES = (
    ("trainable_parameters", "trainable parameters", False),
    ("checkpoint_bytes", "checkpoint size", False),
    ("train_seconds", "training time", True),
    ("peak_memory_bytes", "peak memory", True),
)
"""Column, title, and whether it is drawn as a ratio to full fine-tuning."""

COLUMNS = (
    *CONFIGURATION_COLUMNS,
    SEED,
    TRAINABLE,
    Column("checkpoint_bytes", "checkpoint", "bytes", "on disk"),
    Column("train_seconds", "time", "seconds", "training"),
    Column("train_seconds_ratio", "of full", "ratio", "time ratio"),
    Column("peak_memory_bytes", "memory", "bytes", "peak memory"),
    Column("peak_memory_bytes_ratio", "of full", "ratio", "memory ratio"),
)


def cost_by_method(data: SettingData) -> Figure:
    """Draw parameters, checkpoint size, time and memory against rank, with full fine-tuning."""
    runs = data.runs
    runs = runs[runs["status"] == "done"]
    axis, series = RankAxis.of(runs), series_of(runs)
    has_full = bool((runs["method"] == "full").any())
    table = _numbers(runs)

    def draw(on: Paper) -> None:
        panels = on.panels(4, across=(2, 1), height=(2.3, 1.95), beside=(0.35, 0.35))
        lowest = panels[2:] if on.wide else panels[3:]
        for panel, (name, title, is_ratio) in zip(panels, MEASURES, strict=True):
            as_ratio = is_ratio and has_full
            panel.set_title(f"{title} (full = 1)" if as_ratio else title)
            axis.dress(panel, label=panel in lowest)
            draw_cost(panel, f"{name}_ratio" if as_ratio else name, as_ratio=as_ratio)
        entries = [one.entry(f"{one.label} (median; every run a mark)", size=4) for one in series]
        if has_full:
            entries.append(line("full fine-tuning", INK, marker="o", ms=4))
        on.legend(entries, columns=(3, 1))

    def draw_cost(panel: Axes, column: str, *, as_ratio: bool) -> None:
        known = table[column].dropna()
        if not len(known):
            panel.text(
                0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=FAINT
            )
            panel.set_yticks([])
            return
        if as_ratio:
            panel.axhline(1.0, color=INK, lw=0.9)
        for method, target in axis.others:
            rows = table[(table["method"] == method) & (table["target"] == target)]
            draw_runs(panel, rows, column, INK, "o")
        for position, one in enumerate(series, start=len(axis.others)):
            rows = one.rows(table)
            draw_runs(panel, rows, column, one.colour, one.marker)
            middle = rows.groupby("adapter_rank")[column].median()
            octaves = [math.log2(int(str(rank))) for rank in middle.index]
            panel.plot(
                octaves, middle.to_numpy(), color=one.colour, lw=1.4, zorder=1 + position / 9
            )
        if not as_ratio and float(known.min()) > 0 and known.max() / known.min() > 20:
            panel.set_yscale("log")
            panel.yaxis.set_minor_locator(NullLocator())
        else:
            panel.set_ylim(0, 1.12 * float(known.max()))
            panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_formatter(FuncFormatter(_format(column)))

    def draw_runs(panel: Axes, rows: pd.DataFrame, column: str, colour: str, marker: str) -> None:
        places = axis.places(rows) + offsets(rows["seed"], 0.1)
        draw_marks(panel, places, rows[column], marker=marker, colour=colour, ms=3.6, mew=0.8)

    return draw_figure(
        draw,
        name=f"cost_by_method{data.suffix}",
        title="Parameters, checkpoint size, time and memory",
        caption=(
            "Every run is a mark; lines join medians over seeds. Times and memory are those the "
            "runs recorded on the machine named under provenance, "
            + (
                "as ratios to the median of full fine-tuning in this study; they say nothing of "
                "other machines."
                if has_full
                else "in absolute units, because this study has no full fine-tuning."
            )
        ),
        note="One row a done run at its configuration’s chosen learning rate.",
        frame=table,
        columns=COLUMNS,
    )


def _numbers(runs: pd.DataFrame) -> pd.DataFrame:
    table = runs[[*CONFIGURATION, "learning_rate", "run_id", "seed"]].copy()
    for name, _, is_ratio in MEASURES:
        table[name] = runs[name].astype("Float64").astype(float)
        if is_ratio:
            base = float(table.loc[runs["method"] == "full", name].median())  # NaN without a run
            table[f"{name}_ratio"] = table[name] / base if base else math.nan
    return table


def _format(column: str) -> Callable[[float, int | None], str]:
    if column.endswith("ratio"):
        return lambda value, _: f"{value:g}\u00d7"
    if column.endswith("bytes"):
        return lambda value, _: _abbreviated(value, " GB", " MB", " kB", " B")
    if column.endswith("seconds"):
        return lambda value, _: f"{value:g} s"
    return lambda value, _: _abbreviated(value, " B", " M", " k", "")


def _abbreviated(value: float, *units: str) -> str:
    """Write a number in the largest unit of which it is at least one: 10⁹, 10⁶, 10³ or 1."""
    for unit, scale in zip(units, (1e9, 1e6, 1e3), strict=False):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}{units[-1]}"
