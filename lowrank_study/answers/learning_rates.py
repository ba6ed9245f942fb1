"""Validation score by learning rate, and the chosen rates.

The runs are those that choose rates (`sweeps/tuning.py`). None of them reads the test split.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lowrank_study.answers.rows import CONFIGURATION, groups, mean_of, over_full
from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.sweeps.trials import preference
from lowrank_study.tasks.metric import Metric

BEHIND = ["behind", "behind_low_95", "behind_high_95"]
RATE_COLUMNS = [
    *("rule", "learning_rate", "runs", "lost", "stopped"),
    *("validation_score", "validation_loss", "chosen"),
    *BEHIND,
]


def rates_by_configuration(rates: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the mean validation score of each configuration and learning rate.

    `rule` gives α and the scaling as a function of the rank. `chosen` marks the rate of the
    reported runs. If `rates` lacks the column `reported`, as older records do, it is the rate that
    `sweeps.trials.preference` prefers. `behind` is how far a rate's score is worse than that of the
    chosen rate, over common seeds, with its t interval. `lost` counts the runs that are not done,
    and `stopped` those of them that a race stopped.
    """
    if not len(rates):
        return pd.DataFrame(columns=[*CONFIGURATION, *RATE_COLUMNS])
    runs, rows = with_rules(rates), []
    for key, group in groups(runs, [*CONFIGURATION, "rule", "learning_rate"]):
        done = group[group["status"] == "done"]
        rows.append(
            {
                **key,
                "runs": len(group),
                "lost": len(group) - len(done),
                "stopped": int((group["status"] == "stopped").sum()),
                "chosen": bool(group["reported"].any()) if "reported" in group else False,
                "validation_score": mean_of(done["validation_score"]),
                "validation_loss": mean_of(done["validation_loss"]),
            }
        )
    table = pd.DataFrame(rows)
    table["adapter_rank"] = table["adapter_rank"].astype("Int64")
    if "reported" not in runs:
        best = preferred(table, [*CONFIGURATION, "rule"], metric)
        table["chosen"] = table.index.isin(best) & (table["lost"] == 0)
    return table.join(_behind(table, runs, metric))


def _behind(table: pd.DataFrame, runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return how far each other rate is behind the chosen one, over their common seeds."""
    keys = [*CONFIGURATION, "rule"]
    scores = {
        tuple(key.values()): group.set_index("seed")["validation_score"]
        for key, group in groups(runs[runs["status"] == "done"], [*keys, "learning_rate"])
    }
    found = {}
    for key, rows in groups(table, keys):
        best = rows.loc[rows["chosen"], "learning_rate"]
        others = rows.loc[~rows["chosen"] & (rows["runs"] > rows["lost"]), "learning_rate"]
        for index, rate in others.items() if len(best) else ():
            apart = scores[*key.values(), best.iloc[0]] - scores[*key.values(), rate]
            apart = apart if metric.higher_is_better else -apart
            values = apart.dropna().to_numpy(dtype=np.float64)
            found[index] = (mean_of(apart), *interval_of_mean(values))
    return pd.DataFrame.from_dict(found, orient="index", columns=BEHIND, dtype=np.float64)


def preferred(table: pd.DataFrame, keys: Sequence[str], metric: Metric) -> list[int]:
    """Return the index of the row that validation prefers in each group of `keys`."""
    worth = table.apply(
        lambda row: preference(
            lost=row["lost"],
            metric=metric,
            score=row["validation_score"],
            loss=row["validation_loss"],
            rate=row["learning_rate"],
        ),
        axis="columns",
    )
    return [max(rows.index, key=worth.__getitem__) for _, rows in groups(table, list(keys))]


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the chosen rate of each configuration, with the range that was tried.

    `ratio_to_full` divides by the rate chosen for full fine-tuning in the same setting.
    """
    tried = table.groupby([*CONFIGURATION, "rule"], dropna=False)["learning_rate"]
    frame = table.assign(
        rates_tried=tried.transform("count"),
        lowest_tried=tried.transform("min"),
        highest_tried=tried.transform("max"),
    )
    best = frame[frame["chosen"]].drop(columns=["chosen", "lost", "runs"])
    return best.assign(
        ratio_to_full=over_full(best, "learning_rate"),
        inside=(best["learning_rate"] > best["lowest_tried"])
        & (best["learning_rate"] < best["highest_tried"]),
    ).reset_index(drop=True)


def with_rules(runs: pd.DataFrame) -> pd.DataFrame:
    """Add the column `rule`: how α and the scaling of B·A depend on the rank.

    A run that fits two rules (α = 16 and α = 2r at rank 8) gets two rows. If there are several
    ranks, at least two must fit a rule. A run that fits no rule is labelled by its α.
    """
    alpha, rank = runs["alpha"].astype(float), runs["adapter_rank"].astype(float)
    kinds = {True: "α/√r", False: "α/r"}
    parts = [runs[rank.isna()].assign(rule="")]
    for root, kind in kinds.items():
        mine = rank.notna() & ((runs["scaling_rule"] == "alpha_over_sqrt_rank") == root)
        rules = [(f"α={value:g}", mine & (alpha == value)) for value in sorted(set(alpha[mine]))]
        multiples = sorted(set((alpha / rank)[mine]))
        rules += [(f"α={value:g}r", mine & (alpha / rank == value)) for value in multiples]
        most = max((rank[rows].nunique() for _, rows in rules), default=0)
        if most < 2:
            rules = rules[: len(set(alpha[mine]))]
        kept = [(name, rows) for name, rows in rules if rank[rows].nunique() >= min(2, most)]
        if kept:
            of_rules = pd.concat([rows for _, rows in kept], axis="columns").any(axis="columns")
            others = mine & ~of_rules
            values = sorted(set(alpha[others]))
            kept += [(f"α={value:g}", others & (alpha == value)) for value in values]
        parts += [runs[rows].assign(rule=f"{name}, {kind}") for name, rows in kept]
    return pd.concat(parts, ignore_index=True)
