"""The figures of a report, each with the table it was drawn from.

    figure = accuracy_against_rank(data)
    figure.table            # the numbers, as a Table
    figure.wide, figure.narrow, figure.pdf

A figure is drawn for two widths, because one drawing shrunk to a telephone can’t be read:
`wide` at 7.5 inches and `narrow` at 3.6, with panels beside or above each other. Axes show
measured values only; nothing is smoothed, fitted or extrapolated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lowrank_study.reporting.display import (
    Column,
    Table,
    adapter_name,
    counted,
    method_name,
    printable,
    written,
)
from lowrank_study.reporting.svg import (
    LEVEL_TEXT,
    LEVELS,
    LIGHT,
    SERIES,
    drawing_style,
    drawn,
    pdf_of,
    svg_of,
)
from lowrank_study.reporting.tables import (
    CONFIGURATION,
    Setting,
    StudyTables,
    chosen_runs,
    full_row,
    records,
)

INK, FAINT, BAND, LOST = LIGHT["ink"], LIGHT["faint"], LIGHT["band"], LIGHT["lost"]
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDE, NARROW = 7.5, 3.6
DECADES_SHOWN = 4
"""A spectrum is shown down to 10⁻⁴ of its largest singular value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing in its forms, with its words and the numbers in it."""

    name: str
    """the stem of its files"""
    title: str
    """its heading"""
    caption: str
    """what is shown, and how it was measured"""
    table: Table
    """every number that was drawn"""
    wide: str
    """matplotlib's SVG for a wide column"""
    narrow: str
    """matplotlib's SVG for a telephone"""
    pdf: bytes
    """the wide drawing as PDF"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingData:
    """The tables of one setting that the figures draw."""

    study: StudyTables
    """the checked study"""
    setting: Setting
    """which task and model"""
    suffix: str
    """appended to the names of files; empty where the study has one setting"""
    accuracy: pd.DataFrame
    """`accuracy_by_rank`, this setting's rows"""
    spectra: pd.DataFrame
    """`spectra_of_chosen`, this setting's rows"""
    modules: pd.DataFrame
    """`rank_by_module`, this setting's rows"""
    configurations: pd.DataFrame
    """`rank_by_configuration`, this setting's rows"""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs at the chosen learning rates, whatever became of them."""
        return chosen_runs(self.setting.rows(self.study.runs), self.accuracy)


@dataclass(frozen=True, slots=True)
class _Canvas:
    """What a drawing function draws on: the canvas, and which of the two widths it has."""

    canvas: Canvas
    wide: bool

    def panels(
        self,
        count: int,
        *,
        across: tuple[int, int],
        height: tuple[float, float],
        sharex: bool,
        sharey: bool,
    ) -> list[Axes]:
        """Lay out so many panels; pairs are (wide, narrow), heights in inches a row."""
        columns = min(count, across[0] if self.wide else across[1])
        rows = math.ceil(count / columns)
        size = (height[0] if self.wide else height[1]) * rows
        self.canvas.set_size_inches(WIDE if self.wide else NARROW, size)
        grid = self.canvas.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
        panels = list(grid.flat)
        for panel in panels[count:]:
            panel.set_visible(False)
        return panels[:count]

    def legend(
        self, handles: Sequence[Line2D | Patch | ErrorbarContainer], columns: tuple[int, int]
    ) -> None:
        """Put the legend under the panels."""
        self.canvas.legend(
            handles=list(handles),
            loc="outside lower left",
            ncols=columns[0] if self.wide else columns[1],
            handlelength=1.8,
            columnspacing=1.6,
            labelspacing=0.35,
            borderaxespad=0.2,
        )


def _figure(
    draw: Callable[[_Canvas], None], *, name: str, title: str, caption: str, table: Table
) -> Figure:
    with drawing_style(9.0, f"{name}-wide"):
        canvas = drawn(lambda canvas: draw(_Canvas(canvas, True)), width=WIDE)
        wide, pdf = svg_of(canvas), pdf_of(canvas)
    with drawing_style(8.2, f"{name}-narrow"):
        canvas = drawn(lambda canvas: draw(_Canvas(canvas, False)), width=NARROW)
        narrow = svg_of(canvas)
    return Figure(
        name=name, title=title, caption=caption, table=table, wide=wide, narrow=narrow, pdf=pdf
    )


# ---------------------------------------------------------------- the axis of ranks


@dataclass(frozen=True, slots=True)
class _RankAxis:
    """Places on an axis of adapter ranks in octaves, then the methods that have no rank."""

    ranks: list[int]
    others: list[tuple[str, str]]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "_RankAxis":
        ranks = sorted({int(rank) for rank in runs["adapter_rank"].dropna()})
        unranked = runs[runs["adapter_rank"].isna()]
        others = sorted(
            set(zip(unranked["method"], unranked["target"], strict=True)),
            key=lambda pair: (pair[0] != "full", pair),
        )
        return cls(ranks, others)

    def place(self, method: str, target: str, rank: object) -> float:
        if rank is not None and rank is not pd.NA and rank == rank:
            return math.log2(float(str(rank)))
        first = math.log2(self.ranks[-1]) + 1.1 if self.ranks else 0.0
        return first + 1.1 * self.others.index((method, target))

    def dress(self, axes: Axes, *, label: bool = True) -> None:
        places = [math.log2(rank) for rank in self.ranks]
        places += [self.place(method, target, None) for method, target in self.others]
        names = [str(rank) for rank in self.ranks] + [
            printable(method) for method, _ in self.others
        ]
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda _, position: names[position or 0]))
        axes.set_xticks(places, names)
        axes.set_xlim(min(places) - 0.6, max(places) + 0.6)
        axes.grid(False, axis="x")
        if label:
            axes.set_xlabel("adapter rank" if self.ranks else "method")


def _series(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Methods that have a rank, with their targets, in order: the colours of a report."""
    ranked = runs[runs["adapter_rank"].notna()]
    return sorted(set(zip(ranked["method"], ranked["target"], strict=True)))


def _colour(index: int) -> str:
    return LIGHT[f"series-{index % SERIES + 1}"]


def _label(method: str, target: str, methods: int) -> str:
    return printable(f"{method}, {target}" if methods > 1 and target else target or method)


def _offsets(seeds: "pd.Series[int]", width: float) -> np.ndarray:
    """Shift seeds apart, the same seed by the same amount everywhere."""
    known = sorted(set(seeds))
    return np.array([(known.index(seed) - (len(known) - 1) / 2) * width for seed in seeds])


# ---------------------------------------------------------------- accuracy against rank

_RUN_COLUMNS = (
    Column(name="method", label="method", kind="text", meaning="how it was trained"),
    Column(name="target", label="target", kind="text", meaning="which matrices were adapted"),
    Column(name="adapter_rank", label="rank", kind="rank", meaning="configured adapter rank"),
    Column(name="learning_rate", label="learning rate", kind="rate", meaning="peak rate"),
    Column(name="seed", label="seed", kind="rank", meaning="random seed"),
    Column(name="status", label="status", kind="text", meaning="what became of the run"),
)


def accuracy_against_rank(data: SettingData) -> Figure:
    """Draw test accuracy against adapter rank, full fine-tuning as a band, seeds as points."""
    runs = data.runs
    axis = _RankAxis.of(runs)
    series = _series(runs)
    targets = sorted({target for _, target in series}) or [""]
    methods = len({method for method, _ in series})
    full = full_row(data.accuracy, data.setting)
    full = full if full is not None and full["n"] else None
    done = runs[(runs["status"] == "done") & runs["test_accuracy"].notna()]
    low, high = _limits(done["test_accuracy"], full)
    majority = float(done["majority_accuracy"].mean())
    chosen = data.accuracy[data.accuracy["chosen"]]

    def draw(on: _Canvas) -> None:
        panels = on.panels(
            len(targets), across=(3, 1), height=(3.7, 2.5), sharey=True, sharex=False
        )
        if not on.wide:
            width, height = on.canvas.get_size_inches()
            on.canvas.set_size_inches(width, height + 0.8)
        for panel, target in zip(panels, targets, strict=True):
            _draw_accuracy(panel, target)
        for panel in panels[:: len(panels) if on.wide else 1]:
            panel.set_ylabel("test accuracy")
        on.legend(_accuracy_legend(), columns=(2, 1))

    def _draw_accuracy(panel: Axes, target: str) -> None:
        panel.set_title(printable(target) or "full fine-tuning")
        panel.set_ylim(low, high)
        axis.dress(panel)
        if full is not None:
            mean = full["mean_test_accuracy"]
            if full["n"] > 1:
                panel.axhspan(full["test_low_95"], full["test_high_95"], color=BAND, lw=0, zorder=0)
            panel.axhline(mean, color=INK, lw=1.1, zorder=1)
        if low < majority < high:
            panel.axhline(majority, color=FAINT, lw=1, ls=(0, (2, 2)))
        for method, other in axis.others:
            if other in {"", target} or method == "full":
                _draw_points(panel, method, other, INK if method == "full" else FAINT, "o", 0.0)
        shown = [pair for pair in series if pair[1] == target]
        for position, (method, _) in enumerate(shown):
            shift = (position - (len(shown) - 1) / 2) * 0.3
            index = series.index((method, target))
            _draw_points(panel, method, target, _colour(index), MARKERS[index % SERIES], shift)

    def _draw_points(
        panel: Axes, method: str, target: str, colour: str, marker: str, shift: float
    ) -> None:
        rows = runs[(runs["method"] == method) & (runs["target"] == target)]
        place = np.array([axis.place(method, target, rank) for rank in rows["adapter_rank"]])
        place = place + shift + _offsets(rows["seed"], 0.13)
        good = rows["test_accuracy"].notna().to_numpy() & (rows["status"] == "done").to_numpy()
        panel.plot(
            place[good],
            rows["test_accuracy"].to_numpy()[good],
            ls="none",
            marker=marker,
            ms=4.2,
            mfc="none",
            mec=colour,
            mew=0.9,
            zorder=3,
        )
        lost = ~(rows["status"] == "done").to_numpy()
        if lost.any():
            foot = np.full(int(lost.sum()), low + 0.035 * (high - low))
            panel.plot(place[lost], foot, ls="none", marker="x", ms=5.5, color=LOST, mew=1.6)
        means = chosen[
            (chosen["method"] == method) & (chosen["target"] == target) & (chosen["n"] > 0)
        ]
        if method == "full" or not len(means):
            return
        centre = [axis.place(method, target, rank) + shift for rank in means["adapter_rank"]]
        mean = means["mean_test_accuracy"].to_numpy()
        half = means["test_high_95"].to_numpy() - mean
        panel.errorbar(
            centre, mean, yerr=np.nan_to_num(half), fmt="none", ecolor=colour, elinewidth=0.9
        )
        panel.plot(centre, mean, color=colour, marker=marker, ms=5, lw=1.6, zorder=2)

    def _accuracy_legend() -> list[Line2D | Patch]:
        entries: list[Line2D | Patch] = []
        for index, (method, target) in enumerate(series):
            entries.append(
                Line2D(
                    [],
                    [],
                    color=_colour(index),
                    marker=MARKERS[index % SERIES],
                    ms=5,
                    label=f"{_label(method, target, methods)}: mean",
                )
            )
        entries.append(
            Line2D([], [], color=FAINT, marker="o", mfc="none", ms=4.2, ls="none", label="one seed")
        )
        if full is not None:
            text = "full fine-tuning: mean"
            entries.append(Line2D([], [], color=INK, lw=1.1, label=text))
            if full["n"] > 1:
                entries.append(Patch(color=BAND, label="full fine-tuning: 95 % interval"))
        if (runs["status"] != "done").any():
            entries.append(
                Line2D(
                    [], [], color=LOST, marker="x", mew=1.6, ls="none", label="diverged or failed"
                )
            )
        if low < majority < high:
            text = f"commonest class: {majority:.3f}"
            entries.append(Line2D([], [], color=FAINT, lw=1, ls=(0, (2, 2)), label=text))
        elif not math.isnan(majority):
            text = f"(commonest class: {majority:.3f}, {'below' if majority < low else 'above'})"
            entries.append(Line2D([], [], ls="none", label=text))
        return entries

    keys = [*CONFIGURATION, "learning_rate"]
    table = runs.merge(
        chosen[[*keys, "n", "mean_test_accuracy", "test_low_95", "test_high_95"]],
        on=keys,
        how="left",
    )
    table = table[
        [
            *keys,
            "run_id",
            "seed",
            "status",
            "test_accuracy",
            "n",
            "mean_test_accuracy",
            "test_low_95",
            "test_high_95",
            "majority_accuracy",
        ]
    ]
    columns = (
        *_RUN_COLUMNS,
        Column(name="test_accuracy", label="test accuracy", kind="share", meaning="this seed’s"),
        Column(name="mean_test_accuracy", label="mean", kind="share", meaning="over n seeds"),
        Column(name="test_low_95", label="95 % low", kind="share", meaning="interval of the mean"),
        Column(name="test_high_95", label="95 % high", kind="share", meaning="interval of mean"),
        Column(name="n", label="n", kind="count", meaning="done runs"),
    )
    caption = (
        "Every open mark is one seed; filled marks are means, with the 95 % Student t interval "
        "of the mean over seeds as a whisker. The line and the band are the mean of full "
        "fine-tuning and its interval, made the same way. The intervals hold the spread over "
        "seeds, not that of drawing another test set. The vertical axis does not begin at zero; "
        "what leaves it is cut."
    )
    return _figure(
        draw,
        name=f"accuracy_against_rank{data.suffix}",
        title="Accuracy against adapter rank",
        caption=caption,
        table=Table(
            name=f"figure_accuracy_against_rank{data.suffix}",
            title="Numbers of this figure",
            note="One row a run at its configuration’s chosen learning rate.",
            frame=table,
            columns=columns,
        ),
    )


def _limits(accuracy: pd.Series, full: dict[str, Any] | None) -> tuple[float, float]:
    """Hold every seed, and the band too unless it is far wider than the seeds."""
    low, high = float(accuracy.min()), float(accuracy.max())
    room = max(high - low, 0.01)
    if full is not None and full["n"] > 1:
        low = max(min(low, full["test_low_95"]), low - room)
        high = min(max(high, full["test_high_95"]), high + room)
    room = max(high - low, 0.01)
    return low - 0.12 * room, high + 0.06 * room


# ---------------------------------------------------------------- decay of singular values


def adapter_shown(data: SettingData, *, highest: bool) -> tuple[str, str, int] | None:
    """Choose the adapter that stands beside full fine-tuning: (method, target, rank).

    The one with the most matrices; of its ranks the highest, or the middle one.
    """
    ranked = data.spectra[data.spectra["adapter_rank"].notna() & data.spectra["layer"].notna()]
    if not len(ranked):
        return None
    roles = ranked.groupby(["method", "target"])["role"].nunique()
    best = sorted(roles.index, key=lambda pair: (-int(roles.loc[pair]), pair))[0]
    rows = ranked[(ranked["method"] == best[0]) & (ranked["target"] == best[1])]
    ranks = sorted({int(rank) for rank in rows["adapter_rank"]})
    return best[0], best[1], ranks[-1] if highest else ranks[(len(ranks) - 1) // 2]


def _of_adapter(frame: pd.DataFrame, adapter: tuple[str, str, int] | None) -> pd.DataFrame:
    if adapter is None:
        return frame.iloc[:0]
    method, target, rank = adapter
    return frame[
        (frame["method"] == method)
        & (frame["target"] == target)
        & (frame["adapter_rank"].fillna(-1) == rank)
    ]


def _roles(spectra: pd.DataFrame) -> list[str]:
    """Roles inside the layers, in the order in which the tables first name them."""
    return list(dict.fromkeys(spectra.loc[spectra["layer"].notna(), "role"]))


def _two_lines(role: str) -> str:
    """Break a long role in two at the underscore nearest its middle."""
    text = printable(role)
    breaks = [place for place, character in enumerate(text) if character in "_."]
    if len(text) < 8 or not breaks:
        return text if len(text) <= 18 else f"{text[:16]}…"
    middle = min(breaks, key=lambda place: abs(place - len(text) / 2))
    parts = (text[:middle], text[middle + 1 :])
    return "\n".join(part if len(part) <= 14 else f"{part[:12]}…" for part in parts)


def singular_value_decay(data: SettingData) -> Figure | None:
    """Draw σᵢ/σ₁ against i by layer and role for full fine-tuning; None without spectra."""
    full = data.spectra[(data.spectra["method"] == "full") & data.spectra["layer"].notna()]
    adapter = adapter_shown(data, highest=False)
    lora = _of_adapter(data.spectra, adapter)
    lora = lora[lora["layer"].notna()]
    curves = _curves(data.study.singular_values, full)
    beside = _curves(data.study.singular_values, lora)
    if not len(curves) and not len(beside):
        return None
    roles = _roles(full if len(full) else lora)
    layers = sorted({int(layer) for layer in pd.concat([curves, beside])["layer"]})
    depth = {
        layer: LIGHT[f"depth-{round(8 * position / max(1, len(layers) - 1))}"]
        for position, layer in enumerate(layers)
    }
    middle = beside.groupby(["role", "index"], as_index=False)["relative"].median()
    floors = _floors(data.study.singular_values, full if len(full) else lora)
    bottom = _bottom(pd.concat([curves, beside])["relative"])
    clear = full.groupby(["layer", "role"])["resolvable"].all()

    def draw(on: _Canvas) -> None:
        panels = on.panels(len(roles), across=(3, 2), height=(2.25, 1.75), sharex=True, sharey=True)
        width, height = on.canvas.get_size_inches()
        on.canvas.set_size_inches(width, height + (0.5 if on.wide else 0.7))
        for panel, role in zip(panels, roles, strict=True):
            panel.set_title(printable(role))
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            for layer in layers:
                rows = curves[(curves["role"] == role) & (curves["layer"] == layer)]
                resolved = bool(clear.get((layer, role), True))
                panel.plot(
                    rows["index"],
                    rows["relative"],
                    color=depth[layer],
                    lw=1.4 if resolved else 0.9,
                    ls="-" if resolved else (0, (1, 1.5)),
                )
            rows = middle[middle["role"] == role]
            panel.plot(rows["index"], rows["relative"], color=_colour(2), lw=2.2, ls=(0, (4, 1.2)))
            for column, dashes in (("rounding_floor", (0, (2, 2))), ("mp_edge", (0, (6, 2)))):
                value = float(floors[column].get(role, math.nan))
                if value > bottom:
                    panel.axhline(value, color=FAINT, lw=1, ls=dashes)
            panel.set_ylim(bottom, 1.4)
            panel.yaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        across = min(len(roles), 3 if on.wide else 2)
        for position, panel in enumerate(panels):
            if position % across == 0:
                panel.set_ylabel("σᵢ / σ₁")
            if position + across >= len(roles):
                panel.set_xlabel("index i")
                panel.tick_params(labelbottom=True)
        on.legend(_decay_legend(), columns=(4, 2))

    def _decay_legend() -> list[Line2D | Patch]:
        entries: list[Line2D | Patch] = []
        if len(curves):
            step = max(1, math.ceil(len(layers) / 6))
            picked = layers[::step]
            if picked[-1] != layers[-1]:
                picked = [*picked, layers[-1]]
            entries += [
                Line2D([], [], color=depth[layer], label=f"full, layer {layer}") for layer in picked
            ]
        if adapter is not None and len(middle):
            text = f"{method_name(adapter[0])}, rank {adapter[2]}: median"
            entries.append(Line2D([], [], color=_colour(2), lw=2.2, ls=(0, (4, 1.2)), label=text))
        for column, dashes, text in (
            ("rounding_floor", (0, (2, 2)), "rounding floor"),
            ("mp_edge", (0, (6, 2)), "noise edge"),
        ):
            if (floors[column] > bottom).any():
                entries.append(Line2D([], [], color=FAINT, lw=1, ls=dashes, label=text))
        return entries

    table = pd.concat(
        [
            _labelled(rows, *of)
            for rows, of in ((curves, ("full", "", None)), (beside, adapter or ("", "", None)))
            if len(rows)
        ]
    )
    seeds = full["run_id"].nunique()
    caption = (
        f"Singular values of the update ΔW as shares of the largest, both axes logarithmic; one "
        f"line a layer, the median over {counted(seeds, 'seed')} of full fine-tuning. Dotted lines "
        f"are updates that are not resolvable above the rounding of the stored weights."
    )
    if adapter is not None and len(middle):
        caption += (
            f" The dashed coloured line is {adapter_name(adapter[0], adapter[1])} at "
            f"rank {adapter[2]}, the median over layers and seeds; it ends at its rank because a "
            f"product of rank {adapter[2]} has no further singular value."
        )
    hidden = [
        name
        for name, column in (("rounding floor", "rounding_floor"), ("noise edge", "mp_edge"))
        if len(floors) and not (floors[column] > bottom).any()
    ]
    caption += (
        " Grey horizontal lines: the floor that rounding of the stored weights leaves (short "
        "dashes) and the Marchenko–Pastur edge of noise (long dashes), each the median over "
        "layers, as shares of σ₁."
    )
    if hidden:
        caption += f" Below the axis here: {' and '.join(hidden)}."
    return _figure(
        draw,
        name=f"singular_value_decay{data.suffix}",
        title="Decay of the singular values by layer",
        caption=caption,
        table=Table(
            name=f"figure_singular_value_decay{data.suffix}",
            title="Numbers of this figure",
            note=(
                "One row a point: the median over seeds of σᵢ/σ₁. Indices are thinned evenly on "
                "the logarithmic axis; all are in singular_values.csv."
            ),
            frame=table[["method", "target", "adapter_rank", "layer", "role", "index", "relative"]],
            columns=(
                *_RUN_COLUMNS[:3],
                Column(name="layer", label="layer", kind="rank", meaning="layer of the model"),
                Column(name="role", label="role", kind="text", meaning="which matrix"),
                Column(name="index", label="i", kind="rank", meaning="index, 1 is largest"),
                Column(name="relative", label="σᵢ/σ₁", kind="rate", meaning="median over seeds"),
            ),
        ),
    )


def _labelled(curves: pd.DataFrame, method: str, target: str, rank: int | None) -> pd.DataFrame:
    labelled = curves.copy()
    labelled["method"], labelled["target"] = method, target
    labelled["adapter_rank"] = pd.array([rank] * len(curves), dtype="Int64")
    return labelled


def _curves(values: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Give the median over seeds of σᵢ/σ₁ by layer, role and (thinned) index."""
    keys = spectra[["run_id", "module"]]
    rows = values.merge(keys, on=["run_id", "module"], how="inner")
    largest = rows.groupby(["run_id", "module"])["singular_value"].transform("max")
    rows = rows.assign(relative=rows["singular_value"] / largest.where(largest > 0))
    count = int(rows["index"].max()) if len(rows) else 1
    picked = np.unique(np.round(np.geomspace(1, count, 56)).astype(int))
    rows = rows[rows["index"].isin(picked)]
    return rows.groupby(["layer", "role", "index"])["relative"].median().reset_index()


def _floors(values: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Give the noise floors as shares of σ₁, the median over layers and seeds, by role."""
    first = values.loc[values["index"] == 1, ["run_id", "module", "singular_value"]]
    rows = spectra.merge(first, on=["run_id", "module"], how="inner")
    rows = rows[rows["singular_value"] > 0]
    shares = rows[["rounding_floor", "mp_edge"]].div(rows["singular_value"], axis=0)
    return shares.groupby(rows["role"]).median()


def _bottom(relative: "pd.Series[float]") -> float:
    positive = relative[relative > 0]
    least = float(positive.min()) if len(positive) else 0.1
    return max(10.0**-DECADES_SHOWN, min(least / 1.5, 0.1))


# ---------------------------------------------------------------- rank by layer and module


def rank_heat_map(data: SettingData) -> Figure | None:
    """Draw the 90 % energy rank by layer and role as a heat map; None without spectra."""
    inside = data.modules[data.modules["layer"].notna()]
    adapter = adapter_shown(data, highest=True)
    parts = [
        (title, rows)
        for title, rows in (
            ("full fine-tuning", inside[inside["method"] == "full"]),
            (
                f"{adapter_name(adapter[0], adapter[1])}, rank {adapter[2]}" if adapter else "",
                _of_adapter(inside, adapter),
            ),
        )
        if len(rows)
    ]
    if not parts:
        return None
    roles = [role for role in _roles(data.spectra) if role in set(inside["role"])]
    layers = sorted({int(layer) for _, rows in parts for layer in rows["layer"]})
    shares = pd.concat([rows["median_share_of_possible"] for _, rows in parts])
    top = min(1.0, max(0.1, math.ceil(float(np.nan_to_num(shares.max())) * 10) / 10))

    def draw(on: _Canvas) -> None:
        row_height = 0.3 if len(layers) <= 16 else 0.2
        height = row_height * len(layers) + 1.5
        panels = on.panels(
            len(parts), across=(2, 1), height=(height, height - 0.2), sharey=on.wide, sharex=False
        )
        for position, (panel, (title, rows)) in enumerate(zip(panels, parts, strict=True)):
            panel.set_title(printable(title))
            _cells(panel, rows, small=len(layers) > 16)
            if position == 0 or not on.wide:
                panel.set_ylabel("layer")
        _level_legend(on)

    def _cells(panel: Axes, rows: pd.DataFrame, *, small: bool) -> None:
        panel.grid(False)
        for side in ("left", "bottom"):
            panel.spines[side].set_visible(False)
        panel.tick_params(length=0)
        panel.set_xlim(-0.5, len(roles) - 0.5)
        panel.set_ylim(len(layers) - 0.5, -0.5)
        panel.set_xticks(range(len(roles)), [_two_lines(role) for role in roles], rotation=45)
        for label in panel.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
        panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        size = 6.5 if small else None
        for row in records(rows):
            x, y = roles.index(row["role"]), layers.index(row["layer"])
            share, rank = row["median_share_of_possible"], row["median_energy_rank_90"]
            whole = row["resolvable"] == row["n"]
            level = 0 if math.isnan(share) else min(LEVELS - 1, int(share / top * LEVELS))
            panel.add_patch(
                Rectangle(
                    (x - 0.47, y - 0.45),
                    0.94,
                    0.9,
                    facecolor=LIGHT[f"level-{level}"] if whole else "none",
                    edgecolor=FAINT if not whole else "none",
                    hatch=None if whole else "/////",
                    lw=0.0,
                )
            )
            if math.isnan(rank):
                continue
            text = written(rank, "rank")
            panel.text(
                x,
                y,
                text if whole else f"({text})",
                ha="center",
                va="center",
                fontsize=size,
                color=LIGHT[LEVEL_TEXT[level]] if whole else INK,
                bbox=None if whole else {"facecolor": LIGHT["paper"], "lw": 0, "pad": 1.0},
            )

    def _level_legend(on: _Canvas) -> None:
        entries: list[Line2D | Patch] = []
        for level in range(0, LEVELS, 2):
            low, high = (100 * top * edge / LEVELS for edge in (level, level + 1))
            entries.append(Patch(color=LIGHT[f"level-{level}"], label=f"{low:.0f}–{high:.0f} %"))
        if any((rows["resolvable"] < rows["n"]).any() for _, rows in parts):
            entries.append(
                Patch(
                    facecolor="none", edgecolor=FAINT, hatch="/////", lw=0, label="not resolvable"
                )
            )
        on.canvas.legend(
            handles=entries,
            loc="outside lower left",
            ncols=6 if on.wide else 3,
            handlelength=1.2,
            columnspacing=1.2,
            title="share of the largest possible rank (every second step shown)",
            title_fontsize=float(on.canvas.axes[0].title.get_fontsize()) - 0.5,
            alignment="left",
        )

    table = pd.concat([rows for _, rows in parts])
    caption = (
        "Numbers are 90 % energy ranks: how many singular values of ΔW hold 90 % of its squared "
        "Frobenius norm; medians over seeds. Colour is that rank as a share of the largest one "
        "possible, min(out, in) for full fine-tuning and the adapter rank for an adapter, so "
        "numbers of the two maps can’t be set side by side. Hatched: at least one seed’s update "
        "is not resolvable above the rounding of the stored weights; a number in brackets is "
        "the median of the seeds that are."
    )
    return _figure(
        draw,
        name=f"rank_heat_map{data.suffix}",
        title="Rank by layer and module",
        caption=caption,
        table=Table(
            name=f"figure_rank_heat_map{data.suffix}",
            title="Numbers of this figure",
            note="One row a cell.",
            frame=table,
            columns=(*_RUN_COLUMNS[:3], *MODULE_COLUMNS),
        ),
    )


MODULE_COLUMNS = (
    Column(name="layer", label="layer", kind="rank", meaning="layer of the model"),
    Column(name="role", label="role", kind="text", meaning="which matrix"),
    Column(
        name="median_energy_rank_90",
        label="energy rank 90 %",
        kind="rank",
        meaning="median over resolvable matrices",
    ),
    Column(name="min_energy_rank_90", label="least", kind="rank", meaning="of the matrices"),
    Column(name="max_energy_rank_90", label="most", kind="rank", meaning="of the matrices"),
    Column(
        name="largest_possible_rank",
        label="possible",
        kind="rank",
        meaning="largest possible rank: the adapter rank, or min(out, in)",
    ),
    Column(
        name="noise_energy_rank_90",
        label="pure noise",
        kind="count",
        meaning="90 % energy rank of independent Gaussian noise of this shape (computed)",
    ),
    Column(
        name="median_gavish_donoho_rank",
        label="above noise (Gavish–Donoho)",
        kind="rank",
        meaning="median count of singular values above the Gavish–Donoho cut",
    ),
    Column(
        name="median_stable_rank", label="stable rank", kind="rate", meaning="‖ΔW‖²_F / σ₁², median"
    ),
    Column(
        name="median_relative_norm",
        label="‖ΔW‖ / ‖W0‖",
        kind="rate",
        meaning="Frobenius norms, median over matrices",
    ),
    Column(name="resolvable", label="resolvable", kind="count", meaning="matrices above rounding"),
    Column(name="n", label="n", kind="count", meaning="matrices (seeds × modules)"),
)


# ---------------------------------------------------------------- what it costs


def cost_by_method(data: SettingData) -> Figure:
    """Draw parameters, checkpoint size, time and memory against rank, with full fine-tuning."""
    runs = data.runs
    runs = runs[runs["status"] == "done"]
    axis = _RankAxis.of(runs)
    series = _series(runs)
    methods = len({method for method, _ in series})
    full = runs[runs["method"] == "full"]
    has_full = bool(len(full))
    measures = (
        ("trainable_parameters", "trainable parameters", False),
        ("checkpoint_bytes", "checkpoint size", False),
        ("train_seconds", "training time", True),
        ("peak_memory_bytes", "peak memory", True),
    )
    table = runs[[*CONFIGURATION, "learning_rate", "run_id", "seed"]].copy()
    for name, _, is_ratio in measures:
        values = runs[name].astype("Float64").astype(float)
        base = float(full[name].astype("Float64").astype(float).median()) if has_full else math.nan
        table[name] = values
        if is_ratio:
            table[f"{name}_ratio"] = values / base if base else math.nan

    def draw(on: _Canvas) -> None:
        panels = on.panels(4, across=(2, 1), height=(2.3, 1.95), sharex=False, sharey=False)
        width, height = on.canvas.get_size_inches()
        on.canvas.set_size_inches(width, height + 0.35)
        for position, (panel, (name, title, is_ratio)) in enumerate(
            zip(panels, measures, strict=True)
        ):
            last = position >= 2 if on.wide else position == 3
            _draw_cost(panel, name, title, is_ratio and has_full, label=last)
        entries = [
            Line2D(
                [],
                [],
                color=_colour(index),
                marker=MARKERS[index % SERIES],
                ms=4,
                label=f"{_label(method, target, methods)} (median; every run a mark)",
            )
            for index, (method, target) in enumerate(series)
        ]
        if has_full:
            entries.append(Line2D([], [], color=INK, marker="o", ms=4, label="full fine-tuning"))
        on.legend(entries, columns=(3, 1))

    def _draw_cost(panel: Axes, name: str, title: str, as_ratio: bool, *, label: bool) -> None:
        column = f"{name}_ratio" if as_ratio else name
        unit = " (full = 1)" if as_ratio else ""
        panel.set_title(f"{title}{unit}")
        axis.dress(panel, label=label)
        known = table[column].dropna()
        if not len(known):
            panel.text(
                0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=FAINT
            )
            panel.set_yticks([])
            return
        if has_full and as_ratio:
            panel.axhline(1.0, color=INK, lw=0.9)
        pairs = [(pair, INK, "o") for pair in axis.others]
        pairs += [
            (pair, _colour(index), MARKERS[index % SERIES]) for index, pair in enumerate(series)
        ]
        for position, ((method, target), colour, marker) in enumerate(pairs):
            rows = table[(table["method"] == method) & (table["target"] == target)]
            places = np.array([axis.place(method, target, rank) for rank in rows["adapter_rank"]])
            panel.plot(
                places + _offsets(rows["seed"], 0.1),
                rows[column],
                ls="none",
                marker=marker,
                ms=3.6,
                mfc="none",
                mec=colour,
                mew=0.8,
            )
            if (method, target) in series:
                middle = rows.groupby("adapter_rank")[column].median()
                spots = [math.log2(int(str(rank))) for rank in middle.index]
                panel.plot(spots, middle.to_numpy(), color=colour, lw=1.4, zorder=1 + position / 9)
        if not as_ratio and float(known.min()) > 0 and known.max() / known.min() > 20:
            panel.set_yscale("log")
            panel.yaxis.set_minor_locator(NullLocator())
        else:
            panel.set_ylim(0, 1.12 * float(known.max()))
            panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_formatter(FuncFormatter(_cost_format(name, as_ratio)))

    def _cost_format(name: str, as_ratio: bool) -> Callable[[float, int | None], str]:
        if as_ratio:
            return lambda value, _: f"{value:g}\u00d7"
        if name.endswith("bytes"):
            return lambda value, _: f"{_abbreviated(value, 'GMk')}B"
        if name.endswith("seconds"):
            return lambda value, _: f"{value:g} s"
        return lambda value, _: _abbreviated(value)

    return _figure(
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
        table=Table(
            name=f"figure_cost_by_method{data.suffix}",
            title="Numbers of this figure",
            note="One row a done run at its configuration’s chosen learning rate.",
            frame=table,
            columns=(
                *_RUN_COLUMNS[:3],
                _RUN_COLUMNS[4],
                Column(
                    name="trainable_parameters",
                    label="trainable",
                    kind="count",
                    meaning="trainable parameters",
                ),
                Column(
                    name="checkpoint_bytes", label="checkpoint", kind="bytes", meaning="on disk"
                ),
                Column(name="train_seconds", label="time", kind="seconds", meaning="training"),
                Column(
                    name="train_seconds_ratio", label="of full", kind="ratio", meaning="time ratio"
                ),
                Column(
                    name="peak_memory_bytes", label="memory", kind="bytes", meaning="peak memory"
                ),
                Column(
                    name="peak_memory_bytes_ratio",
                    label="of full",
                    kind="ratio",
                    meaning="memory ratio",
                ),
            ),
        ),
    )


def _abbreviated(value: float, units: str = "BMk") -> str:
    for unit, scale in zip(units, (1e9, 1e6, 1e3), strict=True):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} " if units != "BMk" else f"{value:g}"


# ---------------------------------------------------------------- how much rank is used


def energy_rank_against_adapter_rank(data: SettingData) -> Figure | None:
    """Draw the 90 % energy rank against the adapter rank, with its bound; None without."""
    rows = data.configurations
    ranked = rows[rows["adapter_rank"].notna() & rows["median_energy_rank_90"].notna()]
    full = rows[(rows["method"] == "full") & rows["median_energy_rank_90"].notna()]
    if not len(ranked):
        return None
    axis = _RankAxis.of(ranked)
    series = _series(ranked)
    methods = len({method for method, _ in series})

    def draw(on: _Canvas) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.7, 3.9), sharex=False, sharey=False)[0]
        panel.set_yscale("log", base=2)
        axis.dress(panel)
        panel.set_ylabel("90 % energy rank of ΔW")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.plot(
            [math.log2(rank) for rank in axis.ranks],
            axis.ranks,
            color=FAINT,
            lw=1.1,
            ls=(0, (4, 2)),
        )
        if len(full):
            row = full.iloc[0]
            panel.axhspan(
                row["energy_rank_90_decile_1"],
                row["energy_rank_90_decile_9"],
                color=BAND,
                lw=0,
                zorder=0,
            )
            panel.axhline(row["median_energy_rank_90"], color=INK, lw=1.1)
        for index, (method, target) in enumerate(series):
            part = ranked[(ranked["method"] == method) & (ranked["target"] == target)]
            middle = part["median_energy_rank_90"].to_numpy()
            shift = (index - (len(series) - 1) / 2) * 0.12
            panel.errorbar(
                [math.log2(int(rank)) + shift for rank in part["adapter_rank"]],
                middle,
                yerr=[
                    middle - part["energy_rank_90_decile_1"].to_numpy(),
                    part["energy_rank_90_decile_9"].to_numpy() - middle,
                ],
                color=_colour(index),
                marker=MARKERS[index % SERIES],
                ms=5,
                elinewidth=0.9,
                lw=1.6,
            )
        on.legend(_bound_legend(), columns=(2, 1))

    def _bound_legend() -> list[Line2D | Patch]:
        entries: list[Line2D | Patch] = [
            Line2D(
                [],
                [],
                color=_colour(index),
                marker=MARKERS[index % SERIES],
                ms=5,
                label=f"{_label(method, target, methods)}: median",
            )
            for index, (method, target) in enumerate(series)
        ]
        text = "bound: the adapter rank"
        entries.append(Line2D([], [], color=FAINT, lw=1.1, ls=(0, (4, 2)), label=text))
        if len(full):
            entries.append(Line2D([], [], color=INK, lw=1.1, label="full fine-tuning: median"))
            entries.append(Patch(color=BAND, label="full: middle 80 % of matrices"))
        return entries

    return _figure(
        draw,
        name=f"energy_rank_against_adapter_rank{data.suffix}",
        title="How much of its rank an adapter uses",
        caption=(
            "Median 90 % energy rank over the resolvable matrices of all layers and seeds; "
            "whiskers and the band hold the middle 80 % of matrices (they are no intervals of "
            "confidence). An adapter of rank r can’t have an energy rank above r (dashed line): "
            "that its rank is lower than full fine-tuning’s is built in, not found."
        ),
        table=Table(
            name=f"figure_energy_rank_against_adapter_rank{data.suffix}",
            title="Numbers of this figure",
            note="One row a configuration; matrices inside the layers only.",
            frame=pd.concat([full, ranked]),
            columns=(*_RUN_COLUMNS[:3], *CONFIGURATION_RANK_COLUMNS),
        ),
    )


CONFIGURATION_RANK_COLUMNS = (
    Column(
        name="median_energy_rank_90",
        label="energy rank 90 %",
        kind="rank",
        meaning="median over resolvable matrices of all layers and seeds",
    ),
    Column(
        name="energy_rank_90_decile_1",
        label="10 % below",
        kind="rank",
        meaning="a tenth of the matrices lies below",
    ),
    Column(
        name="energy_rank_90_decile_9",
        label="90 % below",
        kind="rank",
        meaning="nine tenths of the matrices lie below",
    ),
    Column(
        name="largest_possible_rank",
        label="possible",
        kind="rank",
        meaning="largest possible rank: the adapter rank, or min(out, in)",
    ),
    Column(
        name="median_share_of_possible",
        label="share of possible",
        kind="percent",
        meaning="energy rank over largest possible rank, median",
    ),
    Column(
        name="median_effective_rank",
        label="effective rank",
        kind="rate",
        meaning="exp of the entropy of σ/Σσ (Roy and Vetterli), median",
    ),
    Column(
        name="median_gavish_donoho_rank",
        label="above noise (Gavish–Donoho)",
        kind="rank",
        meaning="median count of singular values above the Gavish–Donoho cut",
    ),
    Column(name="resolvable", label="resolvable", kind="count", meaning="matrices above rounding"),
    Column(name="n", label="n", kind="count", meaning="matrices (seeds × modules)"),
    Column(name="seeds", label="seeds", kind="count", meaning="seeds"),
)
