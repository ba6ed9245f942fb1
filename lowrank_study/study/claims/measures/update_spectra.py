"""Claims on the spectra of updates, measured from the spectra tables of trained runs.

A run's value is the mean over its matrices of numbered layers that stand above the rounding
floor; the interval is over seeds.
"""

from collections.abc import Sequence

import pandas as pd

from lowrank_study.study.claims.measures.accuracy import unless_lacking
from lowrank_study.study.claims.measures.evidence import Evidence, part, tuned_runs
from lowrank_study.study.claims.measures.intervals import over_tasks
from lowrank_study.study.claims.measures.outcome import Lacking, Outcome, measure

NEEDS = "spectra of trained runs: sweep=NAME"


def layer_matrices(evidence: Evidence) -> pd.DataFrame:
    """Give the resolvable matrices of numbered layers, each with its run's setting.

    Raises:
        Lacking: There are none.
    """
    runs = tuned_runs(evidence)[["run_id", "setting", "method", "target", "adapter_rank", "seed"]]
    spectra = part(evidence.spectra, NEEDS)
    kept = spectra[spectra["layer"].notna() & spectra["resolvable"]]
    return part(kept.merge(runs, on="run_id"), "matrices above the rounding floor of these runs")


def _per_seed(matrices: pd.DataFrame, column: str) -> "pd.Series[float]":
    if column not in matrices.columns:
        raise Lacking(f"spectra with a column {column}")
    values = matrices.groupby("seed")[column].mean().astype("float64").dropna()
    if values.empty:
        raise Lacking(f"such runs with {column}")
    return values


@measure
@unless_lacking
def full_update(
    evidence: Evidence, column: str, roles: Sequence[str] | None, over_dimension: bool
) -> Outcome:
    """Give the mean of a column over full fine-tuning's updates; null for all roles.

    `over_dimension` divides each matrix's value by min(out, in).
    """

    def quantity(matrices: pd.DataFrame) -> "pd.Series[float]":
        chosen = matrices[matrices["method"] == "full"]
        if roles is not None:
            chosen = chosen[chosen["role"].isin(list(roles))]
        if chosen.empty:
            raise Lacking("spectra of full fine-tuning")
        if over_dimension:
            smaller = chosen[["out_features", "in_features"]].min(axis=1)
            chosen = chosen.assign(**{column: chosen[column].astype("float64") / smaller})
        return _per_seed(chosen, column)

    where = "all roles" if roles is None else ", ".join(roles)
    over = " over min(out, in)" if over_dimension else ""
    how = f"{column}{over} of full fine-tuning's ΔW, mean over the layers of {where}"
    return over_tasks(layer_matrices(evidence), quantity, how=how)


@measure
@unless_lacking
def full_over_lora(evidence: Evidence, column: str, target: str, adapter_rank: int) -> Outcome:
    """Give a column of full fine-tuning's updates over LoRA's, matrix by matrix, then the mean."""

    def quantity(matrices: pd.DataFrame) -> "pd.Series[float]":
        lora = matrices[
            (matrices["method"] == "lora")
            & (matrices["target"] == target)
            & (matrices["adapter_rank"] == adapter_rank)
        ]
        full = matrices[matrices["method"] == "full"]
        pairs = full.merge(lora, on=["seed", "module"], suffixes=("_full", "_lora"))
        if pairs.empty:
            raise Lacking(f"spectra of full fine-tuning and of r = {adapter_rank} on {target}")
        ratio = pairs[f"{column}_full"].astype("float64") / pairs[f"{column}_lora"].astype(
            "float64"
        )
        return _per_seed(pairs.assign(ratio=ratio), "ratio")

    how = f"{column} of full fine-tuning over that of r = {adapter_rank} on {target}, same matrices"
    return over_tasks(layer_matrices(evidence), quantity, how=how)
