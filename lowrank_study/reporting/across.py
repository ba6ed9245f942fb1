"""How far ranks keep up across tasks that are at different distances from pretraining.

The distance of a task is the loss of the base model on it, in bits per test document. Where the
documents of the tasks are translations of one another, it shows how much less the base model
knows one language than another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from lowrank_study.answers.paired_scores import TRUNCATED
from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    adapter_name,
    enumeration,
    percent,
    printable,
)
from lowrank_study.reporting.drawing.figure import FAINT, Figure, Paper, draw_figure, line
from lowrank_study.reporting.drawing.rank_axis import series_style
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections.sufficient_rank import verdicts
from lowrank_study.reporting.setting import SettingData

_FEWEST = 3
"""Tasks that make a figure."""
_COLUMNS = (
    Column("task", "task", "text", "name of the task"),
    Column("base_bits", "base model", "decimal", "bits per test document before fine-tuning"),
    Column("distance", "distance", "decimal", "bits over those of the nearest task"),
    Column("retention", "gain kept", "percent", "share of full fine-tuning’s gain"),
    Column("retention_low_95", "95 % low", "percent", "95 % interval, lower end"),
    Column("retention_high_95", "95 % high", "percent", "95 % interval, upper end"),
    Column("decision", "decision", "text", "of the test against full fine-tuning"),
)


def across_tasks(settings: Sequence[SettingData]) -> Section | None:
    """Show the gain that each rank keeps against the distance; nothing for few tasks."""
    table = distances(settings)
    if table is None:
        return None
    return Section(
        name="across_tasks",
        title="Does the rank depend on the distance from pretraining?",
        figures=[_figure(settings[0], table)],
        findings=_findings(settings, table),
        reading=[
            "The distance of a task is the base model’s loss in bits per test document, over that "
            "of the nearest task. It compares tasks only if their documents say the same.",
            "A share of the gain is relative to what full fine-tuning gains on the same task. "
            "Each task was tested alone, and no trend is tested.",
        ],
    )


def distances(settings: Sequence[SettingData]) -> pd.DataFrame | None:
    """Return one row per task, adapter and rank, from the nearest task on; None for few tasks."""
    parts = []
    for data in settings:
        base = data.runs.reindex(columns=["base_bits"])["base_bits"].dropna()
        tested = data.comparison[data.comparison["method"] != TRUNCATED]
        if len(base) and len(tested):
            parts.append(tested.assign(base_bits=float(base.iloc[0])))
    models = {data.setting.model for data in settings}
    if len(parts) < _FEWEST or len(models) > 1:
        return None
    table = pd.concat(parts, ignore_index=True)
    table["distance"] = table["base_bits"] / table["base_bits"].min()
    return table.sort_values(["base_bits", "method", "target", "adapter_rank"], ignore_index=True)


def _findings(settings: Sequence[SettingData], table: pd.DataFrame) -> list[Finding]:
    tasks = records(table.drop_duplicates("task"))
    nearest = tasks[0]
    read = [f"{row['distance']:.2f} times as many for {printable(row['task'])}" for row in tasks]
    text = (
        f"The base model needs {nearest['base_bits']:.0f} bits for a document of "
        f"{printable(nearest['task'])}. It needs {enumeration(read[1:])}."
    )
    found = [Finding(topic="Distance", text=text)]
    order = [row["task"] for row in tasks]
    by_task = {data.setting.task: verdicts(data) for data in settings}
    for key, _ in groups(table, ["method", "target"]):
        name = adapter_name(key["method"], key["target"])
        parts = []
        for task in order:
            for verdict in by_task[task]:
                if verdict.name == name:
                    enough = verdict.ranks("sufficient")
                    rank = f"rank {enough[0]}" if enough else "none"
                    parts.append(f"{rank} for {printable(task)}")
        text = f"The lowest rank that is shown to suffice is {enumeration(parts)}."
        found.append(Finding(topic=name, text=text))
    for key, group in groups(table, ["method", "target", "adapter_rank"]):
        rows = records(group)
        parts = [f"{percent(row['retention'])} for {printable(row['task'])}" for row in rows]
        name = adapter_name(key["method"], key["target"])
        text = f"It keeps {enumeration(parts)} of full fine-tuning’s gain."
        found.append(Finding(topic=f"{name} at rank {int(key['adapter_rank'])}", text=text))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panel and the legend share."""

    table: pd.DataFrame
    margin: float

    def draw(self, on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.6, 3.8))[0]
        panel.axhline(100.0, color=FAINT, lw=1)
        entries = []
        if self.margin:
            panel.axhline(100 * (1 - self.margin), color=FAINT, lw=1, ls=":")
        several = len(self.table[["method", "target"]].drop_duplicates()) > 1
        ranked = list(groups(self.table, ["method", "target", "adapter_rank"]))
        for index, (key, rows) in enumerate(ranked):
            kept = 100 * rows["retention"].to_numpy()
            ends = [
                kept - 100 * rows["retention_low_95"].to_numpy(),
                100 * rows["retention_high_95"].to_numpy() - kept,
            ]
            shift = 1 + 0.006 * (index - (len(ranked) - 1) / 2)
            style = {**series_style(index), "ms": 5, "lw": 1.4, "elinewidth": 0.9}
            panel.errorbar(rows["distance"] * shift, kept, yerr=np.nan_to_num(ends), **style)
            of = f"{adapter_name(key['method'], key['target'])}, " if several else ""
            label = f"{of}rank {int(key['adapter_rank'])}"
            entries.append(Line2D([], [], label=label, **series_style(index), ms=5))
        for row in records(self.table.drop_duplicates("task")):
            name = printable(row["task"]).removeprefix(self._prefix)
            panel.annotate(
                name, (row["distance"], 0.0), (0, 3), textcoords="offset points",
                xycoords=("data", "axes fraction"), ha="center", fontsize="small", color=FAINT,
            )  # fmt: skip
        panel.set_xlabel("loss of the base model, in bits per document over the nearest task’s")
        panel.set_ylabel("share of full fine-tuning’s gain (%)")
        entries.append(line("full fine-tuning", FAINT, lw=1))
        if self.margin:
            entries.append(line("margin", FAINT, lw=1, ls=":"))
        on.legend(entries, columns=(3, 2))

    @property
    def _prefix(self) -> str:
        """Return what the names of all tasks begin with, up to an underscore."""
        names = [printable(name) for name in self.table["task"].unique()]
        shared = 0
        while all(len(name) > shared and name[shared] == names[0][shared] for name in names):
            shared += 1
        return names[0][:shared].rpartition("_")[0] + "_" if "_" in names[0][:shared] else ""


def _figure(data: SettingData, table: pd.DataFrame) -> Figure:
    drawing = _Drawing(table=table, margin=float(table["margin_share"].iloc[0] or 0.0))
    return draw_figure(
        drawing.draw,
        name="across_tasks",
        title="Gain kept against the distance from pretraining",
        caption=(
            "Each mark is the share of full fine-tuning’s gain over the base model that an adapter "
            f"keeps, with its 95{NARROW_SPACE}% interval over seeds and test documents. The "
            "vertical axis does not start at zero."
        ),
        note="One row per task, adapter and rank, from the nearest task on.",
        frame=table,
        columns=data.columns(*_COLUMNS[:3], "method target adapter_rank", *_COLUMNS[3:]),
    )
