"""Held-out scores along training, and when a rank falls behind full fine-tuning.

    curves = curves_table(runs)                # one row per evaluation on validation
    mean_curves(curves, chosen)                # mean over seeds, per configuration and step
    falls_behind(curves, chosen, margin=margin, metric=metric)      # one row per rank

Only the runs of language models count their training tokens, so only they have curves. Shape
suffixes: S seeds, E evaluations.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lowrank_study.answers.columns import typed_table
from lowrank_study.answers.rows import CONFIGURATION, groups
from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.runs.store import TrainedRun
from lowrank_study.tasks.metric import Margin, Metric

Vector = npt.NDArray[np.float64]

CURVE_COLUMNS = {
    "run_id": "text",
    **dict.fromkeys(["step", "predicted_tokens"], "whole"),
    **dict.fromkeys(["epochs", "rate_share"], "real"),
    "validation_score": "score",
}
BEHIND_COLUMNS = {
    **dict.fromkeys(["task", "model", "method", "target"], "text"),
    **dict.fromkeys(["adapter_rank", "seeds"], "whole"),
    **dict.fromkeys(["margin_share", "margin", "difference"], "real"),
    **dict.fromkeys(["first_tokens", "last_tokens", "behind_from"], "real"),
    **dict.fromkeys(["behind_from_low_95", "behind_from_high_95", "caught_up_at"], "real"),
}

_AVERAGED = ("predicted_tokens", "epochs", "rate_share")


def curves_table(runs: Sequence[TrainedRun]) -> pd.DataFrame:
    """Return one row per evaluation of each done run that counted its predicted tokens.

    `predicted_tokens` are those of the training batches so far, `epochs` the passes over the
    training rows so far, and `rate_share` is the learning rate of the last step as a share of its
    peak. Step 0 is the base model, which only full fine-tuning evaluates.
    """
    rows = [
        {
            "run_id": run.spec.run_id,
            "step": point["step"],
            "predicted_tokens": point["predicted_tokens"],
            "epochs": run.spec.train.epochs * point["step"] / run.record["steps"],
            "rate_share": run.spec.train.rate_share(point["step"] - 1, run.record["steps"])
            if point["step"]
            else math.nan,
            "validation_score": point[run.spec.task.metric.name],
        }
        for run in runs
        if run.status == "done"
        for point in run.record.get("curve", [])
        if "predicted_tokens" in point
    ]
    return typed_table(pd.DataFrame(rows, columns=list(CURVE_COLUMNS)), CURVE_COLUMNS, "curves")


def mean_curves(curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean, lowest and highest score over seeds of each configuration and step.

    `difference` is the score minus that of full fine-tuning with the same seed, over the seeds that
    both have. Tokens are a mean over seeds too, because each seed has its own order of the data.
    """
    rows = _of_runs(curves, runs)
    full = rows.loc[rows["method"] == "full", ["seed", "step", "validation_score"]]
    full = full.rename(columns={"validation_score": "full_score"})
    rows = rows.merge(full, on=["seed", "step"], how="left")
    rows["difference"] = rows["validation_score"] - rows["full_score"]
    means = [
        {
            **key,
            "n": len(group),
            **{name: float(group[name].mean()) for name in _AVERAGED},
            **{
                f"{of}_{name}": float(group[name].agg(of))
                for name in ("validation_score", "difference")
                for of in ("mean", "min", "max")
            },
        }
        for key, group in groups(rows, [*CONFIGURATION, "step"])
    ]
    return pd.DataFrame(means).astype({"adapter_rank": "Int64"})


def falls_behind(
    curves: pd.DataFrame, runs: pd.DataFrame, *, margin: Margin, metric: Metric
) -> pd.DataFrame:
    """Say for each rank from how many tokens on it is behind full fine-tuning.

    A rank is behind at an evaluation if its mean score is worse by more than the margin, over the
    seeds that both have. `behind_from` are the tokens at the first evaluation from which on it
    stays behind to the end, NaN if it is not behind at the end; `caught_up_at` are those of the
    first evaluation from which on it is not behind, if it was before. A share m of the gain makes
    difference + m · gain the tested quantity, seed by seed, as in `rank_tests`. The gain is that of
    full fine-tuning's best evaluation over the base model.

    The limits of `behind_from` invert the Student t intervals over seeds at each evaluation: at
    the lower limit, being behind can't be excluded from there on, and at the upper one it is shown
    from there on. They are NaN where that is so at no evaluation, or with fewer than two seeds. The
    upper limit needs no correction for the number of evaluations, because it is too low only if
    the one evaluation before the true onset fails.

    Returns:
        The columns `BEHIND_COLUMNS`; no rows if full fine-tuning has no gain to take a share of.
    """
    worth = _of_runs(curves, runs)
    worth = worth.assign(worth=worth["validation_score"].map(metric.worth))
    full_SE = _by_seed(worth[worth["method"] == "full"])
    allowed_S = _allowed(full_SE, margin)
    tokens = worth.groupby("step")["predicted_tokens"].mean()
    rows = []
    for key, group in groups(worth[worth["adapter_rank"].notna()], CONFIGURATION):
        adapter_SE = _by_seed(group)
        seeds = adapter_SE.index.intersection(allowed_S.index)
        steps = adapter_SE.columns.intersection(full_SE.columns)
        if not (len(seeds) and len(steps) and allowed_S[seeds].mean() > 0):
            continue
        difference_SE = adapter_SE.loc[seeds, steps] - full_SE.loc[seeds, steps]
        excess_SE = difference_SE.add(allowed_S[seeds], axis="index")
        rows.append(
            {
                **key,
                "seeds": len(seeds),
                "margin_share": margin.share,
                "margin": float(allowed_S[seeds].mean()),
                "difference": float(difference_SE.iloc[:, -1].mean()),
                **_onset(excess_SE.to_numpy(), tokens[steps].to_numpy(dtype=np.float64)),
            }
        )
    return typed_table(pd.DataFrame(rows, columns=list(BEHIND_COLUMNS)), BEHIND_COLUMNS, "behind")


def _of_runs(curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the evaluations of these runs, with their configuration and seed."""
    return curves.merge(runs[["run_id", *CONFIGURATION, "seed"]], on="run_id")


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the worth of the scores with one row per seed and one column per step."""
    return rows.pivot(index="seed", columns="step", values="worth")


def _allowed(full_SE: pd.DataFrame, margin: Margin) -> "pd.Series[float]":
    """Return the largest acceptable loss for each seed for which it is known."""
    if not margin.share:
        return pd.Series(margin.points, index=full_SE.index)
    base_S = full_SE.get(0, math.nan)
    trained_SE = full_SE[[step for step in full_SE if step]]
    return (margin.share * (trained_SE.max(axis=1) - base_S)).dropna()


def _onset(excess_SE: Vector, tokens_E: Vector) -> dict[str, float]:
    """Return from how many tokens on the excess over the margin stays below 0, with its limits."""
    mean_E = excess_SE.mean(axis=0)
    limits = [interval_of_mean(of_seeds) for of_seeds in excess_SE.T]
    low_E, high_E = np.array(limits).T

    def from_tokens(is_E: npt.NDArray[np.bool_]) -> float:
        """Return the tokens at the first evaluation from which on all are true."""
        kept = tokens_E[np.logical_and.accumulate(is_E[::-1])[::-1]]
        return float(kept[0]) if len(kept) else math.nan

    return {
        "first_tokens": float(tokens_E[0]),
        "last_tokens": float(tokens_E[-1]),
        "behind_from": from_tokens(mean_E < 0),
        "behind_from_low_95": from_tokens(low_E < 0),
        "behind_from_high_95": from_tokens(high_E < 0),
        "caught_up_at": from_tokens(mean_E >= 0) if (mean_E < 0).any() else math.nan,
    }
