"""Claims on the spectra of updates, measured from the spectra tables of trained runs.

A run's value is the mean over its matrices of numbered layers that stand above the rounding
floor; the interval is over seeds.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from lowrank_study.claims.measures.evidence import Evidence, part, tuned_runs
from lowrank_study.claims.measures.intervals import over_seeds
from lowrank_study.claims.measures.outcome import Lacking, Outcome, measure

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


@measure
def full_update(
    evidence: Evidence,
    column: str,
    roles: Sequence[str] | None,
    over: Literal["dimension"] | None,
    layer: Literal["first", "last"] | None = None,
) -> Outcome:
    """Give the mean of a column over full fine-tuning's updates; null for all roles, all layers.

    Each matrix's value is divided by its min(out, in) where `over` is "dimension".
    """

    def quantity(matrices: pd.DataFrame) -> "pd.Series[float]":
        chosen = matrices[matrices["method"] == "full"]
        if roles is not None:
            chosen = chosen[chosen["role"].isin(list(roles))]
        if layer is not None:
            end = chosen["layer"].min() if layer == "first" else chosen["layer"].max()
            chosen = chosen[chosen["layer"] == end]
        if chosen.empty:
            raise Lacking("spectra of full fine-tuning")
        if column not in chosen.columns:
            raise Lacking(f"spectra with a column {column}")
        values = chosen[column].astype("float64")
        if over == "dimension":
            values /= chosen[["out_features", "in_features"]].min(axis=1)
        return values.groupby(chosen["seed"]).mean().dropna()

    where = "all roles" if roles is None else ", ".join(roles)
    named = " over min(out, in)" if over else ""
    layers = "the layers" if layer is None else f"the {layer} layer"
    how = f"{column}{named} of full fine-tuning's ΔW, mean over {layers} of {where}"
    return over_seeds(layer_matrices(evidence), quantity, how=how)
