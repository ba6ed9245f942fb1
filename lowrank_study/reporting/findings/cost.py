"""What adapters cost, as shares of full fine-tuning.

    [finding.text for finding in cost(data)]     # none without full fine-tuning

They are shares of medians, as the runs recorded them on their machine.
"""

from lowrank_study.reporting.display import enumeration, in_bytes, percent, span, written
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import SettingData, cost_by_method


def cost(data: SettingData) -> list[Finding]:
    """Say what adapters need of what full fine-tuning needs; nothing without both."""
    table = cost_by_method(data.setting.rows(data.study.runs), data.accuracy)
    ranked = table[table["adapter_rank"].notna()]
    if not len(ranked) or not (table["method"] == "full").any():
        return []
    parts = []
    for measure, what in (
        ("trainable_parameters_ratio", "parameters"),
        ("checkpoint_bytes_ratio", "checkpoint"),
        ("train_seconds_ratio", "training time"),
        ("peak_memory_bytes_ratio", "peak memory"),
    ):
        known = ranked[measure].dropna()
        if len(known):
            shares = span(percent(float(known.min())), percent(float(known.max())))
            parts.append(f"{shares} of its {what}")
        else:
            parts.append(f"{what} not measured")
    full = table[table["method"] == "full"].iloc[0]
    who = (
        "the adapter has"
        if len(ranked) == 1
        else "the adapters have, from the cheapest to the dearest,"
    )
    text = (
        f"Against full fine-tuning {who} {enumeration(parts)} (medians over runs; full "
        f"fine-tuning: {written(full['trainable_parameters'], 'count')} parameters, "
        f"{in_bytes(full['checkpoint_bytes']) if full['checkpoint_bytes'] > 0 else 'unknown'} on "
        f"disk)."
    )
    if table["steps"].dropna().nunique() > 1:
        text += " The configurations took different numbers of steps, so times are not per step."
    if (most := float(table["pack_size"].max())) > 1:
        text += (
            f" Adapters trained up to {most:g} at once: a run's time is its share of its "
            "process's, its peak memory all of it."
        )
    return [Finding(topic="Cost", text=text, source=f"cost_by_method{data.suffix}")]
