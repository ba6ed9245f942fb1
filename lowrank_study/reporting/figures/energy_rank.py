"""How much of its rank an adapter uses: 90 % energy rank against adapter rank, and the bound.

    figure = energy_rank_against_adapter_rank(data)    # None where no adapter has a spectrum

The bound is drawn because it is the first thing to say of such a number.
"""

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from lowrank_study.reporting.columns import CONFIGURATION_COLUMNS, CONFIGURATION_RANK_COLUMNS
from lowrank_study.reporting.figures.drawing import (
    BAND,
    FAINT,
    INK,
    Entry,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.figures.rank_axis import RankAxis, series_of
from lowrank_study.reporting.tables import SettingData

DASHED = (0, (4, 2))
CAPTION = (
    "Median 90 % energy rank over the resolvable matrices of all layers and seeds; "
    "whiskers and the band hold the middle 80 % of matrices (they are no intervals of "
    "confidence). An adapter of rank r can’t have an energy rank above r (dashed line): "
    "that its rank is lower than full fine-tuning’s is built in, not found."
)


def energy_rank_against_adapter_rank(data: SettingData) -> Figure | None:
    """Draw the 90 % energy rank against the adapter rank, with its bound; None without."""
    known = data.configurations[data.configurations["median_energy_rank_90"].notna()]
    ranked, full = known[known["adapter_rank"].notna()], known[known["method"] == "full"]
    if not len(ranked):
        return None
    axis, series = RankAxis.of(ranked), series_of(ranked)

    def draw(on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.7, 3.9))[0]
        panel.set_yscale("log", base=2)
        axis.dress(panel)
        panel.set_ylabel("90 % energy rank of ΔW")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        octaves = np.array(panel.get_xlim())  # a line even where there is one rank only
        panel.plot(octaves, 2**octaves, color=FAINT, lw=1.1, ls=DASHED)
        panel.set_xlim(*octaves)
        if len(full):
            row = full.iloc[0]
            low, high = row["energy_rank_90_decile_1"], row["energy_rank_90_decile_9"]
            panel.axhspan(low, high, color=BAND, lw=0, zorder=0)
            panel.axhline(row["median_energy_rank_90"], color=INK, lw=1.1)
        for index, one in enumerate(series):
            rows = one.rows(ranked)
            middle = rows["median_energy_rank_90"].to_numpy()
            panel.errorbar(
                axis.places(rows) + (index - (len(series) - 1) / 2) * 0.12,
                middle,
                yerr=[
                    middle - rows["energy_rank_90_decile_1"].to_numpy(),
                    rows["energy_rank_90_decile_9"].to_numpy() - middle,
                ],
                color=one.colour,
                marker=one.marker,
                ms=5,
                elinewidth=0.9,
                lw=1.6,
            )
        on.legend(legend(), columns=(2, 1))

    def legend() -> list[Entry]:
        entries: list[Entry] = [one.entry(f"{one.label}: median") for one in series]
        entries.append(line("bound: the adapter rank", FAINT, lw=1.1, ls=DASHED))
        if len(full):
            entries.append(line("full fine-tuning: median", INK, lw=1.1))
            entries.append(Patch(color=BAND, label="full: middle 80 % of matrices"))
        return entries

    return draw_figure(
        draw,
        name=f"energy_rank_against_adapter_rank{data.suffix}",
        title="How much of its rank an adapter uses",
        caption=CAPTION,
        note="One row a configuration; matrices inside the layers only.",
        frame=pd.concat([full, ranked]),
        columns=(*CONFIGURATION_COLUMNS, *CONFIGURATION_RANK_COLUMNS),
    )
