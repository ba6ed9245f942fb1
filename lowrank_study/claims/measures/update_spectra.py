"""Claims on the spectra of full updates, measured from the spectra tables of trained runs.

A run's value is the mean over the matrices of numbered layers above the rounding floor. The
interval is over seeds.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from lowrank_study.claims.measures.evidence import Evidence, part, tuned_runs
from lowrank_study.claims.measures.intervals import over_seeds
from lowrank_study.claims.measures.outcome import Lacking, Outcome, measure


@measure
def full_update(
    evidence: Evidence,
    column: str,
    roles: Sequence[str] | None,
    over: Literal["dimension"] | None,
    layer: Literal["first", "last"] | None = None,
) -> Outcome:
    """Return the mean of a column over full fine-tuning's updates.

    Args:
        evidence: The tables.
        column: Column of the spectra table.
        roles: Roles of the matrices; null for all.
        over: "dimension" divides each value by min(out, in).
        layer: One layer; null for all.
    """
    runs = tuned_runs(evidence)[["run_id", "setting", "method", "seed"]]
    spectra = part(evidence.spectra, "spectra of trained runs: sweep=NAME")
    kept = spectra[spectra["layer"].notna() & spectra["resolvable"]].merge(runs, on="run_id")
    kept = part(kept, "matrices of these runs above the rounding floor")

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

    divided = " over min(out, in)" if over else ""
    layers = "all layers" if layer is None else f"the {layer} layer"
    where = "all roles" if roles is None else " or ".join(roles)
    how = f"{column}{divided} of full fine-tuning's ΔW, mean over {layers}, role {where}"
    return over_seeds(kept, quantity, how=how)
