"""The measures of controls without learning, beside those of trained updates.

    control_ranks(data)       # one row a control and role
    control_overlap(data)     # one row a kind of pair, number of directions and role
    training_ranks(data)      # one row a step and role

Only matrices inside the layers count; a row with an empty role covers all of them. Nothing is
tested here, so nothing is called different.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from lowrank_study.answers.controls import RANKS, SIMILARITIES
from lowrank_study.answers.rows import extreme_of, groups, median_of, records
from lowrank_study.reporting.display import NARROW_SPACE, Column, Table, enumeration, written
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData

CONTROLS = {
    "trained": "full fine-tuning",
    "shuffled_labels": "training on shuffled labels",
    "noise": "Gaussian noise of the same shapes and norms",
    "weight_decay": "weight decay alone",
}
"""Controls in their order, with their names for prose."""
PAIRS = ("seeds", "noise_pair")
RANK_COLUMNS: tuple[str | Column, ...] = (
    *(f"median_{name}" for name in RANKS),
    "resolvable",
    Column("n", "n", "count", "matrices"),
)
_COUNTED = ("role", "n", "resolvable")
_EXTREMES = ("min_energy_rank_90", "max_energy_rank_90")


def section(data: SettingData) -> Section | None:
    """Show the measures of the controls; nothing if none were measured."""
    ranks, overlap = control_ranks(data), control_overlap(data)
    tables = _tables(data, ranks, overlap)
    if not tables:
        return None
    return Section(
        name=f"controls{data.suffix}",
        title="What do the measures show without learning?",
        findings=[*_rank_findings(data, ranks), *_overlap_findings(data, overlap)],
        reading=[
            "If a measure is as low for a control as for a trained update, it does not show that "
            "the model learnt anything.",
            "φ compares the leading singular directions of two updates. It is 1 for the same "
            "subspace. Random directions have the number of directions over the dimension.",
        ],
        tables=tables,
    )


# ---------------------------------------------------------------- condensed


def control_ranks(data: SettingData) -> pd.DataFrame:
    """Return each control's median ranks over its resolvable matrices and runs."""
    rows = [
        {
            **key,
            "n": len(group),
            "resolvable": int(group["resolvable"].sum()),
            **_medians(group[group["resolvable"]], RANKS),
        }
        for key, group in _groups(data, [*CONTROLS], ["control", "role"])
    ]
    return pd.DataFrame(rows, columns=["control", *_COUNTED, *_named(RANKS)])


def control_overlap(data: SettingData) -> pd.DataFrame:
    """Return the median φ(k, k) of two updates, and of two noises, beside its chance level."""
    keys = ["control", "directions", "role"]
    rows = [
        {**key, "n": len(group), **_medians(group, SIMILARITIES)}
        for key, group in _groups(data, PAIRS, keys)
    ]
    return pd.DataFrame(rows, columns=[*keys, "n", *_named(SIMILARITIES)])


def training_ranks(data: SettingData) -> pd.DataFrame:
    """Return the ranks of W − W0 after some steps, medians over the resolvable matrices."""
    rows: list[dict[str, Any]] = []
    for key, group in _groups(data, ["training"], ["step", "role"]):
        clear = group[group["resolvable"]]
        rows.append(
            {
                **key,
                "n": len(group),
                "resolvable": len(clear),
                **_medians(clear, RANKS),
                "min_energy_rank_90": extreme_of(clear["energy_rank_90"], largest=False),
                "max_energy_rank_90": extreme_of(clear["energy_rank_90"], largest=True),
            }
        )
    return pd.DataFrame(rows, columns=["step", *_COUNTED, *_named(RANKS), *_EXTREMES])


def _groups(
    data: SettingData, controls: Sequence[str], keys: list[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the rows of each combination of keys; those of all roles (the empty role) first."""
    if data.study.controls is None:
        return
    table = data.setting.rows(data.study.controls)
    table = table[table["layer"].notna()]
    for control in controls:
        rows = table[table["control"] == control]
        yield from groups(rows.assign(role=""), keys)
        yield from groups(rows, keys)


def _medians(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    return {f"median_{name}": median_of(rows[name]) for name in names}


def _named(names: Sequence[str]) -> list[str]:
    return [f"median_{name}" for name in names]


# ---------------------------------------------------------------- in words


def _rank_findings(data: SettingData, table: pd.DataFrame) -> list[Finding]:
    found = {row["control"]: row for row in records(table[table["role"] == ""])}
    if "trained" not in found or len(found) == 1:
        return []
    read = [
        f"{written(found[name]['median_energy_rank_90'], 'rank')} "
        f"({written(found[name]['median_gavish_donoho_rank'], 'rank')}) for {words}"
        for name, words in CONTROLS.items()
        if name in found
    ]
    text = (
        f"The median 90{NARROW_SPACE}% energy rank is {enumeration(read)}. Brackets hold the "
        "median number of directions above the Gavish–Donoho threshold."
    )
    return [Finding(topic="Ranks of controls", text=text)]


def _overlap_findings(data: SettingData, table: pd.DataFrame) -> list[Finding]:
    table = table[table["role"] == ""]
    seeds = records(table[table["control"] == "seeds"])
    noise = {row["directions"]: row for row in records(table[table["control"] == "noise_pair"])}
    if not seeds:
        return []
    right, left = "median_similarity_right", "median_similarity_left"
    parts = []
    for row in seeds[:1] if len(seeds) == 1 else [seeds[0], seeds[-1]]:
        k = int(row["directions"])
        beside = f"chance: {row[f'{right}_chance']:.3f} and {row[f'{left}_chance']:.3f}"
        if k in noise:
            beside += f"; two noises: {noise[k][right]:.3f} and {noise[k][left]:.3f}"
        parts.append(
            f"For the first {'direction' if k == 1 else f'{k} directions'} it is "
            f"{row[right]:.3f} and {row[left]:.3f} ({beside})."
        )
    text = (
        "The overlap of two seeds’ updates is given as median φ on the input and the output side, "
        f"over matrices and pairs of seeds. {' '.join(parts)}"
    )
    return [Finding(topic="Overlap of seeds", text=text)]


# ---------------------------------------------------------------- tables


WHAT = Column("control", "control", "text", "what was measured")


def _tables(data: SettingData, ranks: pd.DataFrame, overlap: pd.DataFrame) -> list[Table]:
    similarities = [
        Column(
            f"median_similarity_{side}{end}",
            f"{label}{', chance' if end else ''}",
            "decimal",
            "expected for random directions" if end else "median φ",
        )
        for side, label in (("right", "inputs"), ("left", "outputs"))
        for end in ("", "_chance")
    ]
    tables = [
        Table(
            name=f"control_ranks{data.suffix}",
            title="Ranks of controls",
            note=(
                "Medians over the resolvable matrices inside the layers; an empty role covers all "
                "of them. trained: updates of full fine-tuning; shuffled_labels: the same seeds on "
                "shuffled labels; noise: independent Gaussian entries of the same shapes and "
                "norms; weight_decay: −c·W0, the update from weight decay alone."
            ),
            frame=ranks,
            columns=data.columns(WHAT, "role", *RANK_COLUMNS),
        ),
        Table(
            name=f"control_overlap{data.suffix}",
            title="Overlap of updates across seeds",
            note=(
                "Median φ(k, k) of the k leading singular directions of two updates, on the input "
                "and the output side, over matrices and pairs of seeds; an empty role covers all. "
                "noise_pair: two independent Gaussian matrices of the same shapes."
            ),
            frame=overlap,
            columns=data.columns(
                WHAT,
                "role",
                Column("directions", "k", "rank", "directions of each update"),
                *similarities,
                Column("n", "n", "count", "pairs of matrices"),
            ),
        ),
    ]
    return [table for table in tables if len(table.frame)]
