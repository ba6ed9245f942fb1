"""What each configuration costs: parameters, checkpoint size, time and memory.

Costs are medians, because a run can be slow for reasons other than its method. Runs that trained
together each count a share of their process's time and all of its memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lowrank_study.answers.rows import CONFIGURATION, extreme_of, groups, median_of, over_full
from lowrank_study.answers.scores import chosen_runs
from lowrank_study.reporting.display import (
    Column,
    Table,
    enumeration,
    in_bytes,
    percent,
    span,
    written,
)
from lowrank_study.reporting.drawing.figure import FAINT, INK, Figure, Paper, draw_figure, line
from lowrank_study.reporting.drawing.rank_axis import RankAxis, Series, offsets, series_of
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData

MEASURES = (
    ("trainable_parameters", "trainable parameters", False),
    ("checkpoint_bytes", "checkpoint size", False),
    ("train_seconds", "training time", True),
    ("peak_memory_bytes", "peak memory", True),
)
"""Column, title, and whether it is drawn as a ratio to full fine-tuning."""


def section(data: SettingData) -> Section:
    """Show what each configuration costs."""
    table = cost_by_method(data.setting.rows(data.study.runs), data.scores)
    return Section(
        name=f"cost{data.suffix}",
        title="What does it cost?",
        figures=[_figure(data)],
        findings=_findings(data, table),
        reading=[
            "The runs recorded their times and memory on the machine named under “Provenance”. "
            "Other machines can differ.",
        ],
        tables=[_table(data, table)],
    )


# ---------------------------------------------------------------- condensed


def cost_by_method(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return size, time and memory, one row a configuration, medians over its done runs.

    `*_ratio` divides by the median of full fine-tuning in the same setting; NaN without it.
    """
    picked = chosen_runs(runs, scores)
    picked = picked[picked["status"] == "done"]
    measures = ["checkpoint_bytes", "train_seconds", "peak_memory_bytes"]
    rows: list[dict[str, object]] = []
    for key, group in groups(picked, CONFIGURATION):
        trainable = median_of(group["trainable_parameters"])
        total = median_of(group["total_parameters"])
        row: dict[str, object] = {
            **key,
            "n": len(group),
            "steps": median_of(group["steps"]),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "trainable_share": trainable / total if total else math.nan,
        }
        for measure in measures:
            row[measure] = median_of(group[measure])
            row[f"min_{measure}"] = extreme_of(group[measure], largest=False)
            row[f"max_{measure}"] = extreme_of(group[measure], largest=True)
        row["pack_size"] = median_of(group["pack_size"])
        row["examples_per_second"] = median_of(group["examples_per_second"])
        rows.append(row)
    table = pd.DataFrame(rows)
    table["adapter_rank"] = table["adapter_rank"].astype("Int64")
    for measure in ["trainable_parameters", *measures]:
        table[f"{measure}_ratio"] = over_full(table, measure)
    return table


def _table(data: SettingData, table: pd.DataFrame) -> Table:
    return Table(
        name=f"cost_by_method{data.suffix}",
        title="Cost by method",
        note=(
            "One row per configuration: medians over its done runs. “of full” divides by the "
            "median of full fine-tuning in this study."
        ),
        frame=table,
        columns=data.columns(
            "method target adapter_rank",
            Column("n", "n", "count", "done runs"),
            "trainable_parameters",
            Column("trainable_share", "of all", "percent", "trainable over all parameters"),
            "checkpoint_bytes train_seconds train_seconds_ratio",
            Column("min_train_seconds", "shortest", "seconds", "shortest run"),
            Column("max_train_seconds", "longest", "seconds", "longest run"),
            "peak_memory_bytes",
            Column("pack_size", "runs at once", "count", "runs trained together in one process"),
            "peak_memory_bytes_ratio steps",
        ),
    )


# ---------------------------------------------------------------- in words


def _findings(data: SettingData, table: pd.DataFrame) -> list[Finding]:
    ranked = table[table["adapter_rank"].notna()]
    if not len(ranked) or not (table["method"] == "full").any():
        return []
    parts, unknown = [], []
    for measure, title, _ in MEASURES:
        what = title.removeprefix("trainable ")
        known = ranked[f"{measure}_ratio"].dropna()
        if len(known):
            shares = span(percent(float(known.min())), percent(float(known.max())))
            parts.append(f"{shares} of its {what}")
        else:
            unknown.append(what)
    full = table[table["method"] == "full"].iloc[0]
    size = in_bytes(full["checkpoint_bytes"]) if full["checkpoint_bytes"] > 0 else "unknown size"
    who = "the adapter needs" if len(ranked) == 1 else "the adapters need"
    text = (
        f"Compared with full fine-tuning ({written(full['trainable_parameters'], 'count')} "
        f"parameters, {size} on disk), {who} {enumeration(parts)}."
    )
    if unknown:
        text += f" Not measured: {enumeration(unknown)}."
    if table["steps"].dropna().nunique() > 1:
        text += " Configurations took different numbers of steps, so times are not per step."
    if (most := float(table["pack_size"].max())) > 1:
        text += (
            f" Up to {most:g} adapters trained in one process. Each run counts its share of the "
            "process’s time but all of its peak memory."
        )
    return [Finding(topic="Cost", text=text)]


# ---------------------------------------------------------------- drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panels and the legend share."""

    table: pd.DataFrame
    axis: RankAxis
    series: Sequence[Series]
    has_full: bool

    def draw(self, on: Paper) -> None:
        panels = on.panels(4, across=(2, 1), height=(2.3, 1.95), beside=(0.35, 0.35))
        lowest = panels[2:] if on.wide else panels[3:]
        for panel, (name, title, is_ratio) in zip(panels, MEASURES, strict=True):
            as_ratio = is_ratio and self.has_full
            panel.set_title(f"{title} (full = 1)" if as_ratio else title)
            self.axis.dress(panel, label=panel in lowest)
            self._draw_cost(panel, f"{name}_ratio" if as_ratio else name, as_ratio=as_ratio)
        entries = [one.entry(f"{one.label} (line: median)", size=4) for one in self.series]
        if self.has_full:
            entries.append(line("full fine-tuning", INK, marker="o", ms=4))
        on.legend(entries, columns=(3, 1))

    def _draw_cost(self, panel: Axes, column: str, *, as_ratio: bool) -> None:
        known = self.table[column].dropna()
        if not len(known):
            middle = panel.transAxes
            panel.text(0.5, 0.5, "not measured", transform=middle, ha="center", color=FAINT)
            panel.set_yticks([])
            return
        if as_ratio:
            panel.axhline(1.0, color=INK, lw=0.9)
        for method, target in self.axis.others:
            colour = INK if method == "full" else FAINT
            self._draw_runs(panel, Series(method, target, "", colour, "o"), column)
        for position, one in enumerate(self.series, start=len(self.axis.others)):
            self._draw_runs(panel, one, column)
            medians = one.rows(self.table).groupby("adapter_rank")[column].median()
            octaves = [math.log2(int(str(rank))) for rank in medians.index]
            order = 1 + position / 9
            panel.plot(octaves, medians.to_numpy(), color=one.colour, lw=1.4, zorder=order)
        if not as_ratio and float(known.min()) > 0 and known.max() / known.min() > 20:
            panel.set_yscale("log")
            panel.yaxis.set_minor_locator(NullLocator())
        else:
            panel.set_ylim(0, 1.12 * float(known.max()))
            panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_formatter(FuncFormatter(_format(column)))

    def _draw_runs(self, panel: Axes, one: Series, column: str) -> None:
        rows = one.rows(self.table)
        places = self.axis.places(rows) + offsets(rows["seed"], 0.1)
        one.draw_runs(panel, places, rows[column], ms=3.6, mew=0.8)


def _figure(data: SettingData) -> Figure:
    runs = data.runs
    runs = runs[runs["status"] == "done"]
    has_full = bool((runs["method"] == "full").any())
    table = _numbers(runs)
    drawing = _Drawing(
        table=table, axis=RankAxis.of(runs), series=series_of(runs), has_full=has_full
    )
    units = (
        "as ratios to full fine-tuning’s median."
        if has_full
        else "in absolute units, because this study has no full fine-tuning."
    )
    return draw_figure(
        drawing.draw,
        name=f"cost_by_method{data.suffix}",
        title="Parameters, checkpoint size, time and memory",
        caption=(
            "Every mark is a run; lines join medians over seeds. Times and memory are shown "
            f"{units}"
        ),
        note="One row per done run at its configuration’s chosen learning rate.",
        frame=table,
        columns=data.columns(
            "method target adapter_rank seed trainable_parameters checkpoint_bytes train_seconds "
            "train_seconds_ratio peak_memory_bytes peak_memory_bytes_ratio"
        ),
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
        return lambda value, _: f"{value:g}×"
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
