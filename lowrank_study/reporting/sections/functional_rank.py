"""How much of full fine-tuning's update is needed: its score when ΔW is truncated to rank k.

The truncated update shows what training put into ΔW. LoRA at the same rank shows what training
can find there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from lowrank_study.answers.functional_rank import score_by_kept_rank
from lowrank_study.answers.rows import records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    counted,
    enumeration,
    in_points,
    percent,
    points,
    printable,
    written,
)
from lowrank_study.reporting.drawing.figure import (
    DOTTED,
    FAINT,
    INK,
    Entry,
    Figure,
    Paper,
    baseline_entries,
    draw_baseline,
    draw_figure,
    line,
)
from lowrank_study.reporting.drawing.rank_axis import Series, series_of
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData

NOTHING = -1.1
"""Place of k = 0 on the axis, left of rank 1."""
KEPT_COLUMNS = (
    Column(
        "scope",
        "kept of ΔW",
        "text",
        "all: rank k of every matrix; noise_cut: the directions above each matrix’s noise; "
        "layers, roles: one layer or role as a whole",
    ),
    Column("part", "part", "text", "the layer or role that is kept"),
    Column("kept_rank", "k", "rank", "directions kept of every matrix’s ΔW"),
)
SCORE_COLUMNS = (
    "mean_test_score test_low_95 test_high_95",
    Column("n", "n", "count", "seeds"),
)
LOSS_COLUMNS = (
    Column(
        "mean_difference", "to whole ΔW", "decimal", "mean difference to the same seeds’ whole ΔW"
    ),
    Column(
        "difference_low_95", "95 % low", "decimal", "95 % interval of the difference, lower end"
    ),
    Column("difference_high_95", "95 % high", "decimal", "95 % interval, upper end"),
    Column("energy_kept", "energy kept", "percent", "share of Σ‖ΔW‖²_F over all matrices"),
    Column("kept_directions", "directions kept", "rank", "over all matrices, mean over seeds"),
)
TRUNCATION_COLUMNS = (*KEPT_COLUMNS, *SCORE_COLUMNS, *LOSS_COLUMNS)


def section(data: SettingData) -> Section | None:
    """Show the score at every kept rank; nothing if no update was truncated."""
    table = score_by_kept_rank(data.study.truncation, data.runs)
    if not (table["scope"] == "all").any():
        return None
    return Section(
        name=f"functional{data.suffix}",
        title="How much of the update is needed?",
        figures=[_figure(data, table)],
        findings=_findings(data, table),
        reading=[
            "Each matrix of ΔW, embeddings included, is replaced by its best approximation of rank "
            "k. Biases, norms and the new head keep their tuned values, so k = 0 is these alone "
            "and not the pretrained model.",
            "The truncated update shows what ΔW contains. An adapter trained at that rank shows "
            "what training can find.",
            "“Above noise” keeps the directions above each matrix’s Gavish–Donoho threshold.",
        ],
        tables=[_table(data, table)],
    )


def _table(data: SettingData, table: pd.DataFrame) -> Table:
    return Table(
        name=f"score_by_kept_rank{data.suffix}",
        title=f"{data.metric.label.capitalize()} of truncated updates",
        note=(
            "One row per truncation of full fine-tuning’s ΔW. Intervals are 95 % Student t "
            "intervals of the mean over seeds."
        ),
        frame=table,
        columns=data.columns(*TRUNCATION_COLUMNS),
    )


# ---------------------------------------------------------------- in words


def _findings(data: SettingData, table: pd.DataFrame) -> list[Finding]:
    kept = records(table[table["scope"] == "all"])
    whole = kept[-1]
    low = [row for row in kept[:-1] if row["kept_rank"] > 0]
    text = (
        f"With its whole ΔW, full fine-tuning has a mean test {data.metric.label} of "
        f"{_score(whole)} ({counted(int(whole['n']), 'seed')})."
    )
    if low:
        text += f" With ΔW truncated to rank {int(low[0]['kept_rank'])} it has {_score(low[0])}."
    if kept[0]["kept_rank"] == 0:
        text += f" Without ΔW, the tuned head, biases and norms alone give {_score(kept[0])}."
    text += f" {_inside(data, kept)}"
    found = [Finding(topic="Truncated update", text=text)]
    if trained := _trained_there(data, kept):
        found.append(Finding(topic="Truncated and trained", text=trained))
    for row in records(table[table["scope"] == "noise_cut"]):
        text = (
            f"The directions above noise give {_score(row)}. They are "
            f"{written(row['kept_directions'], 'rank')} of "
            f"{written(whole['kept_directions'], 'rank')} directions and hold "
            f"{percent(row['energy_kept'])} of the energy."
        )
        found.append(Finding(topic="Above noise", text=text))
    best = [_best_part(data, table, scope) for scope in ("layers", "roles")]
    if known := [part for part in best if part]:
        text = f"If only one layer or role keeps its ΔW, the best are {enumeration(known)}."
        found.append(Finding(topic="Single parts", text=text))
    return found


def _inside(data: SettingData, kept: list[dict[str, Any]]) -> str:
    interval = f"95{NARROW_SPACE}% interval"
    if kept[-1]["n"] < 2:
        return "With one seed there is no interval to compare ranks with."
    row = _lowest_inside(kept)
    if row is kept[-1]:
        return f"Every mean below the full rank lies outside the whole update’s {interval}."
    difference, rank = row["mean_difference"], int(row["kept_rank"])
    ends = row["difference_low_95"], row["difference_high_95"]
    low, high = (in_points(end, data.metric, sign="+") for end in ends)
    return (
        f"From rank {rank} on ({percent(row['energy_kept'])} of the energy), every mean lies "
        f"inside the whole update’s {interval}. At rank {rank} the mean is "
        f"{points(abs(difference), data.metric)} {'above' if difference >= 0 else 'below'} the "
        f"same seeds’ whole update ({interval} {low} to {high})."
    )


def _lowest_inside(kept: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the lowest rank from which on every mean lies in the whole update's interval."""
    found = whole = kept[-1]
    for row in reversed(kept[:-1]):
        if not whole["test_low_95"] <= row["mean_test_score"] <= whole["test_high_95"]:
            break
        found = row
    return found


def _trained_there(data: SettingData, kept: list[dict[str, Any]]) -> str:
    """Return what adapters reach at the lowest rank that was both trained and kept."""
    ranked = data.chosen[data.chosen["adapter_rank"].notna()]
    by_rank = {int(row["kept_rank"]): row for row in kept}
    shared = sorted({int(rank) for rank in ranked["adapter_rank"]} & set(by_rank))
    if not shared:
        return ""
    rank = shared[0]
    found = [
        f"{_score(row)} with {adapter_name(row['method'], row['target'])}"
        for row in records(ranked[ranked["adapter_rank"] == rank])
    ]
    return (
        f"Training at rank {rank} reaches {enumeration(found)}; truncation to rank {rank} leaves "
        f"{_score(by_rank[rank])}."
    )


def _best_part(data: SettingData, table: pd.DataFrame, scope: str) -> str:
    rows = records(table[table["scope"] == scope])
    if not rows:
        return ""
    best = data.best(rows)
    name = printable(best["part"])
    if scope == "roles":
        part = f"the role {name}"
    else:
        part = f"layer {name}" if name.isdecimal() else f"everything {name} the layers"
    return f"{part} ({_score(best)}, {counted(int(best['n']), 'seed')})"


def _score(row: dict[str, Any]) -> str:
    return f"{row['mean_test_score']:.3f}"


# ---------------------------------------------------------------- drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panel and the legend share."""

    label: str
    kept: pd.DataFrame
    above_noise: pd.DataFrame
    trained: pd.DataFrame
    series: Sequence[Series]

    @property
    def whole(self) -> dict[str, Any]:
        return records(self.kept)[-1]

    @property
    def nothing(self) -> pd.DataFrame:
        return self.kept[self.kept["kept_rank"] == 0]

    def draw(self, on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.9, 4.2))[0]
        draw_baseline(panel, self.whole)
        for level in self.nothing["mean_test_score"]:
            panel.axhline(level, color=FAINT, lw=1, ls=DOTTED)
        for index, one in enumerate(self.series):
            rows = one.rows(self.trained).sort_values("adapter_rank")
            shift = 0.09 * (index // 2 + 1) * (-1) ** index  # the truncated update is in the middle
            style = {**one.style, **_marks(rows), "ms": 4.5, "lw": 1.4}
            panel.errorbar(_places(rows["adapter_rank"]) + shift, **style, elinewidth=0.9)
        style = {**_marks(self.kept), "color": INK, "marker": "o", "ms": 5, "lw": 1.6, "zorder": 3}
        panel.errorbar(_places(self.kept["kept_rank"]), **style, elinewidth=0.9)
        self._dress(panel, wide=on.wide)
        on.legend(self._legend(), columns=(2, 1))

    def _dress(self, panel: Axes, *, wide: bool) -> None:
        ranks = self.kept["kept_rank"]
        ticks, names = list(_places(ranks)), [str(rank) for rank in ranks]
        if not wide and len(ticks) > 1 and ticks[-1] - ticks[-2] < 0.9:
            names[-2] = ""  # the full rank stands where the next octave's label would start
        if len(self.above_noise):
            end = math.log2(float(self.whole["kept_rank"])) + 1.6
            marks = _marks(self.above_noise)
            panel.errorbar([end], **marks, color=INK, marker="D", ms=5, ls="none")
            ticks, names = [*ticks, end], [*names, "above\nnoise"]
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.set_xticks(ticks, names)
        panel.grid(False, axis="x")
        panel.set_xlabel("rank k kept of ΔW, or trained")
        panel.set_ylabel(f"test {self.label}")

    def _legend(self) -> list[Entry]:
        entries: list[Entry] = [
            line("full fine-tuning, ΔW truncated to rank k", INK, marker="o", ms=5),
            *(one.entry(f"{adapter_name(one.method, one.target)}, trained") for one in self.series),
            *baseline_entries(self.whole),
        ]
        if len(self.nothing):
            entries.append(line("k = 0: only head, biases and norms", FAINT, lw=1, ls=DOTTED))
        return entries


def _figure(data: SettingData, table: pd.DataFrame) -> Figure:
    kept = table[table["scope"] == "all"]
    above_noise = table[table["scope"] == "noise_cut"]
    trained = data.chosen[data.chosen["adapter_rank"].notna()]
    drawing = _Drawing(
        label=data.metric.axis_label,
        kept=kept,
        above_noise=above_noise,
        trained=trained,
        series=series_of(trained),
    )
    own = pd.concat([kept, above_noise]).assign(method="full", target="", adapter_rank=None)
    names = ["method", "target", "adapter_rank"]
    names += ["mean_test_score", "test_low_95", "test_high_95", "n"]
    frame = pd.concat([own.astype({"adapter_rank": "Int64"}), trained[names]], ignore_index=True)
    others = [column.name for column in (*KEPT_COLUMNS, *LOSS_COLUMNS)]
    return draw_figure(
        drawing.draw,
        name=f"functional_rank{data.suffix}",
        title="Functional rank: score against the kept rank of ΔW",
        caption=(
            "Black: full fine-tuning with ΔW truncated to rank k. Coloured: adapters trained at "
            "rank k. Marks are means over seeds with their 95 % Student t intervals. The line and "
            "the band are full fine-tuning with its whole ΔW. The vertical axis does not start at "
            "zero."
        ),
        note="One row per truncation of full fine-tuning’s update, or per trained rank.",
        frame=frame[[*names, *others]],
        columns=data.columns(
            "method target adapter_rank", *KEPT_COLUMNS, *SCORE_COLUMNS, *LOSS_COLUMNS
        ),
    )


def _places(ranks: "pd.Series[int]") -> npt.NDArray[np.float64]:
    values = ranks.to_numpy(dtype=np.float64)
    return np.array([NOTHING if rank == 0 else math.log2(rank) for rank in values])


def _marks(rows: pd.DataFrame) -> dict[str, Any]:
    mean = rows["mean_test_score"].to_numpy(dtype=np.float64)
    return {"y": mean, "yerr": np.nan_to_num(rows["test_high_95"].to_numpy(np.float64) - mean)}
