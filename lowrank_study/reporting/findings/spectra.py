"""What the spectra say: the rank of updates, beside noise and above rounding.

    full_rank(data), adapter_rank(data), resolution(data)

What is not resolvable is counted, and part of no median.
"""

import math

from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    printable,
    span,
    written,
)
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import (
    SettingData,
    groups,
    in_order,
    records,
)
from lowrank_study.spectra.noise import noise_energy_rank


def full_rank(data: SettingData) -> list[Finding]:
    """Say what rank the updates of full fine-tuning have, beside noise of the same shapes."""
    rows = data.configurations[data.configurations["method"] == "full"]
    if not len(rows) or not rows.iloc[0]["resolvable"]:
        return []
    row = records(rows)[0]
    inside = data.spectra[(data.spectra["method"] == "full") & data.spectra["layer"].notna()]
    clear = inside[inside["resolvable"]]
    noise = sorted(
        {
            noise_energy_rank(int(out), int(into))
            for out, into in zip(clear["out_features"], clear["in_features"], strict=True)
        }
    )
    text = (
        f"The update ΔW of full fine-tuning has a median 90{NARROW_SPACE}% energy rank of "
        f"{written(row['median_energy_rank_90'], 'rank')} of at most "
        f"{written(row['largest_possible_rank'], 'rank')}, from "
        f"{written(row['min_energy_rank_90'], 'rank')} to "
        f"{written(row['max_energy_rank_90'], 'rank')} over "
        f"{counted(int(row['resolvable']), 'resolvable matrix', 'resolvable matrices')} inside "
        f"the layers, of {counted(int(row['seeds']), 'seed')}. Independent Gaussian noise of the "
        f"same shapes would read about {span(f'{noise[0]:.0f}', f'{noise[-1]:.0f}')}."
    )
    layers = {
        int(key["layer"]): float(group["energy_rank_90"].median())
        for key, group in groups(clear, ["layer"])
    }
    if len(layers) > 1:
        low, high = min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)
        text += (
            f" By layer the median is lowest in layer {low} "
            f"({written(layers[low], 'rank')}) and highest in layer {high} "
            f"({written(layers[high], 'rank')})."
        )
    cut = row["median_gavish_donoho_rank"]
    if not math.isnan(cut):
        text += (
            f" The Gavish–Donoho cut, which asks how many directions stand out from noise, "
            f"keeps a median of {written(cut, 'rank')}."
        )
    return [Finding(topic="Rank of ΔW, full", text=text, source=f"rank_by_module{data.suffix}")]


def adapter_rank(data: SettingData) -> list[Finding]:
    """Say how much of their rank adapters use."""
    rows = data.configurations
    ranked = rows[rows["adapter_rank"].notna() & rows["median_energy_rank_90"].notna()]
    if not len(ranked):
        return []
    parts = []
    for key, group in groups(ranked, ["method", "target"]):
        rising = records(group.sort_values("adapter_rank"))
        ends = rising if len(rising) == 1 else [rising[0], rising[-1]]
        parts.append(
            f"{adapter_name(**key)} has a median of "
            + " and ".join(
                f"{written(end['median_energy_rank_90'], 'rank')} at rank "
                f"{int(end['adapter_rank'])}"
                for end in ends
            )
        )
    beyond = ranked[ranked["largest_possible_rank"] > ranked["adapter_rank"].astype(float)]
    text = (
        f"In its 90{NARROW_SPACE}% energy rank, {enumeration(parts)}. "
        "A product of rank r can’t have an energy rank above r, so a lower number than full "
        "fine-tuning’s is built in and says nothing of how much rank the task needs."
    )
    if len(beyond):
        text += " Updates that an adapter run trained whole are not bound by r."
    return [
        Finding(
            topic="Rank of ΔW, adapters",
            text=text,
            source=f"rank_by_configuration{data.suffix}",
        )
    ]


def resolution(data: SettingData) -> Finding:
    """Say how many updates stand above the rounding of the stored weights."""
    lost = data.spectra[~data.spectra["resolvable"]]
    if not len(data.spectra):
        text = "No spectra were given: nothing can be said of the rank of the updates."
        return Finding(topic="Resolution", text=text, source="spectra")
    dtypes = enumeration(sorted({printable(dtype) for dtype in data.spectra["storage_dtype"]}))
    if not len(lost):
        text = (
            f"All {counted(len(data.spectra), 'matrix', 'matrices')} are resolvable: their "
            f"90{NARROW_SPACE}% energy ranks stand above the floor that rounding of the stored "
            f"weights ({dtypes}) leaves."
        )
    else:
        where = enumeration([printable(role) for role in in_order(lost["role"])])
        text = (
            f"{len(lost):,} of {counted(len(data.spectra), 'matrix', 'matrices')} are not "
            f"resolvable ({where}): their 90{NARROW_SPACE}% energy rank can’t be told from the "
            f"floor that rounding of the stored weights ({dtypes}) leaves. They are left out of "
            f"every median and hatched in the heat map."
        )
    return Finding(topic="Resolution", text=text, source="spectra")
