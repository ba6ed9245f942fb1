"""The axis of adapter ranks, and the methods that have a place on it.

    axis = RankAxis.of(runs)
    axis.place("lora", "attention_qv", 8)    # 3.0: octaves
    axis.place("full", "", None)             # to the right of the highest rank
    [(one.label, one.colour) for one in series_of(runs)]

Places are octaves, because sweeps double the rank.
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

from lowrank_study.reporting.display import is_missing, printable
from lowrank_study.reporting.figures.drawing import line
from lowrank_study.reporting.svg import LIGHT, SERIES

MARKERS = ("o", "s", "^", "D", "v", "P")

_MOST_NAMES = 9
"""Places on an axis of which each has its name; of more ranks every other has."""


@dataclass(frozen=True, slots=True)
class RankAxis:
    """Places on an axis of adapter ranks in octaves, then the methods that have no rank."""

    ranks: list[int]
    others: list[tuple[str, str]]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "RankAxis":
        """Give the axis on which all of these runs have a place."""
        ranks = sorted({int(rank) for rank in runs["adapter_rank"].dropna()})
        unranked = runs[runs["adapter_rank"].isna()]
        others = sorted(
            set(zip(unranked["method"], unranked["target"], strict=True)),
            key=lambda pair: (pair[0] != "full", pair),
        )
        return cls(ranks, others)

    def place(self, method: str, target: str, rank: object) -> float:
        """Give the place of one configuration."""
        if not is_missing(rank):
            return math.log2(float(str(rank)))
        # Names need more room than ranks, the more octaves there are on the axis.
        apart = max(1.1, 0.22 * math.log2(self.ranks[-1])) if self.ranks else 1.1
        first = math.log2(self.ranks[-1]) + apart if self.ranks else 0.0
        return first + apart * self.others.index((method, target))

    def places(self, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Give the places of rows that have a method, a target and an adapter rank."""
        keys = rows[["method", "target", "adapter_rank"]].itertuples(index=False, name=None)
        return np.array([self.place(*key) for key in keys])

    def dress(self, axes: Axes, *, label: bool = True) -> None:
        """Give the horizontal axis its ticks and its label."""
        places = [math.log2(rank) for rank in self.ranks]
        places += [self.place(method, target, None) for method, target in self.others]
        crowded = len(places) > _MOST_NAMES
        names = [str(rank) for rank in self.ranks]
        names = ["" if crowded and place % 2 else name for place, name in enumerate(names)]
        names += [printable(method) for method, _ in self.others]
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda _, position: names[position or 0]))
        axes.set_xticks(places, names)
        axes.set_xlim(min(places) - 0.6, max(places) + 0.6)
        axes.grid(False, axis="x")
        if label:
            axes.set_xlabel("adapter rank" if self.ranks else "method")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A method that has ranks, with its target, and how it is drawn."""

    method: str
    target: str
    label: str
    colour: str
    marker: str

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Give the rows of a table that belong to it."""
        return frame[(frame["method"] == self.method) & (frame["target"] == self.target)]

    def entry(self, label: str, *, size: float = 5) -> Line2D:
        """Give its entry in a legend."""
        return line(label, self.colour, marker=self.marker, ms=size)


def series_of(runs: pd.DataFrame) -> list[Series]:
    """Give the methods that have a rank, with their targets, in order, each in its colour."""
    ranked = runs[runs["adapter_rank"].notna()]
    pairs = sorted(set(zip(ranked["method"], ranked["target"], strict=True)))
    several = len({method for method, _ in pairs}) > 1
    return [
        Series(
            method=method,
            target=target,
            label=printable(f"{method}, {target}" if several and target else target or method),
            colour=series_colour(index),
            marker=MARKERS[index % SERIES],
        )
        for index, (method, target) in enumerate(pairs)
    ]


def series_colour(index: int) -> str:
    """Give the colour of the series of this index."""
    return LIGHT[f"series-{index % SERIES + 1}"]


def offsets(seeds: "pd.Series[int]", width: float) -> npt.NDArray[np.float64]:
    """Shift seeds apart, the same seed by the same amount everywhere."""
    known = sorted(set(seeds))
    return np.array([(known.index(seed) - (len(known) - 1) / 2) * width for seed in seeds])


def draw_marks(
    panel: Axes,
    places: npt.NDArray[np.float64],
    values: npt.ArrayLike,
    *,
    marker: str,
    colour: str,
    **style: Any,
) -> None:
    """Draw open marks: single runs."""
    panel.plot(places, values, ls="none", marker=marker, mfc="none", mec=colour, **style)
