"""What each configuration costs: size, time and memory, and their ratios to full fine-tuning.

    cost_by_method(study.runs, accuracy)      # one row a configuration

Medians, because a run that shared its machine is slow by no fault of its method. Runs that
trained together have a share each of their process's time, and all of its memory.
"""

import math

import pandas as pd

from lowrank_study.answers.rows import (
    CONFIGURATION,
    extreme_of,
    groups,
    median_of,
    over_full,
)
from lowrank_study.answers.scores import chosen_runs


def cost_by_method(runs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Give size, time and memory, one row a configuration, medians over its done runs.

    `*_ratio` divides by the median of full fine-tuning in the same setting; NaN without it.
    """
    picked = chosen_runs(runs, accuracy)
    picked = picked[picked["status"] == "done"]
    measures = ["checkpoint_bytes", "train_seconds", "peak_memory_bytes"]
    rows: list[dict[str, object]] = []
    for key, group in groups(picked, CONFIGURATION):
        trainable = median_of(group["trainable_parameters"])
        total = median_of(group["total_parameters"])
        row: dict[str, object] = {
            **key,
            "n": len(group),
            "steps": median_of(group["steps"]),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "trainable_share": trainable / total if total else math.nan,
        }
        for measure in measures:
            row[measure] = median_of(group[measure])
            row[f"min_{measure}"] = extreme_of(group[measure], largest=False)
            row[f"max_{measure}"] = extreme_of(group[measure], largest=True)
        row["pack_size"] = median_of(group["pack_size"])
        row["examples_per_second"] = median_of(group["examples_per_second"])
        rows.append(row)
    table = pd.DataFrame(rows)
    table["adapter_rank"] = table["adapter_rank"].astype("Int64")
    for measure in ["trainable_parameters", *measures]:
        table[f"{measure}_ratio"] = over_full(table, measure)
    return table
