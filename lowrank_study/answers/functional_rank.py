"""What the truncated updates of a sweep's full fine-tuning classify rightly, as tables.

    truncation_table(runs, Path("results"))       # one row a run and cut
    scores_by_kept_rank(runs, results)[8]    # (seeds, examples)

A run's evaluations are one Parquet file, one row a cut (`truncation.py`) and test text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.answers.roles import in_order
from lowrank_study.answers.rows import mean_of
from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.errors import InputError
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import TrainedRun

SCOPES = ("all", "noise_cut", "layers", "roles")
TRUNCATION_KEY = ["scope", "part", "kept_rank"]
"""What tells the cuts of a run apart; `kept_rank` is missing but for the scope `all`."""


def read_truncation(run: TrainedRun, results: Path) -> pd.DataFrame | None:
    """Return the evaluations of a run's truncated updates, or `None` if there are none.

    Raises
    ------
    InputError
        The file is damaged, or the run's checkpoint has changed since.
    """
    path = truncation_file(results, run.spec.run_id)
    if not path.is_file():
        return None
    remedy = f"remove it and run experiments/truncate.py on the sweep of {run.spec.run_id} again"
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as a table: {remedy}") from error
    if rows.attrs.get("made_from") != run.checkpoint_sha256:
        raise InputError(
            f"{path} was evaluated on another checkpoint than the run has now: {remedy}"
        )
    return rows


TRUNCATION_COLUMNS = {
    **dict.fromkeys(["run_id", "scope", "part"], "text"),
    **dict.fromkeys(["kept_rank", "kept_directions"], "whole"),
    **dict.fromkeys(["energy_kept", "test_score"], "real"),
    "examples": "whole",
}


def truncation_table(runs: Sequence[TrainedRun], results: Path) -> pd.DataFrame:
    """Return one row a run and cut, of the runs that have been truncated.

    `kept_directions` are those kept over all matrices together, `energy_kept` their share of
    Σ‖ΔW‖²_F over all matrices.
    """
    parts = []
    for run in runs:
        rows = read_truncation(run, results)
        if rows is not None:
            rows["correct"] = rows["label"] == rows["predicted"]
            made = rows.groupby(TRUNCATION_KEY, dropna=False, sort=False).agg(
                kept_directions=("kept_directions", "first"),
                energy_kept=("energy_kept", "first"),
                test_score=("correct", "mean"),
                examples=("correct", "size"),
            )
            made = made.reset_index().sort_values("kept_rank", kind="stable")
            parts.append(made.assign(run_id=run.spec.run_id))
    if not parts:
        return pd.DataFrame(columns=list(TRUNCATION_COLUMNS))
    return pd.concat(parts, ignore_index=True)[list(TRUNCATION_COLUMNS)]


def scores_by_kept_rank(
    runs: Sequence[TrainedRun], results: Path
) -> dict[int, npt.NDArray[np.bool_]]:
    """Return which test texts are classified rightly at each kept rank, (seeds, examples).

    Seeds are in the order of `runs`; the highest rank is the tuned model itself. Only ranks
    that all of the runs have are there.

    Raises
    ------
    InputError
        A run has not been truncated, or the runs don't share their test texts.
    """
    found: list[dict[int, npt.NDArray[np.bool_]]] = []
    labels: npt.NDArray[np.int64] | None = None
    for run in runs:
        if (rows := read_truncation(run, results)) is None:
            path = truncation_file(results, run.spec.run_id)
            raise InputError(f"no {path}: run experiments/truncate.py on its sweep first")
        found.append({})
        for kept, group in rows[rows["scope"] == "all"].groupby("kept_rank"):
            own = group["label"].to_numpy()
            if not np.array_equal(own, own if labels is None else labels):
                raise InputError(
                    f"{run.spec.run_id} has other test texts than {runs[0].spec.run_id}: give "
                    "runs of one task"
                )
            labels = own
            found[-1][int(str(kept))] = own == group["predicted"].to_numpy()
    shared = sorted(set.intersection(*(set(ranks) for ranks in found))) if found else []
    return {rank: np.stack([ranks[rank] for ranks in found]) for rank in shared}


_COLUMNS = (
    *TRUNCATION_KEY, "n", "mean_test_score", "test_low_95", "test_high_95", "mean_difference",
    "difference_low_95", "difference_high_95", "kept_directions", "energy_kept", "examples",
)  # fmt: skip


def score_by_kept_rank(truncation: pd.DataFrame | None, runs: pd.DataFrame) -> pd.DataFrame:
    """Give test accuracy over the seeds of full fine-tuning, one row a cut of its update.

    The intervals are those of `interval_of_mean`. `mean_difference` is to the whole update of
    the same seeds, so that the spread of whole runs is no part of its interval.
    `kept_directions` and `energy_kept` are means over seeds.
    """
    if truncation is None:
        return pd.DataFrame(columns=list(_COLUMNS))
    chosen = runs[runs["status"] == "done"]
    table = truncation[truncation["run_id"].isin(chosen["run_id"])]
    # A truncation that was stopped has not cut all seeds at every rank: those that it has not are
    # left out, for a mean over a few is not to be held against the interval of all.
    everywhere = (table["scope"] != "all") | (
        table.groupby(TRUNCATION_KEY, dropna=False)["run_id"].transform("nunique")
        == table["run_id"].nunique()
    )
    table = table[everywhere]
    accuracy = {
        str(run_id): float(value)
        for run_id, value in chosen[["run_id", "test_score"]].itertuples(index=False)
    }
    rows = []
    for key, group in table.groupby(TRUNCATION_KEY, dropna=False):
        values = group["test_score"].to_numpy(dtype=np.float64)
        whole = np.array([accuracy[run_id] for run_id in group["run_id"]])
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
