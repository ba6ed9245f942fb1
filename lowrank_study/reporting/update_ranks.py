"""The ranks of updates, condensed over seeds and matrices.

    spectra = spectra_of_chosen(study, scores)
    rank_by_module(spectra)      # one row a configuration, layer and role

Medians cover only resolvable updates; each row counts them.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.answers.rows import CONFIGURATION, Vector, middle_of, places_of, shared_value
from lowrank_study.answers.scores import chosen_runs
from lowrank_study.reporting.study import StudyTables
from lowrank_study.spectra.measures import shown_in
from lowrank_study.spectra.noise import noise_energy_rank


def spectra_of_chosen(study: StudyTables, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the spectra of done runs at the chosen learning rates, with their configuration.

    `largest_possible_rank` is the adapter rank if no update of that configuration and module has a
    higher numerical rank (as for LoRA's products), and min(out, in) otherwise (full fine-tuning,
    and modules that an adapter run trained as a whole).

    Outside the layers the role is the whole module path, because its last part is ambiguous
    (BERT's pooler and RoBERTa's head are both a “dense”).
    """
    runs = chosen_runs(study.runs, scores)
    runs = runs[(runs["status"] == "done") & runs["test_score"].notna()]
    joined = study.spectra.merge(
        runs[["run_id", *CONFIGURATION, "learning_rate", "seed"]], on="run_id", how="inner"
    )
    smaller = joined[["out_features", "in_features"]].min(axis=1).astype(float)
    highest = joined.groupby([*CONFIGURATION, "module"], dropna=False)["numerical_rank"].transform(
        "max"
    )
    rank = joined["adapter_rank"].astype("Float64").astype(float)
    bounded = rank.notna() & ~(highest > rank)
    joined["role"] = joined["role"].where(joined["layer"].notna(), joined["module"])
    joined["largest_possible_rank"] = np.where(bounded, np.minimum(rank, smaller), smaller)
    return joined


def rank_by_module(spectra: pd.DataFrame) -> pd.DataFrame:
    """Condense `spectra_of_chosen` to one row a configuration, layer and role.

    Medians cover the resolvable matrices of all seeds (and of all modules that share a layer and a
    role). `n` counts matrices, `resolvable` those above the rounding floor of the stored weights.
    """
    keys = [*CONFIGURATION, "layer", "role"]
    table = _ranks(spectra, keys)
    table["noise_energy_rank_90"] = [
        math.nan if pd.isna(out) or pd.isna(inside) else noise_energy_rank(int(out), int(inside))
        for out, inside in zip(table["out_features"], table["in_features"], strict=True)
    ]
    return table


def rank_by_layer(spectra: pd.DataFrame) -> pd.DataFrame:
    """Condense `spectra_of_chosen` to one row a configuration and layer."""
    return _ranks(spectra[spectra["layer"].notna()], [*CONFIGURATION, "layer"])


def rank_by_configuration(spectra: pd.DataFrame) -> pd.DataFrame:
    """Condense `spectra_of_chosen` inside the layers to one row a configuration."""
    return _ranks(spectra[spectra["layer"].notna()], CONFIGURATION)


def _ranks(spectra: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    names = [*(measure.name for measure in MEASURES), "largest_possible_rank"]
    reals = {name: spectra[name].to_numpy(dtype=np.float64) for name in names}
    reals["share_of_possible"] = reals["energy_rank_90"] / reals["largest_possible_rank"]
    resolvable = spectra["resolvable"].to_numpy(dtype=bool)
    seeds, dtypes = spectra["seed"].to_numpy(), spectra["storage_dtype"].to_numpy()
    shapes = {name: spectra[name].to_numpy() for name in ("out_features", "in_features")}
    rows: list[dict[str, Any]] = []
    for key, places in places_of(spectra, keys):
        clear = places[resolvable[places]]
        # A norm does not need a resolvable rank.
        of = {measure.name: places if measure.group == "size" else clear for measure in MEASURES}
        rows.append(
            {
                **key,
                "seeds": len(set(seeds[places])),
                "n": len(places),
                "resolvable": len(clear),
                **_spread(reals["energy_rank_90"][clear]),
                "largest_possible_rank": float(reals["largest_possible_rank"][places].max()),
                "median_share_of_possible": middle_of(reals["share_of_possible"][clear]),
                **{f"median_{name}": middle_of(reals[name][mine]) for name, mine in of.items()},
                **{name: shared_value(values[places]) for name, values in shapes.items()},
                "storage_dtype": ", ".join(sorted(set(dtypes[places]))),
            }
        )
    table = pd.DataFrame(rows, columns=[*keys, *_RANK_COLUMNS])
    for column in {"adapter_rank", "layer", "out_features", "in_features"} & set(table.columns):
        table[column] = table[column].astype("Int64")
    return table


def _spread(energy: Vector) -> dict[str, float]:
    """Return median, extremes and deciles of the 90 % energy ranks that are known."""
    known = energy[~np.isnan(energy)]
    values = [math.nan] * 5
    if len(known):
        low, high = np.quantile(known, [0.1, 0.9])
        values = [middle_of(known), known.min(), low, high, known.max()]
    return dict(zip(_SPREAD, map(float, values), strict=True))


_SPREAD = (
    "median_energy_rank_90", "min_energy_rank_90", "energy_rank_90_decile_1",
    "energy_rank_90_decile_9", "max_energy_rank_90",
)  # fmt: skip
MEASURES = shown_in("sweep")
MEDIANS = tuple(f"median_{measure.name}" for measure in MEASURES)
_RANK_COLUMNS = list(
    dict.fromkeys(
        [
            *("seeds", "n", "resolvable", *_SPREAD),
            *("largest_possible_rank", "median_share_of_possible", *MEDIANS),
            *("out_features", "in_features", "storage_dtype"),
        ]
    )
)

Adapter = tuple[str, str, int]
"""Method, target and rank."""


def shown_adapter(spectra: pd.DataFrame, *, highest: bool) -> Adapter | None:
    """Choose the adapter with the most roles; of its ranks the highest, or the middle one."""
    ranked = spectra[spectra["adapter_rank"].notna() & spectra["layer"].notna()]
    if not len(ranked):
        return None
    roles = ranked.groupby(["method", "target"])["role"].nunique()
    method, target = sorted(roles.index, key=lambda pair: (-int(roles.loc[pair]), pair))[0]
    rows = ranked[(ranked["method"] == method) & (ranked["target"] == target)]
    ranks = sorted({int(rank) for rank in rows["adapter_rank"]})
    return method, target, ranks[-1] if highest else ranks[(len(ranks) - 1) // 2]


def rows_of(frame: pd.DataFrame, adapter: Adapter | None) -> pd.DataFrame:
    """Return the rows of a table that belong to an adapter; none without one."""
    if adapter is None:
        return frame.iloc[:0]
    method, target, rank = adapter
    is_rank = frame["adapter_rank"].fillna(-1) == rank
    return frame[(frame["method"] == method) & (frame["target"] == target) & is_rank]
