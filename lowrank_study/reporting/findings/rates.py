"""How learning rates were chosen, and what rates came out.

rates(data)      # none where none was chosen
"""

import pandas as pd

from lowrank_study.answers.rows import CONFIGURATION
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    span,
    written,
)
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import SettingData, best_rates, groups, records


def rates(data: SettingData) -> list[Finding]:
    """Say which rates are best, beside full fine-tuning's, and which ends of a grid are."""
    if not len(data.rates):
        return []
    best = best_rates(data.rates)
    parts = []
    for key, rows in groups(best[best["adapter_rank"].notna()], ["method", "target", "rule"]):
        lowest, highest = rows["learning_rate"].min(), rows["learning_rate"].max()
        tried = span(written(lowest, "rate"), written(highest, "rate"))
        ratio = rows["ratio_to_full"].median()
        times = f" (median {written(ratio, 'ratio')} full fine-tuning’s)" if ratio == ratio else ""
        parts.append(
            f"{tried} for {adapter_name(key['method'], key['target'])}, {key['rule']}{times}"
        )
    text = (
        "Every configuration’s learning rate was chosen on validation, by runs that did not read "
        "the test split."
    )
    if parts:
        text += f" Over the ranks it is {enumeration(parts)}."
    full = best.loc[best["method"] == "full", "learning_rate"]
    if len(full):
        text += f" Full fine-tuning’s is {written(full.iloc[0], 'rate')}."
    compared, tied = next_best(data.rates)
    if compared:
        text += (
            f" In {tied} of {counted(compared, 'case')} the next best rate is not told from the "
            f"chosen one (paired 95{NARROW_SPACE}% t interval over their seeds holds 0): "
            "other seeds might have chosen it."
        )
    at_end = best[~best["inside"].astype(bool)]
    ends = len(at_end.drop_duplicates([*CONFIGURATION, "learning_rate", "validation_loss"]))
    if ends:
        text += f" {counted(ends, 'case')} kept a rate at an end of the grid tried."
    return [Finding(topic="Learning rates", text=text, source=f"best_rates{data.suffix}")]


def next_best(rates: pd.DataFrame) -> tuple[int, int]:
    """Count the rows of `best_rates` whose two best rates can be compared, and those tied.

    A configuration that follows two rules of α has two rows, and counts once.
    """
    nearest = {}
    known = rates[rates["behind_low_95"].notna()]
    for key, rows in groups(known, [*CONFIGURATION, "rule"]):
        row = min(records(rows), key=lambda row: row["behind"])
        tried = tuple(zip(rows["learning_rate"], rows["behind"], strict=True))
        nearest[*(key[name] for name in CONFIGURATION), tried] = row["behind_low_95"]
    return len(nearest), sum(low <= 0.0 for low in nearest.values())
