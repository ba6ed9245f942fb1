"""Rank by layer and module: one cell per matrix, full fine-tuning beside an adapter.

Numbers are ranks; colours are their shares of the largest possible rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from lowrank_study.answers.roles import roles_inside
from lowrank_study.answers.rows import records
from lowrank_study.reporting.display import (
    MISSING,
    NARROW_SPACE,
    adapter_name,
    printable,
    written,
)
from lowrank_study.reporting.drawing.figure import FAINT, INK, Entry, Figure, Paper, draw_figure
from lowrank_study.reporting.drawing.svg import LEVEL_TEXT, LEVELS, LIGHT
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections.update_rank import MODULE_RANK_COLUMNS
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.update_ranks import rows_of, shown_adapter

HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": FAINT, "hatch": "/////", "lw": 0.0}
MANY_LAYERS = 16


def section(data: SettingData) -> Section | None:
    """Show the rank of each matrix; nothing without spectra."""
    maps = _maps(data)
    if not maps:
        return None
    return Section(
        name=f"modules{data.suffix}",
        title="Which matrices have the highest rank?",
        figures=[_figure(data, maps)],
        findings=_findings(data),
        reading=[
            "Colour is the 90 % energy rank as a share of the largest possible one: min(out, in) "
            "for full fine-tuning and the adapter rank for an adapter. The numbers of the two maps "
            "are therefore not comparable.",
            "In a hatched cell, at least one seed’s update is not resolvable above the rounding of "
            "the stored weights. The number in brackets is the median of the resolvable seeds.",
            "A dash means that the matrix has no update: the adapter does not change it, or the "
            "layer has no such matrix.",
        ],
    )


def _maps(data: SettingData) -> list[tuple[str, pd.DataFrame]]:
    """Return the maps with their titles: full fine-tuning, and the adapter beside it."""
    inside = data.modules[data.modules["layer"].notna()]
    maps = [("full fine-tuning", inside[inside["method"] == "full"])]
    adapter = shown_adapter(data.spectra, highest=True)
    if adapter is not None:
        method, target, rank = adapter
        maps.append((f"{adapter_name(method, target)}, rank {rank}", rows_of(inside, adapter)))
    return [(title, rows) for title, rows in maps if len(rows)]


def _findings(data: SettingData) -> list[Finding]:
    """Name full fine-tuning's matrices of highest and lowest rank."""
    rows = data.modules[(data.modules["method"] == "full") & data.modules["layer"].notna()]
    known = records(rows[rows["median_energy_rank_90"].notna()])
    if len(known) < 2:
        return []
    low, high = (
        f"{printable(row['role'])} of layer {int(row['layer'])} "
        f"({written(row['median_energy_rank_90'], 'rank')} of at most "
        f"{written(row['largest_possible_rank'], 'rank')})"
        for row in (
            min(known, key=lambda row: row["median_energy_rank_90"]),
            max(known, key=lambda row: row["median_energy_rank_90"]),
        )
    )
    text = (
        f"Full fine-tuning’s 90{NARROW_SPACE}% energy rank is highest in {high} and lowest in "
        f"{low}."
    )
    return [Finding(topic="Rank by matrix, full", text=text)]


def _figure(data: SettingData, maps: list[tuple[str, pd.DataFrame]]) -> Figure:
    inside = data.modules[data.modules["layer"].notna()]
    cells = pd.concat([rows for _, rows in maps])
    share = float(np.nan_to_num(cells["median_share_of_possible"].max()))
    drawing = _Drawing(
        maps=maps,
        cells=cells,
        roles=[role for role in roles_inside(data.spectra) if role in set(inside["role"])],
        layers=sorted({int(layer) for layer in cells["layer"]}),
        top=min(1.0, max(0.1, math.ceil(share * 10) / 10)),
    )
    return draw_figure(
        drawing.draw,
        name=f"rank_heat_map{data.suffix}",
        title="Rank by layer and module",
        caption=(
            "Numbers are 90 % energy ranks of ΔW, medians over seeds. Colour is that rank as a "
            "share of the largest possible one."
        ),
        note="One row per cell.",
        frame=cells,
        columns=data.columns("method target adapter_rank layer role", *MODULE_RANK_COLUMNS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the maps and the legend share."""

    maps: Sequence[tuple[str, pd.DataFrame]]
    cells: pd.DataFrame
    roles: Sequence[str]
    layers: Sequence[int]
    top: float
    """share of the largest possible rank at which the colours end"""

    @property
    def has_many_layers(self) -> bool:
        return len(self.layers) > MANY_LAYERS

    def draw(self, on: Paper) -> None:
        longest = max(len(part) for role in self.roles for part in _two_lines(role).split("\n"))
        # Labels stand at 45°, so a few layers leave no room beside long ones.
        height = (0.2 if self.has_many_layers else 0.3) * len(self.layers)
        height += 1.5 + 0.055 * max(0, longest - 9)
        panels = on.panels(
            len(self.maps), across=(2, 1), height=(height, height - 0.2), sharey=on.wide
        )
        for position, (panel, (title, rows)) in enumerate(zip(panels, self.maps, strict=True)):
            panel.set_title(printable(title))
            self._dress(panel)
            for row in records(rows):
                self._draw_cell(panel, row)
            self._draw_dashes(panel, rows)
            if position == 0 or not on.wide:
                panel.set_ylabel("layer")
        on.legend(
            self._legend(),
            columns=(6, 3),
            handlelength=1.2,
            columnspacing=1.2,
            title="share of the largest possible rank (every second step shown)",
            title_fontsize=float(panels[0].title.get_fontsize()) - 0.5,
            alignment="left",
        )

    def _dress(self, panel: Axes) -> None:
        panel.grid(False)
        for side in ("left", "bottom"):
            panel.spines[side].set_visible(False)
        panel.tick_params(length=0)
        panel.set_xlim(-0.5, len(self.roles) - 0.5)
        panel.set_ylim(len(self.layers) - 0.5, -0.5)
        names = [_two_lines(role) for role in self.roles]
        panel.set_xticks(range(len(self.roles)), names, rotation=45)
        for label in panel.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
        panel.set_yticks(range(len(self.layers)), [str(layer) for layer in self.layers])

    def _draw_cell(self, panel: Axes, row: dict[str, Any]) -> None:
        x, y = self.roles.index(row["role"]), self.layers.index(row["layer"])
        share, rank = row["median_share_of_possible"], row["median_energy_rank_90"]
        whole = row["resolvable"] == row["n"]
        level = 0 if math.isnan(share) else min(LEVELS - 1, int(share / self.top * LEVELS))
        filled: dict[str, Any] = {"facecolor": LIGHT[f"level-{level}"], "edgecolor": "none"}
        style = {**filled, "lw": 0.0} if whole else HATCHED
        panel.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, **style))
        if math.isnan(rank):
            return
        text = written(rank, "rank")
        panel.text(
            x,
            y,
            text if whole else f"({text})",
            ha="center",
            va="center",
            fontsize=6.5 if self.has_many_layers else None,
            color=LIGHT[LEVEL_TEXT[level]] if whole else INK,
            bbox=None if whole else {"facecolor": LIGHT["paper"], "lw": 0, "pad": 1.0},
        )

    def _draw_dashes(self, panel: Axes, rows: pd.DataFrame) -> None:
        present = set(zip(rows["role"], rows["layer"], strict=True))
        for x, role in enumerate(self.roles):
            for y, layer in enumerate(self.layers):
                if (role, layer) not in present:
                    panel.text(x, y, MISSING, ha="center", va="center", color=FAINT)

    def _legend(self) -> list[Entry]:
        entries: list[Entry] = []
        for level in range(0, LEVELS, 2):
            low, high = (100 * self.top * edge / LEVELS for edge in (level, level + 1))
            entries.append(Patch(color=LIGHT[f"level-{level}"], label=f"{low:.0f}–{high:.0f} %"))
        if (self.cells["resolvable"] < self.cells["n"]).any():
            entries.append(Patch(label="not resolvable", **HATCHED))
        return entries


def _two_lines(role: str) -> str:
    """Break a long role in two at the underscore nearest its middle."""
    text = printable(role)
    breaks = [place for place, character in enumerate(text) if character in "_."]
    if len(text) < 9 or not breaks:
        return text if len(text) <= 18 else f"{text[:16]}…"
    middle = min(breaks, key=lambda place: abs(place - len(text) / 2))
    parts = (text[:middle], text[middle + 1 :])
    return "\n".join(part if len(part) <= 14 else f"{part[:12]}…" for part in parts)
