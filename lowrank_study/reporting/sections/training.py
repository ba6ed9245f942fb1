"""How the rank of W − W0 changes while a model is trained: 90 % energy rank against steps."""

import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lowrank_study.answers.roles import in_order
from lowrank_study.answers.rows import records
from lowrank_study.reporting.display import NARROW_SPACE, Column, printable, written
from lowrank_study.reporting.drawing.figure import Entry, Figure, Paper, draw_figure, line
from lowrank_study.reporting.drawing.rank_axis import series_style
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections.controls import RANK_COLUMNS, training_ranks
from lowrank_study.reporting.setting import SettingData


def section(data: SettingData) -> Section | None:
    """Show the rank along training; nothing if no run was measured on the way."""
    table = training_ranks(data)
    if not table["median_energy_rank_90"].notna().any():
        return None
    return Section(
        name=f"training{data.suffix}",
        title="How does the rank change during training?",
        figures=[_figure(data, table)],
        findings=_findings(data, table),
        reading=[
            "One run of full fine-tuning was trained once more and measured on the way. A step has "
            "no mark if no matrix of the role stands above the rounding of its weights.",
            "Adam’s first step moves every weight by about the learning rate, however small its "
            "gradient.",
        ],
    )


def _findings(data: SettingData, table: pd.DataFrame) -> list[Finding]:
    rows = records(table[(table["role"] == "") & table["median_energy_rank_90"].notna()])
    if len(rows) < 2:
        return []
    lowest = min(rows, key=lambda row: row["median_energy_rank_90"])
    first, last, least = (
        f"{written(row['median_energy_rank_90'], 'rank')} at step {int(row['step'])}"
        for row in (rows[0], rows[-1], lowest)
    )
    text = (
        f"The median 90{NARROW_SPACE}% energy rank of W − W0 is {first} and {last}. Its lowest "
        f"value is {least}."
    )
    return [Finding(topic="Rank during training", text=text)]


def _figure(data: SettingData, table: pd.DataFrame) -> Figure:
    return draw_figure(
        lambda on: _draw(on, table),
        name=f"rank_along_training{data.suffix}",
        title="Rank of the update during training",
        caption="Median 90 % energy rank of W − W0 over the layers, for the matrices of each role.",
        note=(
            "One row per step and role, or for all roles where none is named: medians over the "
            "resolvable matrices inside the layers."
        ),
        frame=table,
        columns=data.columns(
            Column("step", "step", "rank", "optimizer steps taken"), "role", *RANK_COLUMNS
        ),
    )


def _draw(on: Paper, table: pd.DataFrame) -> None:
    steps = sorted({int(step) for step in table["step"]})
    panel = on.panels(1, across=(1, 1), height=(3.7, 3.9))[0]
    panel.set_xscale("log", base=2)
    entries: list[Entry] = []
    for index, role in enumerate(in_order(table.loc[table["role"] != "", "role"])):
        rows = table[(table["role"] == role) & table["median_energy_rank_90"].notna()]
        style = {**series_style(index), "ms": 4.5}
        ranks = rows["median_energy_rank_90"].to_numpy()
        panel.plot(rows["step"].to_numpy(dtype=float), ranks, lw=1.5, **style)
        entries.append(line(printable(role), **style))
    # A label needs room: an octave just before the last step has none.
    ticks = [step for step in steps if step == steps[-1] or steps[-1] / step > 1.4]
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_ylim(bottom=0)
    panel.set_xlabel("optimizer steps")
    panel.set_ylabel("90 % energy rank of W − W0")
    on.legend(entries, columns=(3, 2))
