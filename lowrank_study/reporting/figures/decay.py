"""How fast singular values of the updates fall, layer by layer, one panel a role.

    figure = singular_value_decay(data)     # None without spectra
    figure.table.frame                      # the median over seeds of σᵢ/σ₁

Both axes are logarithmic, so a power law is a straight line. Nothing is fitted.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from lowrank_study.reporting.columns import CONFIGURATION_COLUMNS, LAYER, ROLE
from lowrank_study.reporting.display import Column, adapter_name, counted, method_name, printable
from lowrank_study.reporting.figures.drawing import (
    FAINT,
    Entry,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.figures.rank_axis import series_colour
from lowrank_study.reporting.figures.shown_adapter import Adapter, rows_of, shown_adapter
from lowrank_study.reporting.svg import LIGHT
from lowrank_study.reporting.tables import SettingData, groups, roles_inside

DECADES_SHOWN = 4
"""A spectrum is shown down to 10⁻⁴ of its largest singular value."""
INDICES_SHOWN = 56
FLOORS = (
    ("rounding_floor", "rounding floor", (0, (2, 2))),
    ("mp_edge", "noise edge", (0, (6, 2))),
)
BESIDE: dict[str, Any] = {"color": series_colour(2), "lw": 2.2, "ls": (0, (4, 1.2))}

COLUMNS = (
    *CONFIGURATION_COLUMNS,
    LAYER,
    ROLE,
    Column("index", "i", "rank", "index, 1 is largest"),
    Column("relative", "σᵢ/σ₁", "rate", "median over seeds"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decay:
    """What is drawn."""

    full: pd.DataFrame
    """spectra of full fine-tuning, inside the layers"""
    curves: pd.DataFrame
    """of full fine-tuning: σᵢ/σ₁ by layer, role and index"""
    adapter: Adapter | None
    """that stands beside it"""
    beside: pd.DataFrame
    """its curves"""
    roles: list[str]
    """one a panel"""
    floors: pd.DataFrame
    """noise floors as shares of σ₁, by role"""

    @property
    def both(self) -> pd.DataFrame:
        return pd.concat([self.curves, self.beside])

    @property
    def bottom(self) -> float:
        """Where the vertical axis ends."""
        relative = self.both["relative"]
        positive = relative[relative > 0]
        least = float(positive.min()) if len(positive) else 0.1
        return max(10.0**-DECADES_SHOWN, min(least / 1.5, 0.1))


def singular_value_decay(data: SettingData) -> Figure | None:
    """Draw σᵢ/σ₁ against i by layer and role for full fine-tuning; None without spectra."""
    decay = _decay_of(data)
    if decay is None:
        return None
    curves, adapter, bottom = decay.curves, decay.adapter, decay.bottom
    layers = sorted({int(layer) for layer in decay.both["layer"]})
    colours = {
        layer: LIGHT[f"depth-{round(8 * position / max(1, len(layers) - 1))}"]
        for position, layer in enumerate(layers)
    }
    middle = decay.beside.groupby(["role", "index"], as_index=False)["relative"].median()
    clear = decay.full.groupby(["layer", "role"])["resolvable"].all()

    def draw(on: Paper) -> None:
        count = len(decay.roles)
        panels = on.panels(
            count, across=(3, 2), height=(2.25, 1.75), beside=(0.5, 0.7), sharex=True, sharey=True
        )
        across = min(count, 3 if on.wide else 2)
        for panel, role in zip(panels, decay.roles, strict=True):
            draw_role(panel, role)
        for position, panel in enumerate(panels):
            if position % across == 0:
                panel.set_ylabel("σᵢ / σ₁")
            if position + across >= count:
                panel.set_xlabel("index i")
                panel.tick_params(labelbottom=True)
        on.legend(legend(), columns=(4, 2))

    def draw_role(panel: Axes, role: str) -> None:
        panel.set_title(printable(role))
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        for layer in layers:
            rows = curves[(curves["role"] == role) & (curves["layer"] == layer)]
            resolved = bool(clear.get((layer, role), True))
            panel.plot(
                rows["index"],
                rows["relative"],
                color=colours[layer],
                lw=1.4 if resolved else 0.9,
                ls="-" if resolved else (0, (1, 1.5)),
            )
        rows = middle[middle["role"] == role]
        panel.plot(rows["index"], rows["relative"], **BESIDE)
        for column, _, dashes in FLOORS:
            value = float(decay.floors[column].get(role, math.nan))
            if value > bottom:
                panel.axhline(value, color=FAINT, lw=1, ls=dashes)
        panel.set_ylim(bottom, 1.4)
        panel.yaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    def legend() -> list[Entry]:
        entries: list[Entry] = []
        if len(curves):
            picked = layers[:: max(1, math.ceil(len(layers) / 6))]
            picked = picked if picked[-1] == layers[-1] else [*picked, layers[-1]]
            entries += [line(f"full, layer {layer}", colours[layer]) for layer in picked]
        if adapter is not None and len(middle):
            text = f"{method_name(adapter[0])}, rank {adapter[2]}: median"
            entries.append(Line2D([], [], label=text, **BESIDE))
        for column, text, dashes in FLOORS:
            if (decay.floors[column] > bottom).any():
                entries.append(line(text, FAINT, lw=1, ls=dashes))
        return entries

    return draw_figure(
        draw,
        name=f"singular_value_decay{data.suffix}",
        title="Decay of the singular values by layer",
        caption=_caption(decay),
        note=(
            "One row a point: the median over seeds of σᵢ/σ₁. Indices are thinned evenly on "
            "the logarithmic axis; all are in singular_values.csv."
        ),
        frame=_numbers(decay),
        columns=COLUMNS,
    )


# ---------------------------------------------------------------- what is drawn


def _decay_of(data: SettingData) -> _Decay | None:
    inside = data.spectra[data.spectra["layer"].notna()]
    full = inside[inside["method"] == "full"]
    adapter = shown_adapter(data.spectra, highest=False)
    lora = rows_of(inside, adapter)
    values = data.study.singular_values
    curves, beside = _curves(values, full), _curves(values, lora)
    if not len(curves) and not len(beside):
        return None
    first = full if len(full) else lora
    return _Decay(
        full=full,
        curves=curves,
        adapter=adapter,
        beside=beside,
        roles=roles_inside(first),
        floors=_floors(values, first),
    )


def _curves(values: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Give the median over seeds of σᵢ/σ₁ by layer, role and (thinned) index."""
    rows = values.merge(spectra[["run_id", "module"]], on=["run_id", "module"], how="inner")
    largest = rows.groupby(["run_id", "module"])["singular_value"].transform("max")
    rows = rows.assign(relative=rows["singular_value"] / largest.where(largest > 0))
    count = int(rows["index"].max()) if len(rows) else 1
    picked = np.unique(np.round(np.geomspace(1, count, INDICES_SHOWN)).astype(int))
    rows = rows[rows["index"].isin(picked)]
    return rows.groupby(["layer", "role", "index"])["relative"].median().reset_index()


def _floors(values: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Give the noise floors as shares of σ₁, the median over layers and seeds, by role."""
    first = values.loc[values["index"] == 1, ["run_id", "module", "singular_value"]]
    rows = spectra.merge(first, on=["run_id", "module"], how="inner")
    rows = rows[rows["singular_value"] > 0]
    shares = rows[[column for column, _, _ in FLOORS]].div(rows["singular_value"], axis=0)
    return shares.groupby(rows["role"]).median()


def _numbers(decay: _Decay) -> pd.DataFrame:
    parts = []
    full = ("full", "", None)
    for curves, of in ((decay.curves, full), (decay.beside, decay.adapter or full)):
        if len(curves):
            method, target, rank = of
            ranks = pd.array([rank] * len(curves), dtype="Int64")
            parts.append(curves.assign(method=method, target=target, adapter_rank=ranks))
    table = pd.concat(parts)[[column.name for column in COLUMNS]]
    keys = ["method", "target", "adapter_rank", "layer", "role"]
    return pd.concat([rows for _, rows in groups(table, keys)])


def _caption(decay: _Decay) -> str:
    caption = "Singular values of the update ΔW as shares of the largest, both axes logarithmic."
    if len(decay.curves):
        seeds = counted(decay.full["run_id"].nunique(), "seed")
        caption += (
            f" One line a layer, the median over {seeds} of full fine-tuning; dotted lines "
            f"are updates that are not resolvable above the rounding of the stored weights."
        )
    if decay.adapter is not None and len(decay.beside):
        method, target, rank = decay.adapter
        caption += (
            f" The dashed coloured line is {adapter_name(method, target)} at "
            f"rank {rank}, the median over layers and seeds; it ends at its rank because a "
            f"product of rank {rank} has no further singular value."
        )
    caption += (
        " Grey horizontal lines: the floor that rounding of the stored weights leaves (short "
        "dashes) and the Marchenko–Pastur edge of noise (long dashes), each the median over "
        "layers, as shares of σ₁."
    )
    hidden = [
        text
        for column, text, _ in FLOORS
        if len(decay.floors) and not (decay.floors[column] > decay.bottom).any()
    ]
    if hidden:
        caption += f" Below the axis here: {' and '.join(hidden)}."
    return caption
