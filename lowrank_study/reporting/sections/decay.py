"""How fast the singular values of the updates fall, layer by layer, one panel per role.

Both axes are logarithmic, so a power law is a straight line. Nothing is fitted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from lowrank_study.answers.roles import roles_inside
from lowrank_study.answers.rows import groups
from lowrank_study.reporting.display import Column, adapter_name, counted, method_name, printable
from lowrank_study.reporting.drawing.figure import FAINT, Entry, Figure, Paper, draw_figure, line
from lowrank_study.reporting.drawing.rank_axis import series_colour
from lowrank_study.reporting.drawing.svg import LIGHT
from lowrank_study.reporting.section import Section
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.update_ranks import Adapter, rows_of, shown_adapter

DECADES_SHOWN = 4
"""A spectrum is shown down to 10⁻⁴ of its largest singular value."""
INDICES_SHOWN = 56
FLOORS = (
    ("rounding_floor", "rounding floor", (0, (2, 2))),
    ("mp_edge", "noise edge", (0, (6, 2))),
)
BESIDE: dict[str, Any] = {"color": series_colour(2), "lw": 2.2, "ls": (0, (4, 1.2))}


def section(data: SettingData) -> Section | None:
    """Show the decay of the singular values; nothing without spectra."""
    decay = _decay_of(data)
    if decay is None:
        return None
    return Section(
        name=f"decay{data.suffix}",
        title="How fast do the singular values fall?",
        figures=[_figure(data, decay)],
        reading=_reading(decay),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decay:
    """What the panels, the legend and the words share."""

    full: pd.DataFrame
    """spectra of full fine-tuning inside the layers"""
    curves: pd.DataFrame
    """full fine-tuning's σᵢ/σ₁ by layer, role and index"""
    adapter: Adapter | None
    """the adapter beside it"""
    beside: pd.DataFrame
    """the adapter's σᵢ/σ₁"""
    roles: Sequence[str]
    """one per panel"""
    layers: Sequence[int]
    """one line each"""
    floors: pd.DataFrame
    """noise floors as shares of σ₁, by role"""
    bottom: float
    """lower end of the vertical axis"""

    @property
    def colours(self) -> Mapping[int, str]:
        last = max(1, len(self.layers) - 1)
        return {layer: LIGHT[f"depth-{round(8 * n / last)}"] for n, layer in enumerate(self.layers)}

    def draw(self, on: Paper) -> None:
        count = len(self.roles)
        panels = on.panels(
            count, across=(3, 2), height=(2.25, 1.75), beside=(0.5, 0.7), sharex=True, sharey=True
        )
        across = min(count, 3 if on.wide else 2)
        clear = self.full.groupby(["layer", "role"])["resolvable"].all().to_dict()
        for position, (panel, role) in enumerate(zip(panels, self.roles, strict=True)):
            self._dress(panel, role)
            self._draw_role(panel, role, clear)
            if position % across == 0:
                panel.set_ylabel("σᵢ / σ₁")
            if position + across >= count:
                panel.set_xlabel("index i")
                panel.tick_params(labelbottom=True)
        on.legend(self._legend(), columns=(4, 2))

    def _dress(self, panel: Axes, role: str) -> None:
        panel.set_title(printable(role))
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_ylim(self.bottom, 1.4)
        panel.yaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    def _draw_role(self, panel: Axes, role: str, clear: Mapping[Any, bool]) -> None:
        mine = self.curves[self.curves["role"] == role]
        for layer in self.layers:
            rows = mine[mine["layer"] == layer]
            resolved = clear.get((layer, role), True)
            panel.plot(
                rows["index"],
                rows["relative"],
                color=self.colours[layer],
                lw=1.4 if resolved else 0.9,
                ls="-" if resolved else (0, (1, 1.5)),
            )
        beside = self.beside[self.beside["role"] == role]
        middle = beside.groupby("index", as_index=False)["relative"].median()
        panel.plot(middle["index"], middle["relative"], **BESIDE)
        for column, _, dashes in FLOORS:
            value = float(self.floors[column].get(role, math.nan))
            if value > self.bottom:
                panel.axhline(value, color=FAINT, lw=1, ls=dashes)

    def _legend(self) -> list[Entry]:
        entries: list[Entry] = []
        if len(self.curves):
            picked = self.layers[:: max(1, math.ceil(len(self.layers) / 6))]
            picked = picked if picked[-1] == self.layers[-1] else [*picked, self.layers[-1]]
            entries += [line(f"full, layer {layer}", self.colours[layer]) for layer in picked]
        if self.adapter is not None and len(self.beside):
            text = f"{method_name(self.adapter[0])}, rank {self.adapter[2]}: median"
            entries.append(Line2D([], [], label=text, **BESIDE))
        for column, text, dashes in FLOORS:
            if (self.floors[column] > self.bottom).any():
                entries.append(line(text, FAINT, lw=1, ls=dashes))
        return entries


def _decay_of(data: SettingData) -> _Decay | None:
    inside = data.spectra[data.spectra["layer"].notna()]
    full = inside[inside["method"] == "full"]
    adapter = shown_adapter(data.spectra, highest=False)
    lora = rows_of(inside, adapter)
    values = data.study.singular_values
    curves, beside = _curves(values, full), _curves(values, lora)
    both = pd.concat([curves, beside])
    if not len(both):
        return None
    first = full if len(full) else lora
    positive = both.loc[both["relative"] > 0, "relative"]
    least = float(positive.min()) if len(positive) else 0.1
    return _Decay(
        full=full,
        curves=curves,
        adapter=adapter,
        beside=beside,
        roles=roles_inside(first),
        layers=sorted({int(layer) for layer in both["layer"]}),
        floors=_floors(values, first),
        bottom=max(10.0**-DECADES_SHOWN, min(least / 1.5, 0.1)),
    )


def _curves(values: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the median over seeds of σᵢ/σ₁ by layer, role and (thinned) index."""
    rows = values.merge(spectra[["run_id", "module"]], on=["run_id", "module"], how="inner")
    largest = rows.groupby(["run_id", "module"])["singular_value"].transform("max")
    rows = rows.assign(relative=rows["singular_value"] / largest.where(largest > 0))
    count = int(rows["index"].max()) if len(rows) else 1
    picked = np.unique(np.round(np.geomspace(1, count, INDICES_SHOWN)).astype(int))
    rows = rows[rows["index"].isin(picked)]
    return rows.groupby(["layer", "role", "index"])["relative"].median().reset_index()


def _floors(values: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the noise floors as shares of σ₁, medians over layers and seeds, by role."""
    first = values.loc[values["index"] == 1, ["run_id", "module", "singular_value"]]
    rows = spectra.merge(first, on=["run_id", "module"], how="inner")
    rows = rows[rows["singular_value"] > 0]
    shares = rows[[column for column, _, _ in FLOORS]].div(rows["singular_value"], axis=0)
    return shares.groupby(rows["role"]).median()


def _figure(data: SettingData, decay: _Decay) -> Figure:
    shown = data.columns(
        "method target adapter_rank layer role",
        Column("index", "i", "rank", "index of the singular value; 1 is the largest"),
        Column("relative", "σᵢ/σ₁", "rate", "median over seeds"),
    )
    return draw_figure(
        decay.draw,
        name=f"singular_value_decay{data.suffix}",
        title="Decay of the singular values by layer",
        caption=_caption(decay),
        note=(
            "One row per point: the median over seeds of σᵢ/σ₁. Indices are thinned evenly on the "
            "logarithmic axis; singular_values.csv has all of them."
        ),
        frame=_numbers(decay, [column.name for column in shown]),
        columns=shown,
    )


def _numbers(decay: _Decay, names: list[str]) -> pd.DataFrame:
    parts = []
    full = ("full", "", None)
    for curves, of in ((decay.curves, full), (decay.beside, decay.adapter or full)):
        if len(curves):
            method, target, rank = of
            ranks = pd.array([rank] * len(curves), dtype="Int64")
            parts.append(curves.assign(method=method, target=target, adapter_rank=ranks))
    keys = ["method", "target", "adapter_rank", "layer", "role"]
    return pd.concat([rows for _, rows in groups(pd.concat(parts)[names], keys)])


def _caption(decay: _Decay) -> str:
    caption = "Singular values of ΔW as shares of the largest, both axes logarithmic."
    if len(decay.curves):
        seeds = counted(decay.full["run_id"].nunique(), "seed")
        caption += f" One line per layer: the median over {seeds} of full fine-tuning."
    if decay.adapter is not None and len(decay.beside):
        method, target, rank = decay.adapter
        caption += (
            f" The dashed coloured line is {adapter_name(method, target)} at rank {rank}: the "
            "median over layers and seeds."
        )
    return caption


def _reading(decay: _Decay) -> list[str]:
    reading = [
        "Grey horizontal lines are the rounding floor of the stored weights (short dashes) and the "
        "Marchenko–Pastur edge of noise (long dashes): medians over layers, as shares of σ₁.",
        "Dotted lines are updates that are not resolvable above the rounding of the stored "
        "weights. A line of an adapter ends at its rank, because it has no further singular value.",
    ]
    hidden = [
        text
        for column, text, _ in FLOORS
        if len(decay.floors) and not (decay.floors[column] > decay.bottom).any()
    ]
    if hidden:
        verb = "lies" if len(hidden) == 1 else "lie"
        reading[0] += f" The {' and the '.join(hidden)} {verb} below the axis here."
    return reading
