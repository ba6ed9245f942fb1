"""The controls of a setting, condensed over matrices: what the measures read of nothing.

    control_ranks(data)       # one row a control and role
    control_overlap(data)     # one row a kind of pair, number of directions and role
    training_ranks(data)      # one row a step and role

Matrices inside the layers alone; a row whose role is empty holds all of them. None of the
tables has rows where no controls were measured.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lowrank_study.answers.controls import SIMILARITIES
from lowrank_study.answers.rows import extreme_of, groups, median_of
from lowrank_study.reporting.tables.setting import SettingData

CONTROLS = ("trained", "shuffled_labels", "noise", "weight_decay")
PAIRS = ("seeds", "noise_pair")
RANKS = (
    "energy_rank_90", "energy_rank_99", "effective_rank", "participation_ratio", "stable_rank",
    "gavish_donoho_rank", "relative_norm",
)  # fmt: skip
_COUNTED = ("role", "n", "resolvable")
_EXTREMES = ("min_energy_rank_90", "max_energy_rank_90")


def control_ranks(data: SettingData) -> pd.DataFrame:
    """Give each control's median ranks over matrices and runs, those resolvable alone."""
    rows = [
        {
            **key,
            "n": len(group),
            "resolvable": int(group["resolvable"].sum()),
            **_medians(group[group["resolvable"]], RANKS),
        }
        for key, group in _groups(data, CONTROLS, ["control", "role"])
    ]
    return pd.DataFrame(rows, columns=["control", *_COUNTED, *_named(RANKS)])


def control_overlap(data: SettingData) -> pd.DataFrame:
    """Give the median φ(k, k) of two updates, and of two noises, beside its level of chance."""
    keys = ["control", "directions", "role"]
    rows = [
        {**key, "n": len(group), **_medians(group, SIMILARITIES)}
        for key, group in _groups(data, PAIRS, keys)
    ]
    return pd.DataFrame(rows, columns=[*keys, "n", *_named(SIMILARITIES)])


def training_ranks(data: SettingData) -> pd.DataFrame:
    """Give the ranks of W − W0 after some steps, medians over the resolvable matrices."""
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
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The rows of each combination of keys, and of all roles together (the empty role) first."""
    if data.study.controls is None:
        return []
    table = data.setting.rows(data.study.controls)
    table = table[table["layer"].notna()]
    parts: list[tuple[dict[str, Any], pd.DataFrame]] = []
    for control in controls:
        rows = table[table["control"] == control]
        parts += list(groups(rows.assign(role=""), keys))
        parts += list(groups(rows, keys))
    return parts


def _medians(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    return {f"median_{name}": median_of(rows[name]) for name in columns}


def _named(columns: Sequence[str]) -> list[str]:
    return [f"median_{name}" for name in columns]
