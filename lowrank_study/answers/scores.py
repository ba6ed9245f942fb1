"""Test scores over seeds, and the chosen learning rate of each configuration.

If a configuration was run with several learning rates (or values of α), validation chooses one
(`sweeps.trials.preference`). The test score never chooses.
"""

import math

import numpy as np
import pandas as pd

from lowrank_study.answers.columns import typed_table
from lowrank_study.answers.learning_rates import preferred
from lowrank_study.answers.rows import (
    CONFIGURATION,
    TUNING,
    groups,
    key_of,
    mean_of,
    median_of,
    whole,
)
from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.answers.tables import RUN_COLUMNS
from lowrank_study.tasks.metric import Metric


def score_by_rank(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the test score over seeds of each configuration and learning rate.

    `n` counts the done runs with a test score. Means, sd and the interval (`test_low_95`,
    `test_high_95`, see `interval_of_mean`) are over these runs. `runs`, `diverged` and `failed`
    count all runs. `test_standard_error` is the error of one score from the sampling of the test
    set (`Metric.standard_error`), which the interval over seeds does not include.
    `chosen` marks the learning rate that figures and sentences use.
    """
    typed = typed_table(runs, RUN_COLUMNS, "runs")
    rows = [
        {**key, **_score_of(group, metric)}
        for key, group in groups(typed, [*CONFIGURATION, *TUNING])
    ]
    table = pd.DataFrame(rows)
    table["adapter_rank"] = table["adapter_rank"].astype("Int64")
    for column in ("trainable_parameters", "total_parameters", "test_examples"):
        table[column] = table[column].astype("Int64")
    seen = table.rename(columns=lambda name: name.removeprefix("mean_"))
    chosen = preferred(seen.assign(lost=table["diverged"] + table["failed"]), CONFIGURATION, metric)
    table["chosen"] = table.index.isin(chosen)
    return table


def _score_of(group: pd.DataFrame, metric: Metric) -> dict[str, object]:
    done = group[(group["status"] == "done") & group["test_score"].notna()]
    test = done["test_score"].to_numpy(dtype=np.float64)
    low, high = interval_of_mean(test)
    mean = float(test.mean()) if len(test) else math.nan
    examples = median_of(done["test_examples"])
    return {
        "runs": len(group),
        "n": len(test),
        "diverged": int((group["status"] == "diverged").sum()),
        "failed": int((group["status"] == "failed").sum()),
        "mean_test_score": mean,
        "sd_test_score": float(test.std(ddof=1)) if len(test) > 1 else math.nan,
        "test_low_95": low,
        "test_high_95": high,
        "min_test_score": float(test.min()) if len(test) else math.nan,
        "max_test_score": float(test.max()) if len(test) else math.nan,
        "mean_validation_score": mean_of(done["validation_score"]),
        "mean_validation_loss": mean_of(done["validation_loss"]),
        "mean_train_score": mean_of(done["train_score"]),
        "mean_test_macro_f1": mean_of(done["test_macro_f1"]),
        "chance": mean_of(done["chance"]),
        "test_examples": whole(examples),
        "test_standard_error": metric.standard_error(mean, examples),
        "trainable_parameters": whole(median_of(done["trainable_parameters"])),
        "total_parameters": whole(median_of(done["total_parameters"])),
    }


def at_several_scalings(scores: pd.DataFrame) -> bool:
    """Return whether a configuration was run with more than one α or scaling rule.

    The chosen rows may then follow different rules at different ranks.
    """
    tried = scores[[*CONFIGURATION, "alpha", "scaling_rule"]].drop_duplicates()
    return bool(tried.duplicated(CONFIGURATION).any())


def chosen_runs(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the runs at each configuration's chosen learning rate, whatever their status."""
    runs = typed_table(runs, RUN_COLUMNS, "runs")
    keys = scores.loc[scores["chosen"], [*CONFIGURATION, *TUNING]]
    wanted = {key_of(row) for row in keys.itertuples(index=False, name=None)}
    rows = runs[[*CONFIGURATION, *TUNING]].itertuples(index=False, name=None)
    return runs[[key_of(row) in wanted for row in rows]]
