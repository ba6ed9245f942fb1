"""The functional rank: the smallest rank that the update of full fine-tuning needs.

`truncation.py` truncates and evaluates, `truncated_runs.py` does so for a sweep. A run's
evaluations are one Parquet file with one row per truncation and test example.
`sufficient_rank.py` tests these scores against those of the whole update.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.answers.roles import in_order
from lowrank_study.answers.rows import mean_of
from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.answers.tables import read_table
from lowrank_study.errors import InputError
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import TrainedRun

SCOPES = ("all", "noise_cut", "layers", "roles")
TRUNCATION_KEY = ["scope", "part", "kept_rank"]
"""Identifies a truncation of a run; `kept_rank` is NA except for the scope `all`."""


def read_truncation(run: TrainedRun, results: Path) -> pd.DataFrame | None:
    """Return the evaluations of a run's truncated updates, or `None` if there are none."""
    path = truncation_file(results, run.spec.run_id)
    if not path.is_file():
        return None
    remedy = f"delete it and run experiments/truncate.py again for the sweep of {run.spec.run_id}"
    rows = read_table(path, remedy=remedy)
    if rows.attrs.get("made_from") != run.checkpoint_sha256:
        raise InputError(f"{path} was made from an earlier checkpoint of the run: {remedy}")
    return rows


TRUNCATION_COLUMNS = {
    **dict.fromkeys(["run_id", "scope", "part"], "text"),
    **dict.fromkeys(["kept_rank", "kept_directions"], "whole"),
    **dict.fromkeys(["energy_kept", "test_score"], "real"),
    "examples": "whole",
}


def truncation_table(runs: Sequence[TrainedRun], results: Path) -> pd.DataFrame:
    """Return one row per truncated run and truncation.

    `kept_directions` counts the kept directions of all matrices together. `energy_kept` is their
    share of Σ‖ΔW‖²_F over all matrices.
    """
    parts = []
    for run in runs:
        rows = read_truncation(run, results)
        if rows is not None:
            task = run.spec.task
            rows["weight"] = task.weights(rows)
            rows["weighted"] = rows["weight"] * task.scores(rows)
            made = rows.groupby(TRUNCATION_KEY, dropna=False, sort=False).agg(
                kept_directions=("kept_directions", "first"),
                energy_kept=("energy_kept", "first"),
                weight=("weight", "sum"),
                weighted=("weighted", "sum"),
                examples=("weighted", "size"),
            )
            made["test_score"] = made["weighted"] / made["weight"]
            made = made.reset_index().sort_values("kept_rank", kind="stable")
            parts.append(made.assign(run_id=run.spec.run_id))
    if not parts:
        return pd.DataFrame(columns=list(TRUNCATION_COLUMNS))
    return pd.concat(parts, ignore_index=True)[list(TRUNCATION_COLUMNS)]


def scores_by_kept_rank(
    runs: Sequence[TrainedRun], results: Path
) -> dict[int, npt.NDArray[np.float64]]:
    """Return the scores of the test examples at each kept rank, (seeds, examples).

    Seeds are in the order of `runs`. Only ranks that all runs have are included; the highest one
    is the tuned model.

    Raises:
        InputError: A run has not been truncated, or the runs have different test examples.
    """
    found: list[dict[int, npt.NDArray[np.float64]]] = []
    labels: npt.NDArray[np.int64] | None = None
    for run in runs:
        if (rows := read_truncation(run, results)) is None:
            path = truncation_file(results, run.spec.run_id)
            raise InputError(f"{path} is missing: run experiments/truncate.py on its sweep first")
        found.append({})
        for kept, group in rows[rows["scope"] == "all"].groupby("kept_rank"):
            own = group["label"].to_numpy()
            if not np.array_equal(own, own if labels is None else labels):
                raise InputError(
                    f"{run.spec.run_id} and {runs[0].spec.run_id} have different test examples: "
                    "give runs of one task"
                )
            labels = own
            found[-1][int(str(kept))] = run.spec.task.scores(group)
    shared = sorted(set.intersection(*(set(ranks) for ranks in found))) if found else []
    return {rank: np.stack([ranks[rank] for ranks in found]) for rank in shared}


def whole_update(run: TrainedRun, results: Path) -> pd.DataFrame:
    """Return the predictions with the whole update, and those of the base model if they exist."""
    every = read_truncation(run, results)
    assert every is not None, "scores_by_kept_rank has read it"
    whole = every["kept_rank"] == every["kept_rank"].max()
    rows: pd.DataFrame = every[whole].reset_index(drop=True)
    task = run.spec.task
    if task.metric.needs_base:
        remedy = "delete the folder of this run and rerun its sweep"
        file = run.folder / "predictions.parquet"
        rows = rows.join(read_table(file, remedy=remedy, columns=task.base_columns()))
    return rows


_COLUMNS = (
    *TRUNCATION_KEY, "n", "mean_test_score", "test_low_95", "test_high_95", "mean_difference",
    "difference_low_95", "difference_high_95", "kept_directions", "energy_kept", "examples",
)  # fmt: skip


def score_by_kept_rank(truncation: pd.DataFrame | None, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the test score over seeds of full fine-tuning, one row per truncation.

    The intervals are those of `interval_of_mean`. `mean_difference` compares with the whole update
    of the same seed, so its interval excludes the variance between seeds. `kept_directions` and
    `energy_kept` are means over seeds.

    Args:
        truncation: The table of `truncation_table`; `None` gives no rows.
        runs: The runs at the chosen learning rates, as `tables.runs_table` gives them.
    """
    if truncation is None:
        return pd.DataFrame(columns=list(_COLUMNS))
    chosen = runs[runs["status"] == "done"]
    table = truncation[truncation["run_id"].isin(chosen["run_id"])]
    # An interrupted truncation lacks some seeds at some ranks. Leave these ranks out: a mean over
    # fewer seeds is not comparable.
    everywhere = (table["scope"] != "all") | (
        table.groupby(TRUNCATION_KEY, dropna=False)["run_id"].transform("nunique")
        == table["run_id"].nunique()
    )
    table = table[everywhere]
    score_of = dict(zip(chosen["run_id"], chosen["test_score"], strict=True))
    rows = []
    for key, group in table.groupby(TRUNCATION_KEY, dropna=False):
        values = group["test_score"].to_numpy(dtype=np.float64)
        whole = np.array([score_of[run_id] for run_id in group["run_id"]], dtype=np.float64)
        low, high = interval_of_mean(values)
        below, above = interval_of_mean(values - whole)
        rows.append(
            {
                **dict(zip(TRUNCATION_KEY, key, strict=True)),
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
    return made.iloc[_by_scope(made)].reset_index(drop=True)


def _by_scope(rows: pd.DataFrame) -> list[int]:
    """Return the positions of the rows in the order of scopes, ranks, layers and roles."""
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
