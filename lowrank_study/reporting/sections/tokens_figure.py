"""The figure of the held-out score against training tokens, one line per rank.

figure = score_against_tokens(data, curves, behind)
figure.table.frame      # one row a configuration and evaluation

For each target, one panel has the scores and one their difference from full fine-tuning.
"""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import NARROW_SPACE, Column, adapter_name, percent
from lowrank_study.reporting.drawing.figure import (
    DOTTED,
    FAINT,
    INK,
    Entry,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.drawing.svg import LIGHT
from lowrank_study.reporting.setting import SettingData
from lowrank_study.tasks.metric import Metric

_MOST_DECADES = 1.7
"""Tokens that span more are only labelled at powers of ten."""


def score_against_tokens(data: SettingData, curves: pd.DataFrame, behind: pd.DataFrame) -> Figure:
    """Draw the mean held-out score against training tokens.

    Args:
        data: The setting.
        curves: `mean_curves` of the setting's runs.
        behind: `falls_behind` of the setting's runs, for the margin; may be empty.
    """
    label = data.metric.label
    trained = curves[curves["step"] > 0]
    drawing = _Drawing(
        metric=data.metric,
        trained=trained,
        base=float(curves.loc[curves["step"] == 0, "mean_validation_score"].mean()),
        margin=float(behind["margin"].mean()),
        ranks=sorted({int(rank) for rank in trained["adapter_rank"].dropna()}),
        has_full=bool((trained["method"] == "full").any()),
    )
    return draw_figure(
        drawing.draw,
        name=f"score_against_tokens{data.suffix}",
        title=f"Held-out {label} against training tokens",
        caption=_caption(trained, label=label, has_full=drawing.has_full),
        note="One row per configuration and evaluation, at its chosen learning rate; step 0 is the "
        "base model.",
        frame=curves,
        columns=data.columns(
            "method target adapter_rank",
            Column("step", "step", "count", "optimizer steps taken"),
            Column("predicted_tokens", "tokens", "count", "predicted training tokens so far"),
            Column("rate_share", "rate", "percent", "learning rate as a share of its peak"),
            Column("mean_validation_score", "validation {score}", "decimal", "mean over n seeds"),
            Column("min_validation_score", "lowest", "decimal", "lowest of the seeds"),
            Column("max_validation_score", "highest", "decimal", "highest of the seeds"),
            Column("mean_difference", "minus full’s", "decimal", "mean over the seeds of both"),
            Column("n", "n", "count", "done runs"),
        ),
    )


def _caption(trained: pd.DataFrame, *, label: str, has_full: bool) -> str:
    text = (
        f"Mean validation {label} over seeds, at each configuration’s chosen learning rate; bands "
        "reach from the lowest to the highest seed."
    )
    if has_full:
        text += " On the right, full fine-tuning’s with the same seed is subtracted."
    last = max(records(trained), key=lambda row: row["step"])
    if last["epochs"] > 1:
        text += (
            f" A token counts each time it is predicted, and a pass over the training rows has "
            f"{last['predicted_tokens'] / last['epochs']:,.0f}."
        )
    return text + _schedule(trained)


def _schedule(trained: pd.DataFrame) -> str:
    """Say what the schedule of the learning rate means for the points inside a curve."""
    points = records(trained)
    last = max(points, key=lambda row: row["step"])
    middle = min(points, key=lambda row: abs(row["step"] - last["step"] / 2))
    if last["rate_share"] >= max(row["rate_share"] for row in points):
        return ""
    return (
        f" The learning rate decays along each curve (to {percent(middle['rate_share'])} of its "
        f"peak at step {middle['step']:,} of {last['step']:,}), so a point before the last is not "
        "what a run of that length would reach."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panels and the legend share."""

    metric: Metric
    trained: pd.DataFrame
    """evaluations after the first step"""
    base: float
    """score of the base model; NaN if unknown"""
    margin: float
    """largest acceptable loss of the score; NaN if unknown"""
    ranks: list[int]
    has_full: bool

    def draw(self, on: Paper) -> None:
        full = self.trained[self.trained["method"] == "full"]
        adapters = self.trained[self.trained["method"] != "full"]
        targets = list(groups(adapters, ["method", "target"]))
        each = 2 if self.has_full and targets else 1
        panels = on.panels(each * max(1, len(targets)), across=(each, 1), height=(2.9, 2.5))
        for place, panel in enumerate(panels):
            key, rows = targets[place // each] if targets else ({}, adapters)
            self._dress(panel)
            if place % each:
                self._draw_lines(panel, rows, "difference")
                panel.axhline(0.0, color=INK, lw=1.1)
                panel.axhline(-self.metric.worth(self.margin), color=FAINT, lw=1, ls=DOTTED)
                panel.set_title("minus full fine-tuning’s")
                continue
            self._draw_lines(panel, rows, "validation_score")
            self._draw_lines(panel, full, "validation_score")
            panel.set_ylabel(f"validation {self.metric.axis_label}")
            panel.set_title(adapter_name(**key) if key else "full fine-tuning")
        on.legend(self._legend(), columns=(5, 2))

    def _dress(self, panel: Axes) -> None:
        panel.set_xscale("log")
        tokens = self.trained["predicted_tokens"]
        few = tokens.max() < tokens.min() * 10**_MOST_DECADES
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("predicted training tokens")

    def _draw_lines(self, panel: Axes, rows: pd.DataFrame, name: str) -> None:
        for key, curve in groups(rows, ["method", "adapter_rank"]):
            colour = INK if key["method"] == "full" else self._shade(key["adapter_rank"])
            tokens = curve["predicted_tokens"].to_numpy()
            low, high = (curve[f"{of}_{name}"].to_numpy() for of in ("min", "max"))
            panel.fill_between(tokens, low, high, color=colour, alpha=0.15, lw=0)
            panel.plot(tokens, curve[f"mean_{name}"], color=colour, marker=".", ms=5, lw=1.3)

    def _shade(self, rank: float | None) -> str:
        if rank is None:
            return FAINT
        place = self.ranks.index(int(rank)) / max(1, len(self.ranks) - 1)
        return LIGHT[f"depth-{round(8 * place)}"]

    def _legend(self) -> list[Entry]:
        entries: list[Entry] = [
            line(f"rank {rank}", self._shade(rank), marker=".") for rank in self.ranks
        ]
        if self.has_full:
            entries.append(line("full fine-tuning", INK, marker="."))
        if self.margin == self.margin and self.has_full:
            entries.append(line(f"margin: {self.margin:.3f}", FAINT, lw=1, ls=DOTTED))
        if self.base == self.base:
            entries.append(line(f"({self.metric.baseline}: {self.base:.3f})", INK, ls="none"))
        return entries


def _short(tokens: float) -> str:
    """Write a number of tokens for a tick."""
    for unit, scale in (("billion", 1e9), ("million", 1e6), ("k", 1e3)):
        if tokens >= scale:
            return f"{tokens / scale:g}{NARROW_SPACE if len(unit) > 1 else ''}{unit}"
    return f"{tokens:g}"
