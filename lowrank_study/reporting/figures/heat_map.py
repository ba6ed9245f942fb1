"""Rank by layer and module: a cell a matrix, full fine-tuning beside an adapter.

    figure = rank_heat_map(data)      # None without spectra
    figure.table.frame                # one row a cell

Numbers are ranks, colours their shares of the largest rank that is possible.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from lowrank_study.reporting.columns import (
    CONFIGURATION_COLUMNS,
    LAYER,
    MODULE_RANK_COLUMNS,
    ROLE,
)
from lowrank_study.reporting.display import MISSING, adapter_name, printable, written
from lowrank_study.reporting.figures.drawing import (
    FAINT,
    INK,
    Entry,
    Figure,
    Paper,
    draw_figure,
)
from lowrank_study.reporting.figures.shown_adapter import rows_of, shown_adapter
from lowrank_study.reporting.svg import LEVEL_TEXT, LEVELS, LIGHT
from lowrank_study.reporting.tables import SettingData, records, roles_inside

HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": FAINT, "hatch": "/////", "lw": 0.0}
MANY_LAYERS = 16
CAPTION = (
    "Numbers are 90 % energy ranks: how many singular values of ΔW hold 90 % of its squared "
    "Frobenius norm; medians over seeds. Colour is that rank as a share of the largest one "
    "possible, min(out, in) for full fine-tuning and the adapter rank for an adapter, so "
    "numbers of the two maps can’t be set side by side. Hatched: at least one seed’s update "
    "is not resolvable above the rounding of the stored weights; a number in brackets is "
    "the median of the seeds that are. A dash: no update of that matrix, because the adapter "
    "leaves it alone or the layer has none."
)


def rank_heat_map(data: SettingData) -> Figure | None:
    """Draw the 90 % energy rank by layer and role as a heat map; None without spectra."""
    parts = _parts(data)
    if not parts:
        return None
    inside = data.modules[data.modules["layer"].notna()]
    roles = [role for role in roles_inside(data.spectra) if role in set(inside["role"])]
    cells = pd.concat([rows for _, rows in parts])
    layers = sorted({int(layer) for layer in cells["layer"]})
    share = float(np.nan_to_num(cells["median_share_of_possible"].max()))
    top = min(1.0, max(0.1, math.ceil(share * 10) / 10))
    many = len(layers) > MANY_LAYERS

    def draw(on: Paper) -> None:
        longest = max(len(part) for role in roles for part in _two_lines(role).split("\n"))
        # Labels stand at 45°: a few layers leave no room beside long ones.
        height = (0.2 if many else 0.3) * len(layers) + 1.5 + 0.055 * max(0, longest - 9)
        panels = on.panels(len(parts), across=(2, 1), height=(height, height - 0.2), sharey=on.wide)
        for position, (panel, (title, rows)) in enumerate(zip(panels, parts, strict=True)):
            panel.set_title(printable(title))
            dress(panel)
            for row in records(rows):
                draw_cell(panel, row)
            for x, y in empty_cells(rows):
                panel.text(x, y, MISSING, ha="center", va="center", color=FAINT)
            if position == 0 or not on.wide:
                panel.set_ylabel("layer")
        on.legend(
            legend(),
            columns=(6, 3),
            handlelength=1.2,
            columnspacing=1.2,
            title="share of the largest possible rank (every second step shown)",
            title_fontsize=float(panels[0].title.get_fontsize()) - 0.5,
            alignment="left",
        )

    def dress(panel: Axes) -> None:
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

    def draw_cell(panel: Axes, row: dict[str, Any]) -> None:
        x, y = roles.index(row["role"]), layers.index(row["layer"])
        share, rank = row["median_share_of_possible"], row["median_energy_rank_90"]
        whole = row["resolvable"] == row["n"]
        level = 0 if math.isnan(share) else min(LEVELS - 1, int(share / top * LEVELS))
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
            fontsize=6.5 if many else None,
            color=LIGHT[LEVEL_TEXT[level]] if whole else INK,
            bbox=None if whole else {"facecolor": LIGHT["paper"], "lw": 0, "pad": 1.0},
        )

    def empty_cells(rows: pd.DataFrame) -> list[tuple[int, int]]:
        present = set(zip(rows["role"], rows["layer"], strict=True))
        return [
            (x, y)
            for x, role in enumerate(roles)
            for y, layer in enumerate(layers)
            if (role, layer) not in present
        ]

    def legend() -> list[Entry]:
        entries: list[Entry] = []
        for level in range(0, LEVELS, 2):
            low, high = (100 * top * edge / LEVELS for edge in (level, level + 1))
            entries.append(Patch(color=LIGHT[f"level-{level}"], label=f"{low:.0f}–{high:.0f} %"))
        if (cells["resolvable"] < cells["n"]).any():
            entries.append(Patch(label="not resolvable", **HATCHED))
        return entries

    return draw_figure(
        draw,
        name=f"rank_heat_map{data.suffix}",
        title="Rank by layer and module",
        caption=CAPTION,
        note="One row a cell.",
        frame=cells,
        columns=(*CONFIGURATION_COLUMNS, LAYER, ROLE, *MODULE_RANK_COLUMNS),
    )


def _parts(data: SettingData) -> list[tuple[str, pd.DataFrame]]:
    """Give the maps with their titles: full fine-tuning, and the adapter beside it."""
    inside = data.modules[data.modules["layer"].notna()]
    parts = [("full fine-tuning", inside[inside["method"] == "full"])]
    adapter = shown_adapter(data.spectra, highest=True)
    if adapter is not None:
        method, target, rank = adapter
        title = f"{adapter_name(method, target)}, rank {rank}"
        parts.append((title, rows_of(inside, adapter)))
    return [(title, rows) for title, rows in parts if len(rows)]


def _two_lines(role: str) -> str:
    """Break a long role in two at the underscore nearest its middle."""
    text = printable(role)
    breaks = [place for place, character in enumerate(text) if character in "_."]
    if len(text) < 8 or not breaks:
        return text if len(text) <= 18 else f"{text[:16]}…"
    middle = min(breaks, key=lambda place: abs(place - len(text) / 2))
    parts = (text[:middle], text[middle + 1 :])
    return "\n".join(part if len(part) <= 14 else f"{part[:12]}…" for part in parts)
