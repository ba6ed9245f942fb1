"""Functional rank: test accuracy of full fine-tuning's update cut to rank k, beside LoRA's.

    figure = functional_rank(data)     # None where nothing was truncated

The cut update asks what training had put into ΔW; LoRA at that rank asks what training finds.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from lowrank_study.answers.functional_rank import score_by_kept_rank
from lowrank_study.reporting.columns import CONFIGURATION_COLUMNS
from lowrank_study.reporting.display import adapter_name
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
from lowrank_study.reporting.figures.rank_axis import series_of
from lowrank_study.reporting.figures.score import DOTTED
from lowrank_study.reporting.shown_controls import CUT_COLUMNS, KEPT_COLUMNS, MEAN_COLUMNS
from lowrank_study.reporting.tables import SettingData

NOTHING = -1.1
"""Place of k = 0, left of rank 1."""
CAPTION = (
    "Black: every matrix of full fine-tuning’s update ΔW is replaced by its best approximation of "
    "rank k, embeddings too. Biases, norms and the new head keep their tuned values throughout, "
    "so k = 0 is these alone and not the pretrained model (dotted). “Above noise” keeps what "
    "stands above each matrix’s Gavish–Donoho cut. Coloured: LoRA trained at rank k. Marks are "
    "means over seeds, whiskers their 95 % Student t intervals; the line and the band are full "
    "fine-tuning uncut. The vertical axis does not begin at zero."
)


def functional_rank(data: SettingData) -> Figure | None:
    """Draw test accuracy against the kept rank of ΔW, LoRA trained at that rank beside it."""
    table = score_by_kept_rank(data.study.truncation, data.runs)
    cut = table[table["scope"] == "all"]
    if not len(cut):
        return None
    above_noise = table[table["scope"] == "noise_cut"]
    trained = data.chosen[data.chosen["adapter_rank"].notna()]
    series = series_of(trained)
    whole, nothing = cut.iloc[-1], cut[cut["kept_rank"] == 0]
    end = math.log2(float(whole["kept_rank"])) + 1.6

    def draw(on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.9, 4.2))[0]
        if whole["n"] > 1:
            panel.axhspan(whole["test_low_95"], whole["test_high_95"], color=BAND, lw=0, zorder=0)
        panel.axhline(whole["mean_test_score"], color=INK, lw=1.1, zorder=1)
        if len(nothing):
            level = float(nothing["mean_test_score"].iloc[0])
            panel.axhline(level, color=FAINT, lw=1, ls=DOTTED)
        for index, one in enumerate(series):
            rows = one.rows(trained).sort_values("adapter_rank")
            aside = 0.09 * (index // 2 + 1) * (-1) ** index  # the cut stands in the middle
            places = _places(rows["adapter_rank"]) + aside
            panel.errorbar(
                places, **_marks(rows), color=one.colour, marker=one.marker, ms=4.5, lw=1.4,
                elinewidth=0.9,
            )  # fmt: skip
        panel.errorbar(
            _places(cut["kept_rank"]), **_marks(cut), color=INK, marker="o", ms=5, lw=1.6,
            elinewidth=0.9, zorder=3,
        )  # fmt: skip
        if len(above_noise):
            panel.errorbar([end], **_marks(above_noise), color=INK, marker="D", ms=5, ls="none")
        ticks, names = list(_places(cut["kept_rank"])), [str(rank) for rank in cut["kept_rank"]]
        if not on.wide and len(ticks) > 1 and ticks[-1] - ticks[-2] < 0.9:
            names[-2] = ""  # the full rank stands where the next octave’s label would begin
        if len(above_noise):
            ticks, names = [*ticks, end], [*names, "above\nnoise"]
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.set_xticks(ticks, names)
        panel.grid(False, axis="x")
        panel.set_xlabel("rank k: kept of ΔW, or of the adapter")
        panel.set_ylabel("test accuracy")
        on.legend(legend(), columns=(2, 1))

    def legend() -> list[Entry]:
        entries: list[Entry] = [
            line("full fine-tuning’s ΔW, cut to rank k", INK, marker="o", ms=5),
            *(one.entry(f"{adapter_name(one.method, one.target)}, trained") for one in series),
            line("full fine-tuning, uncut: mean", INK, lw=1.1),
        ]
        if whole["n"] > 1:
            entries.append(Patch(color=BAND, label="full fine-tuning, uncut: 95 % interval"))
        if len(nothing):
            entries.append(line("k = 0: head, biases and norms alone", FAINT, lw=1, ls=DOTTED))
        return entries

    return draw_figure(
        draw,
        name=f"functional_rank{data.suffix}",
        title="Functional rank: what is needed of the update",
        caption=CAPTION,
        note="One row a cut of full fine-tuning’s update, or a rank at which LoRA was trained.",
        frame=_numbers(cut, above_noise, trained),
        columns=(*CONFIGURATION_COLUMNS, *CUT_COLUMNS, *MEAN_COLUMNS, *KEPT_COLUMNS),
    )


def _places(ranks: "pd.Series[int]") -> npt.NDArray[np.float64]:
    values = ranks.to_numpy(dtype=np.float64)
    return np.array([NOTHING if rank == 0 else math.log2(rank) for rank in values])


def _marks(rows: pd.DataFrame) -> dict[str, Any]:
    mean = rows["mean_test_score"].to_numpy(dtype=np.float64)
    return {"y": mean, "yerr": np.nan_to_num(rows["test_high_95"].to_numpy(np.float64) - mean)}


def _numbers(cut: pd.DataFrame, above_noise: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
    own = pd.concat([cut, above_noise]).assign(method="full", target="", adapter_rank=None)
    names = ["method", "target", "adapter_rank", *(c.name for c in MEAN_COLUMNS)]
    table = pd.concat([own.astype({"adapter_rank": "Int64"}), trained[names]], ignore_index=True)
    return table[[*names, *(c.name for c in (*CUT_COLUMNS, *KEPT_COLUMNS))]]
