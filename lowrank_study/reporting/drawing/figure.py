"""What every figure is made of: a drawing at two widths, as SVG and PDF, with its table.

    def draw(on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.7, 3.9))[0]
        ...
    figure = draw_figure(draw, name="score", title=..., frame=..., columns=..., ...)

A wide drawing shrunk to a phone is unreadable, so each is also drawn narrow, with its panels above
each other. Pairs of numbers below are (wide, narrow).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lowrank_study.reporting.display import Column, Table
from lowrank_study.reporting.drawing.svg import LIGHT, drawing_style, drawn, pdf_of, svg_of

INK, FAINT, BAND, LOST = LIGHT["ink"], LIGHT["faint"], LIGHT["band"], LIGHT["lost"]
DOTTED = (0, (2, 2))
WIDE, NARROW = 7.5, 3.6
"""Widths in inches."""

Entry = Line2D | Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its words and its numbers."""

    name: str
    """the stem of its files"""
    title: str
    """its heading"""
    caption: str
    """what is shown"""
    table: Table
    """every number that was drawn"""
    wide: str
    """matplotlib's SVG for a wide column"""
    narrow: str
    """matplotlib's SVG for a phone"""
    pdf: bytes
    """the wide drawing as PDF"""


@dataclass(frozen=True, slots=True)
class Paper:
    """The canvas that a function draws on, and which of the two widths it has."""

    canvas: Canvas
    wide: bool

    def panels(
        self,
        count: int,
        *,
        across: tuple[int, int],
        height: tuple[float, float],
        beside: tuple[float, float] = (0.0, 0.0),
        sharex: bool = False,
        sharey: bool = False,
    ) -> list[Axes]:
        """Lay out `count` panels.

        Args:
            count: Number of panels.
            across: Most panels in a row.
            height: Inches per row of panels.
            beside: Inches for other parts of the canvas, such as a long legend.
            sharex: Whether panels share one horizontal axis.
            sharey: Whether panels share one vertical axis.
        """
        narrow = not self.wide
        columns = min(count, across[narrow])
        rows = math.ceil(count / columns)
        self.canvas.set_size_inches(
            WIDE if self.wide else NARROW, height[narrow] * rows + beside[narrow]
        )
        grid = self.canvas.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
        panels = list(grid.flat)
        for panel in panels[count:]:
            panel.set_visible(False)
        return panels[:count]

    def legend(self, entries: Sequence[Entry], columns: tuple[int, int], **style: Any) -> None:
        """Put the legend under the panels, in this many columns or the most that fit."""
        spacing = {"handlelength": 1.8, "columnspacing": 1.6, "labelspacing": 0.35}
        for ncols in range(columns[not self.wide], 0, -1):
            legend = self.canvas.legend(
                handles=list(entries),
                loc="outside lower left",
                ncols=ncols,
                **{**spacing, "borderaxespad": 0.2, **style},
            )
            if ncols == 1 or legend.get_window_extent().width <= self.canvas.bbox.width:
                return
            legend.remove()


def draw_figure(
    draw: Callable[[Paper], None],
    *,
    name: str,
    title: str,
    caption: str,
    note: str,
    frame: pd.DataFrame,
    columns: tuple[Column, ...],
) -> Figure:
    """Draw at both widths and return the figure with its table.

    `draw` draws on a paper and sets its height. `note` says what a row of `frame` is.
    """
    with drawing_style(9.0, f"{name}-wide"):
        canvas = drawn(lambda canvas: draw(Paper(canvas, True)), width=WIDE)
        wide, pdf = svg_of(canvas), pdf_of(canvas)
    with drawing_style(8.2, f"{name}-narrow"):
        canvas = drawn(lambda canvas: draw(Paper(canvas, False)), width=NARROW)
        narrow = svg_of(canvas)
    table = Table(
        name=f"figure_{name}",
        title=f"Numbers in “{title}”",
        note=note,
        frame=frame,
        columns=columns,
    )
    return Figure(
        name=name, title=title, caption=caption, table=table, wide=wide, narrow=narrow, pdf=pdf
    )


def draw_baseline(panel: Axes, row: Mapping[str, Any]) -> None:
    """Draw the mean test score of full fine-tuning as a line in a band, its 95 % interval."""
    if row["n"] > 1:
        panel.axhspan(row["test_low_95"], row["test_high_95"], color=BAND, lw=0, zorder=0)
    panel.axhline(row["mean_test_score"], color=INK, lw=1.1, zorder=1)


def baseline_entries(row: Mapping[str, Any]) -> list[Entry]:
    """Return the legend entries of a baseline."""
    entries: list[Entry] = [line("full fine-tuning: mean", INK, lw=1.1)]
    if row["n"] > 1:
        entries.append(Patch(color=BAND, label="full fine-tuning: 95 % interval"))
    return entries


def line(label: str, color: str, **style: Any) -> Line2D:
    """Return a legend entry: a line or a mark."""
    return Line2D([], [], color=color, label=label, **style)
