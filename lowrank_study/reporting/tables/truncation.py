"""Test accuracy of truncated updates over seeds: the functional rank of full fine-tuning.

    score_by_kept_rank(data)     # one row a cut; no rows where nothing was truncated

A cut says how much of every matrix's update is kept (`answers/truncation.py`).
"""

import numpy as np
import pandas as pd

from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.answers.truncation import SCOPES
from lowrank_study.answers.truncation_tables import CUT_KEY
from lowrank_study.reporting.tables.roles import in_order
from lowrank_study.reporting.tables.rows import mean_of
from lowrank_study.reporting.tables.setting import SettingData

_COLUMNS = (
    *CUT_KEY, "n", "mean_test_score", "test_low_95", "test_high_95", "mean_difference",
    "difference_low_95", "difference_high_95", "kept_directions", "energy_kept", "examples",
)  # fmt: skip


def score_by_kept_rank(data: SettingData) -> pd.DataFrame:
    """Give test accuracy over the seeds of full fine-tuning, one row a cut of its update.

    The intervals are those of `interval_of_mean`. `mean_difference` is to the whole update of
    the same seeds, so that the spread of whole runs is no part of its interval.
    `kept_directions` and `energy_kept` are means over seeds.
    """
    table = data.study.truncation
    if table is None:
        return pd.DataFrame(columns=list(_COLUMNS))
    chosen = data.runs[data.runs["status"] == "done"]
    table = table[table["run_id"].isin(chosen["run_id"])]
    # A truncation that was stopped has not cut all seeds at every rank: those that it has not are
    # left out, for a mean over a few is not to be held against the interval of all.
    everywhere = (table["scope"] != "all") | (
        table.groupby(CUT_KEY, dropna=False)["run_id"].transform("nunique")
        == table["run_id"].nunique()
    )
    table = table[everywhere]
    accuracy = {
        str(run_id): float(value)
        for run_id, value in chosen[["run_id", "test_score"]].itertuples(index=False)
    }
    rows = []
    for key, group in table.groupby(CUT_KEY, dropna=False):
        values = group["test_score"].to_numpy(dtype=np.float64)
        whole = np.array([accuracy[run_id] for run_id in group["run_id"]])
        low, high = interval_of_mean(values)
        below, above = interval_of_mean(values - whole)
        rows.append(
            {
                **dict(zip(CUT_KEY, key, strict=True)),
                "n": len(values),
                "mean_test_score": values.mean(),
                "test_low_95": low,
                "test_high_95": high,
                "mean_difference": (values - whole).mean(),
                "difference_low_95": below,
                "difference_high_95": above,
                "kept_directions": mean_of(group["kept_directions"]),
                "energy_kept": mean_of(group["energy_kept"]),
                "examples": int(group["examples"].iloc[0]),
            }
        )
    made = pd.DataFrame(rows, columns=list(_COLUMNS))
    made["kept_rank"] = made["kept_rank"].astype("Int64")
    return made.iloc[_order(made)].reset_index(drop=True)


def _order(rows: pd.DataFrame) -> list[int]:
    roles = in_order(rows.loc[rows["scope"] == "roles", "part"])

    def place(index: int) -> tuple[int, float]:
        row = rows.iloc[index]
        if row["scope"] == "all":
            return 0, float(row["kept_rank"])
        if row["scope"] == "roles":
            return 3, roles.index(row["part"])
        number = float(row["part"]) if row["part"].isdecimal() else np.inf
        return SCOPES.index(row["scope"]), number

    return sorted(range(len(rows)), key=place)
