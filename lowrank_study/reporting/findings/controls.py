"""What the measures read where there is nothing to find, beside what they read of training.

    [finding.text for finding in controls(data)]     # none where no controls were measured

They are readings, not tests: nothing is called different here.
"""

from typing import Any

from lowrank_study.reporting.display import NARROW_SPACE, enumeration, written
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import SettingData, records
from lowrank_study.reporting.tables.controls import (
    control_overlap,
    control_ranks,
    training_ranks,
)

_WORDS = {
    "shuffled_labels": "training on shuffled labels",
    "noise": "Gaussian noise of the same shapes and norms",
    "weight_decay": "weight decay alone",
}


def controls(data: SettingData) -> list[Finding]:
    """Say what ranks, overlaps and steps read for the controls that there are."""
    return [*_ranks(data), *_overlap(data), *_training(data)]


def _ranks(data: SettingData) -> list[Finding]:
    table = control_ranks(data)
    found = {row["control"]: row for row in records(table[table["role"] == ""])}
    if "trained" not in found or len(found) == 1:
        return []
    others = [f"{_read(found[name])} of {words}" for name, words in _WORDS.items() if name in found]
    text = (
        f"Medians of the 90{NARROW_SPACE}% energy rank, and in brackets of the directions above "
        f"the Gavish–Donoho cut: {_read(found['trained'])} of full fine-tuning’s updates, "
        f"{enumeration(others)}. A measure that reads a control as low as a trained update does "
        "not by itself tell that something was learnt."
    )
    return [Finding(topic="Controls", text=text, source=f"control_ranks{data.suffix}")]


def _read(row: dict[str, Any]) -> str:
    rank, above = row["median_energy_rank_90"], row["median_gavish_donoho_rank"]
    return f"{written(rank, 'rank')} ({written(above, 'rank')})"


def _overlap(data: SettingData) -> list[Finding]:
    table = control_overlap(data)
    table = table[table["role"] == ""]
    seeds = table[table["control"] == "seeds"]
    noise = {row["directions"]: row for row in records(table[table["control"] == "noise_pair"])}
    if not len(seeds):
        return []
    parts = []
    rows = records(seeds)
    for row in rows[:1] if len(rows) == 1 else [rows[0], rows[-1]]:
        k = int(row["directions"])
        by_noise = (
            f"; {noise[k]['median_similarity_right']:.3f} and "
            f"{noise[k]['median_similarity_left']:.3f} of two noises"
            if k in noise
            else ""
        )
        parts.append(
            f"{row['median_similarity_right']:.3f} and {row['median_similarity_left']:.3f} for the "
            f"first {'direction' if k == 1 else k} "
            f"(by chance {row['median_similarity_right_chance']:.3f} and "
            f"{row['median_similarity_left_chance']:.3f}{by_noise})"
        )
    text = (
        f"Of two seeds’ updates of one matrix, the leading directions on the sides of the inputs "
        f"and of the outputs share φ = {enumeration(parts)}, medians over matrices and pairs of "
        "seeds; 1 is the same subspace."
    )
    return [Finding(topic="Overlap of seeds", text=text, source=f"control_overlap{data.suffix}")]


def _training(data: SettingData) -> list[Finding]:
    table = training_ranks(data)
    known = table[(table["role"] == "") & table["median_energy_rank_90"].notna()]
    rows = records(known)
    if len(rows) < 2:
        return []
    lowest = min(rows, key=lambda row: row["median_energy_rank_90"])
    first, last = rows[0], rows[-1]

    def said(row: dict[str, Any]) -> str:
        return f"{written(row['median_energy_rank_90'], 'rank')} at step {int(row['step'])}"

    text = (
        f"Along the training of one run, the median 90{NARROW_SPACE}% energy rank of W − W0 is "
        f"{said(first)} and {said(last)}; lowest, {said(lowest)}."
    )
    source = f"figure_rank_along_training{data.suffix}"
    return [Finding(topic="Rank along training", text=text, source=source)]
