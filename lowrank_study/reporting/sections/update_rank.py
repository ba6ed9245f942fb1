"""What rank the updates have: beside noise, against the adapter rank, and above rounding.

Updates that the storage dtype can't resolve are left out of every median and counted.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from lowrank_study.answers.roles import in_order
from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    capitalised,
    counted,
    enumeration,
    printable,
    span,
    written,
)
from lowrank_study.reporting.drawing.figure import (
    BAND,
    FAINT,
    INK,
    Entry,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.drawing.rank_axis import RankAxis, series_of
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.update_ranks import MEDIANS, rank_by_layer
from lowrank_study.spectra.noise import noise_energy_rank

COUNTS = ("resolvable", Column("n", "n", "count", "matrices (seeds × modules)"))
OTHER_MEDIANS = " ".join(name for name in MEDIANS if name != "median_energy_rank_90")
CONFIGURATION_RANK_COLUMNS: tuple[str | Column, ...] = (
    "median_energy_rank_90 energy_rank_90_decile_1 energy_rank_90_decile_9",
    "largest_possible_rank median_share_of_possible",
    OTHER_MEDIANS,
    *COUNTS,
    Column("seeds", "seeds", "count", "seeds"),
)
MODULE_RANK_COLUMNS: tuple[str | Column, ...] = (
    "median_energy_rank_90 min_energy_rank_90 max_energy_rank_90",
    "largest_possible_rank noise_energy_rank_90",
    OTHER_MEDIANS,
    *COUNTS,
)
DASHED = (0, (4, 2))


def section(data: SettingData) -> Section:
    """Show the ranks of the updates."""
    figure = _figure(data)
    return Section(
        name=f"ranks{data.suffix}",
        title="What rank do the updates have?",
        figures=[figure] if figure else [],
        findings=[*_full(data), *_adapters(data), _resolution(data)],
        reading=[
            "ΔW = W − W0 is what training added to a weight matrix. For an adapter it is the "
            "scaled product of two thin matrices.",
            "The 90 % energy rank is the number of singular values that hold 90 % of ‖ΔW‖²_F. It "
            "counts noise as readily as signal, so compare it with the rank of pure noise of the "
            "same shape.",
            "An adapter of rank r can’t have an energy rank above r. That it lies below full "
            "fine-tuning’s does not show how much rank the task needs.",
            "An update is not resolvable if rounding of the stored weights accounts for more than "
            "10 % of its energy. Its rank would be the rank of rounding errors.",
        ],
        tables=_tables(data) if len(data.spectra) else [],
    )


def _tables(data: SettingData) -> list[Table]:
    return [
        Table(
            name=f"rank_by_configuration{data.suffix}",
            title="Rank of the updates by configuration",
            note=(
                "One row per configuration: medians over the resolvable matrices inside the "
                "layers, over all seeds."
            ),
            frame=data.configurations,
            columns=data.columns("method target adapter_rank", *CONFIGURATION_RANK_COLUMNS),
        ),
        Table(
            name=f"rank_by_layer{data.suffix}",
            title="Rank of the updates by layer",
            note="One row per configuration and layer: medians over its resolvable matrices.",
            frame=rank_by_layer(data.spectra),
            columns=data.columns("method target adapter_rank layer", *CONFIGURATION_RANK_COLUMNS),
        ),
        Table(
            name=f"rank_by_module{data.suffix}",
            title="Rank of the updates by layer and module",
            note=(
                "One row per configuration, layer and role: medians over seeds. Rows without a "
                "layer are heads and embeddings, named by their module. “pure noise” is the 90 % "
                "energy rank of independent Gaussian entries of that shape, computed from the "
                "Marchenko–Pastur law. It does not apply to adapters, whose rank is fixed."
            ),
            frame=data.modules,
            columns=data.columns("method target adapter_rank layer role", *MODULE_RANK_COLUMNS),
        ),
    ]


# ---------------------------------------------------------------- in words


def _full(data: SettingData) -> list[Finding]:
    rows = data.configurations[data.configurations["method"] == "full"]
    if not len(rows) or not rows.iloc[0]["resolvable"]:
        return []
    row = records(rows)[0]
    inside = data.spectra[(data.spectra["method"] == "full") & data.spectra["layer"].notna()]
    clear = inside[inside["resolvable"]]
    shapes = set(zip(clear["out_features"], clear["in_features"], strict=True))
    noise = sorted({noise_energy_rank(int(out), int(into)) for out, into in shapes})
    text = (
        f"The update ΔW of full fine-tuning has a median 90{NARROW_SPACE}% energy rank of "
        f"{written(row['median_energy_rank_90'], 'rank')}: this many of its at most "
        f"{written(row['largest_possible_rank'], 'rank')} singular directions hold "
        f"90{NARROW_SPACE}% of its energy. The rank ranges from "
        f"{written(row['min_energy_rank_90'], 'rank')} to "
        f"{written(row['max_energy_rank_90'], 'rank')} over "
        f"{counted(int(row['resolvable']), 'resolvable matrix', 'resolvable matrices')} inside "
        f"the layers ({counted(int(row['seeds']), 'seed')}). For Gaussian noise of the same "
        f"shapes it is about {span(f'{noise[0]:.0f}', f'{noise[-1]:.0f}')}."
    )
    layers = {
        int(key["layer"]): float(group["energy_rank_90"].median())
        for key, group in groups(clear, ["layer"])
    }
    if len(layers) > 1:
        low, high = min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)
        text += (
            f" The median is lowest in layer {low} ({written(layers[low], 'rank')}) and highest in "
            f"layer {high} ({written(layers[high], 'rank')})."
        )
    above = row["median_gavish_donoho_rank"]
    if not math.isnan(above):
        text += (
            f" In the median matrix, {written(above, 'rank')} directions lie above noise "
            "(Gavish–Donoho threshold)."
        )
    return [Finding(topic="Rank of ΔW, full", text=text)]


def _adapters(data: SettingData) -> list[Finding]:
    rows = data.configurations
    ranked = rows[rows["adapter_rank"].notna() & rows["median_energy_rank_90"].notna()]
    if not len(ranked):
        return []
    parts = []
    for key, group in groups(ranked, ["method", "target"]):
        rising = records(group.sort_values("adapter_rank"))
        ends = rising[:1] if len(rising) == 1 else [rising[0], rising[-1]]
        medians = [
            f"{written(end['median_energy_rank_90'], 'rank')} at adapter rank "
            f"{int(end['adapter_rank'])}"
            for end in ends
        ]
        parts.append(
            f"{capitalised(adapter_name(**key))} has a median 90{NARROW_SPACE}% energy rank of "
            f"{' and '.join(medians)}."
        )
    text = " ".join(parts)
    if (ranked["largest_possible_rank"] > ranked["adapter_rank"].astype(float)).any():
        text += " Matrices that an adapter run trains as a whole can exceed the adapter rank."
    return [Finding(topic="Rank of ΔW, adapters", text=text)]


def _resolution(data: SettingData) -> Finding:
    if not len(data.spectra):
        text = "This report has no spectra, so it does not show the rank of the updates."
        return Finding(topic="Resolution", text=text)
    lost = data.spectra[~data.spectra["resolvable"]]
    matrices = counted(len(data.spectra), "matrix", "matrices")
    dtypes = enumeration(sorted({printable(dtype) for dtype in data.spectra["storage_dtype"]}))
    if not len(lost):
        text = (
            f"All {matrices} are resolvable: their updates stand above the rounding of the stored "
            f"weights ({dtypes})."
        )
    else:
        where = enumeration([printable(role) for role in in_order(lost["role"])])
        text = (
            f"{len(lost):,} of {matrices} are not resolvable ({where}): their updates do not stand "
            f"above the rounding of the stored weights ({dtypes}). They are left out of every "
            "median and hatched in the heat map."
        )
    return Finding(topic="Resolution", text=text)


# ---------------------------------------------------------------- drawn


def _figure(data: SettingData) -> Figure | None:
    """Draw the 90 % energy rank against the adapter rank, with its bound; None without adapters."""
    known = data.configurations[data.configurations["median_energy_rank_90"].notna()]
    ranked, full = known[known["adapter_rank"].notna()], known[known["method"] == "full"]
    if not len(ranked):
        return None
    return draw_figure(
        lambda on: _draw(on, ranked, full),
        name=f"energy_rank_against_adapter_rank{data.suffix}",
        title="How much of its rank an adapter uses",
        caption=(
            "Median 90 % energy rank over the resolvable matrices of all layers and seeds. "
            "Whiskers and the band hold the middle 80 % of matrices; they are not confidence "
            "intervals. The dashed line is the bound: the adapter rank."
        ),
        note="One row per configuration; only matrices inside the layers.",
        frame=pd.concat([full, ranked]),
        columns=data.columns("method target adapter_rank", *CONFIGURATION_RANK_COLUMNS),
    )


def _draw(on: Paper, ranked: pd.DataFrame, full: pd.DataFrame) -> None:
    axis, series = RankAxis.of(ranked), series_of(ranked)
    panel = on.panels(1, across=(1, 1), height=(3.7, 3.9))[0]
    panel.set_yscale("log", base=2)
    axis.dress(panel)
    panel.set_ylabel("90 % energy rank of ΔW")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    octaves = np.array(panel.get_xlim())  # a line even where there is only one rank
    panel.plot(octaves, 2**octaves, color=FAINT, lw=1.1, ls=DASHED)
    panel.set_xlim(*octaves)
    entries: list[Entry] = [one.entry(f"{one.label}: median") for one in series]
    entries.append(line("bound: the adapter rank", FAINT, lw=1.1, ls=DASHED))
    for row in records(full):
        low, high = row["energy_rank_90_decile_1"], row["energy_rank_90_decile_9"]
        panel.axhspan(low, high, color=BAND, lw=0, zorder=0)
        panel.axhline(row["median_energy_rank_90"], color=INK, lw=1.1)
        entries.append(line("full fine-tuning: median", INK, lw=1.1))
        entries.append(Patch(color=BAND, label="full: middle 80 % of matrices"))
    for index, one in enumerate(series):
        rows = one.rows(ranked)
        middle = rows["median_energy_rank_90"].to_numpy()
        low = middle - rows["energy_rank_90_decile_1"].to_numpy()
        high = rows["energy_rank_90_decile_9"].to_numpy() - middle
        shift = (index - (len(series) - 1) / 2) * 0.12
        style = {**one.style, "ms": 5, "lw": 1.6}
        panel.errorbar(axis.places(rows) + shift, middle, yerr=[low, high], elinewidth=0.9, **style)
    on.legend(entries, columns=(2, 1))
