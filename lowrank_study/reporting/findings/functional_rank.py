"""What is left of full fine-tuning when little of its update is kept.

    [finding.text for finding in functional_rank(data)]     # none where nothing was truncated

A mean lies inside an interval or does not; which rank suffices is tested elsewhere.
"""

from typing import Any

import pandas as pd

from lowrank_study.answers.functional_rank import score_by_kept_rank
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    percent,
    points,
    printable,
    written,
)
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import SettingData, records


def functional_rank(data: SettingData) -> list[Finding]:
    """Say what the update does at each kept rank, and what single parts of it do."""
    table = score_by_kept_rank(data.study.truncation, data.runs)
    cut = records(table[table["scope"] == "all"])
    if not cut:
        return []
    whole = cut[-1]
    some = [row for row in cut[:-1] if row["kept_rank"] > 0]
    text = (
        f"Uncut, full fine-tuning has a mean test accuracy of {_score(whole)} "
        f"({counted(int(whole['n']), 'seed')})"
    )
    if some:
        text += f"; with every matrix’s ΔW cut to its best rank {int(some[0]['kept_rank'])}, "
        text += f"{_score(some[0])}"
    if cut[0]["kept_rank"] == 0:
        text += f"; with none of it, head, biases and norms tuned alone, {_score(cut[0])}"
    text += f".{_inside(cut)}{_trained_there(data, cut)}"
    for row in records(table[table["scope"] == "noise_cut"]):
        text += (
            f" What stands above each matrix’s noise cut, "
            f"{written(row['kept_directions'], 'rank')} of "
            f"{written(whole['kept_directions'], 'rank')} directions with "
            f"{percent(row['energy_kept'])} of the energy, gives {_score(row)}."
        )
    parts = [_best_part(table, scope) for scope in ("layers", "roles")]
    if known := [part for part in parts if part]:
        text += f" Highest when kept alone: {enumeration(known)}."
    source = f"score_by_kept_rank{data.suffix}"
    return [Finding(topic="The update, cut", text=text, source=source)]


def lowest_inside(cut: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Give the lowest kept rank from which on every mean lies in the uncut runs' interval."""
    whole, found = cut[-1], None
    for row in reversed(cut):
        if not whole["test_low_95"] <= row["mean_test_score"] <= whole["test_high_95"]:
            break
        found = row
    return found


def _inside(cut: list[dict[str, Any]]) -> str:
    if cut[-1]["n"] < 2:
        return " One seed gives no interval to compare ranks with."
    row = lowest_inside(cut)
    if row is None or row is cut[-1]:
        return (
            f" Below the full rank, no mean lies inside the uncut runs’ "
            f"95{NARROW_SPACE}% interval for good."
        )
    difference = row["mean_difference"]
    return (
        f" From rank {int(row['kept_rank'])} on ({percent(row['energy_kept'])} of the energy), "
        f"every mean lies inside the uncut runs’ 95{NARROW_SPACE}% interval; at rank "
        f"{int(row['kept_rank'])} it is {points(abs(difference))} "
        f"{'above' if difference >= 0 else 'below'} the same seeds’ uncut "
        f"(95{NARROW_SPACE}% interval over seeds {100 * row['difference_low_95']:+.1f} to "
        f"{100 * row['difference_high_95']:+.1f} points)."
    )


def _trained_there(data: SettingData, cut: list[dict[str, Any]]) -> str:
    """What LoRA reaches at the lowest rank that both have: what training can find there."""
    ranked = data.chosen[data.chosen["adapter_rank"].notna()]
    kept = {int(row["kept_rank"]): row for row in cut}
    shared = sorted({int(rank) for rank in ranked["adapter_rank"]} & set(kept))
    if not shared:
        return ""
    rank = shared[0]
    found = [
        f"{_score(row)} with {adapter_name(row['method'], row['target'])}"
        for row in records(ranked[ranked["adapter_rank"] == rank])
    ]
    return (
        f" Trained at rank {rank} in place of cut to it, the mean is {enumeration(found)} (cut: "
        f"{_score(kept[rank])}): the cut says what the update contains, training what can be "
        "found."
    )


def _best_part(table: pd.DataFrame, scope: str) -> str:
    rows = records(table[table["scope"] == scope])
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["mean_test_score"])
    name = printable(best["part"])
    if scope == "roles":
        part = f"the role {name}"
    else:
        part = f"layer {name}" if name.isdecimal() else f"all {name} the layers"
    return f"{part} ({_score(best)}, {counted(int(best['n']), 'seed')})"


def _score(row: dict[str, Any]) -> str:
    return f"{row['mean_test_score']:.3f}"
