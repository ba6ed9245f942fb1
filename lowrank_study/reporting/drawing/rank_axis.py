"""The axis of adapter ranks, and the methods that it shows.

    axis = RankAxis.of(runs)
    axis.place("lora", "attention_qv", 8)    # 3.0: octaves
    axis.place("full", "", None)             # to the right of the highest rank
    [(one.label, one.colour) for one in series_of(runs)]

Positions are octaves, because sweeps double the rank.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from lowrank_study.reporting.display import is_missing, method_label, printable
from lowrank_study.reporting.drawing.figure import line
from lowrank_study.reporting.drawing.svg import LIGHT, SERIES

MARKERS = ("o", "s", "^", "D", "v", "P")

_MOST_NAMES = 9
"""Ticks that can all be labelled; with more of them only every other rank is."""


@dataclass(frozen=True, slots=True)
class RankAxis:
    """Positions of adapter ranks in octaves, then of the methods without a rank."""

    ranks: list[int]
    others: list[tuple[str, str]]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "RankAxis":
        """Return the axis for these runs."""
        ranks = sorted({int(rank) for rank in runs["adapter_rank"].dropna()})
        unranked = runs[runs["adapter_rank"].isna()]
        others = sorted(
            set(zip(unranked["method"], unranked["target"], strict=True)),
            key=lambda pair: (pair[0] != "full", pair),
        )
        return cls(ranks, others)

    def place(self, method: str, target: str, rank: object) -> float:
        """Return the position of one configuration."""
        if not is_missing(rank):
            return math.log2(float(str(rank)))
        # Names need more room than ranks, and more so on an axis with many octaves.
        apart = max(1.1, 0.22 * math.log2(self.ranks[-1])) if self.ranks else 1.1
        first = math.log2(self.ranks[-1]) + apart if self.ranks else 0.0
        return first + apart * self.others.index((method, target))

    def places(self, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the positions of rows with a method, a target and an adapter rank."""
        keys = rows[["method", "target", "adapter_rank"]].itertuples(index=False, name=None)
        return np.array([self.place(*key) for key in keys])

    def dress(self, axes: Axes, *, label: bool = True) -> None:
        """Set the horizontal axis's ticks and label."""
        places = [math.log2(rank) for rank in self.ranks]
        places += [self.place(method, target, None) for method, target in self.others]
        crowded = len(places) > _MOST_NAMES
        names = [str(rank) for rank in self.ranks]
        names = ["" if crowded and place % 2 else name for place, name in enumerate(names)]
        names += [method_label(method) for method, _ in self.others]
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda _, position: names[position or 0]))
        axes.set_xticks(places, names)
        axes.set_xlim(min(places) - 0.6, max(places) + 0.6)
        axes.grid(False, axis="x")
        if label:
            axes.set_xlabel("adapter rank" if self.ranks else "method")


@dataclass(frozen=True, slots=True)
class Series:
    """A method with its target, and how they are drawn."""

    method: str
    target: str
    label: str
    colour: str
    marker: str

    @property
    def style(self) -> dict[str, Any]:
        """Return its colour and its marker, for matplotlib."""
        return {"color": self.colour, "marker": self.marker}

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a table that belong to it."""
        return frame[(frame["method"] == self.method) & (frame["target"] == self.target)]

    def draw_runs(
        self, panel: Axes, places: npt.NDArray[np.float64], values: npt.ArrayLike, **style: Any
    ) -> None:
        """Draw open marks, which stand for single runs."""
        style = {"ls": "none", "marker": self.marker, "mfc": "none", "mec": self.colour, **style}
        panel.plot(places, values, **style)

    def entry(self, label: str, *, size: float = 5) -> Line2D:
        """Return its entry in a legend."""
        return line(label, self.colour, marker=self.marker, ms=size)


def series_of(runs: pd.DataFrame) -> list[Series]:
    """Return the methods with ranks and their targets, in order, each with its colour."""
    ranked = runs[runs["adapter_rank"].notna()]
    pairs = sorted(set(zip(ranked["method"], ranked["target"], strict=True)))
    several = len({method for method, _ in pairs}) > 1
    series = []
    for index, (method, target) in enumerate(pairs):
        label = printable(f"{method}, {target}" if several and target else target or method)
        series.append(Series(method, target, label, series_colour(index), MARKERS[index % SERIES]))
    return series


def series_colour(index: int) -> str:
    """Return the colour of the series with this index."""
    return LIGHT[f"series-{index % SERIES + 1}"]


def series_style(index: int) -> dict[str, Any]:
    """Return the colour and the marker of the series with this index."""
    return {"color": series_colour(index), "marker": MARKERS[index % SERIES]}


def offsets(seeds: "pd.Series[int]", width: float) -> npt.NDArray[np.float64]:
    """Return a horizontal shift for each seed, the same everywhere."""
    known = sorted(set(seeds))
    return np.array([(known.index(seed) - (len(known) - 1) / 2) * width for seed in seeds])
