"""What fine-tuning forgot: how much worse the models predict texts outside their task.

forgetting.section(data).figures[0].table.frame      # one row a configuration
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    adapter_name,
    counted,
    enumeration,
    is_missing,
    printable,
)
from lowrank_study.reporting.drawing.figure import (
    DOTTED,
    FAINT,
    Entry,
    Figure,
    Paper,
    baseline_entries,
    draw_baseline,
    draw_figure,
    line,
)
from lowrank_study.reporting.drawing.rank_axis import RankAxis, Series, series_of
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData

_COLUMNS = (
    Column("n", "n", "count", "seeds"),
    Column("bits_per_byte", "bits per byte", "decimal", "mean loss on the texts"),
    Column("change", "change", "decimal", "change from the model before fine-tuning"),
    Column("change_low_95", "95 % low", "decimal", "95 % interval of the change, lower end"),
    Column("change_high_95", "95 % high", "decimal", "95 % interval of the change, upper end"),
    Column("to_full", "to full", "decimal", "difference from full fine-tuning of the same seeds"),
    Column("to_full_low_95", "95 % low", "decimal", "95 % interval of the difference, lower end"),
    Column("to_full_high_95", "95 % high", "decimal", "95 % interval, upper end"),
)


def section(data: SettingData) -> Section | None:
    """Show how much each configuration forgot; nothing if it was not measured."""
    if data.study.forgetting is None:
        return None
    table = data.setting.rows(data.study.forgetting)
    if not len(table):
        return None
    return Section(
        name=f"forgetting{data.suffix}",
        title="What was forgotten?",
        figures=[_figure(data, table)],
        findings=_findings(table),
        reading=[
            "The texts are in no task of the suite, but the base model may have seen them in its "
            "pretraining.",
            "Models are compared at the learning rate that suits the task best. A higher rate "
            "forgets more, so a difference between ranks may be one between rates.",
        ],
    )


def _findings(table: pd.DataFrame) -> list[Finding]:
    rows = records(table)
    first = rows[0]
    level, documents = first["base_bits_per_byte"], counted(int(first["documents"]), "document")
    text = (
        f"Before fine-tuning, the model needs {level:.3f} bits per byte on {documents} of "
        f"{printable(first['texts'])}."
    )
    found = [Finding(topic="Base model", text=text)]
    for key, group in groups(table, ["method", "target"]):
        rising = records(group.sort_values("adapter_rank"))
        parts = [f"{_change(row)}{_at_rank(row)}" for row in rising]
        is_full = key["method"] == "full"
        name = "Full fine-tuning" if is_full else adapter_name(key["method"], key["target"])
        interval = "" if rising[0]["n"] < 2 else f", with 95{NARROW_SPACE}% intervals"
        text = f"The change in bits per byte is {enumeration(parts)}{interval}."
        found.append(Finding(topic=name, text=text))
    return found


def _change(row: dict[str, Any]) -> str:
    text = f"{row['change']:+.3f}"
    if is_missing(row["change_low_95"]):
        return text
    return f"{text} ({row['change_low_95']:+.3f} to {row['change_high_95']:+.3f})"


def _at_rank(row: dict[str, Any]) -> str:
    return "" if is_missing(row["adapter_rank"]) else f" at rank {int(row['adapter_rank'])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What the panel and the legend share."""

    table: pd.DataFrame
    axis: RankAxis
    series: Sequence[Series]
    full: dict[str, Any] | None

    def draw(self, on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.3, 3.6))[0]
        if self.full is not None:
            draw_baseline(panel, self.full)
        panel.axhline(0.0, color=FAINT, lw=1, ls=DOTTED)
        for index, one in enumerate(self.series):
            rows = one.rows(self.table).sort_values("adapter_rank")
            places = self.axis.places(rows) + 0.12 * (index - (len(self.series) - 1) / 2)
            change = rows["change"].to_numpy()
            ends = [change - rows["change_low_95"], rows["change_high_95"] - change]
            panel.errorbar(
                places, change, yerr=np.nan_to_num(ends), **one.style, ms=5, lw=1.6, elinewidth=0.9
            )
        self.axis.dress(panel)
        panel.set_ylabel("change of loss (bits per byte)")
        on.legend(self._legend(), columns=(2, 1))

    def _legend(self) -> list[Entry]:
        entries: list[Entry] = [one.entry(f"{one.label}: mean") for one in self.series]
        if self.full is not None:
            entries += baseline_entries(self.full)
        return [*entries, line("before fine-tuning", FAINT, lw=1, ls=DOTTED)]


def _figure(data: SettingData, table: pd.DataFrame) -> Figure:
    ends = {"change": "mean_test_score", "change_low_95": "test_low_95"}
    full = records(
        table[table["method"] == "full"].rename(columns={**ends, "change_high_95": "test_high_95"})
    )
    ranked = table[table["adapter_rank"].notna()]
    drawing = _Drawing(
        table=table,
        axis=RankAxis.of(ranked if len(ranked) else table),
        series=series_of(ranked),
        full=full[0] if full else None,
    )
    texts = printable(table["texts"].iloc[0])
    return draw_figure(
        drawing.draw,
        name=f"forgetting{data.suffix}",
        title="Loss on texts outside the task",
        caption=(
            f"The change of the loss on {texts} by fine-tuning; above zero, the model predicts "
            "them worse than before. Marks and the line are means over seeds, bars and the band "
            "their 95 % intervals over seeds and documents."
        ),
        note=(
            "One row per configuration at its chosen learning rate. Losses are sums over all "
            "documents, divided by their bytes. Intervals cover seeds and documents."
        ),
        frame=table,
        columns=data.columns("method target adapter_rank", *_COLUMNS),
    )
