"""The ranks of updates, condensed over seeds and matrices.

    spectra = spectra_of_chosen(study, accuracy)
    rank_by_module(spectra)      # one row a configuration, layer and role

Medians are over the resolvable updates alone; how many those are stands beside them.
"""

import math

import numpy as np
import pandas as pd

from lowrank_study.answers.rows import (
    CONFIGURATION,
    middle_of,
    places_of,
    shared_value,
)
from lowrank_study.answers.scores import chosen_runs
from lowrank_study.reporting.tables.study import StudyTables
from lowrank_study.spectra.noise import noise_energy_rank


def spectra_of_chosen(study: StudyTables, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Give the spectra of done runs at the chosen learning rates, with their configuration.

    `largest_possible_rank` is the adapter rank where no update of that configuration,
    layer and role has a higher numerical rank (so for LoRA's products), and min(out, in)
    elsewhere (full fine-tuning, and modules that an adapter run trained whole).

    Outside the layers the last part of a path says little (BERT's pooler and RoBERTa's head
    are both a “dense”), so there the whole path stands for the role.
    """
    runs = chosen_runs(study.runs, accuracy)
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

    Medians are over seeds (and over modules, where several share a layer and a role), of
    the resolvable matrices alone; `n` counts matrices and `resolvable` those whose ranks
    stand above the rounding floor of the stored weights.
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
    """Condense `spectra_of_chosen` to one row a configuration.

    Over the matrices inside the layers; heads and embeddings are in `rank_by_module`.
    """
    return _ranks(spectra[spectra["layer"].notna()], CONFIGURATION)


def _ranks(spectra: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    reals = {name: spectra[name].to_numpy(dtype=np.float64) for name in _RANK_SOURCES}
    reals["share"] = reals["energy_rank_90"] / reals["largest_possible_rank"]
    resolvable = spectra["resolvable"].to_numpy(dtype=bool)
    seeds = spectra["seed"].to_numpy()
    shapes = {name: spectra[name].to_numpy() for name in ("out_features", "in_features")}
    dtypes = spectra["storage_dtype"].to_numpy()
    rows = []
    for key, places in places_of(spectra, keys):
        clear = places[resolvable[places]]
        energy = reals["energy_rank_90"][clear]
        energy = energy[~np.isnan(energy)]
        low, high = np.quantile(energy, [0.1, 0.9]) if len(energy) else (math.nan, math.nan)
        rows.append(
            {
                **key,
                "seeds": len(set(seeds[places])),
                "n": len(places),
                "resolvable": len(clear),
                "median_energy_rank_90": middle_of(energy),
                "min_energy_rank_90": float(energy.min()) if len(energy) else math.nan,
                "energy_rank_90_decile_1": float(low),
                "energy_rank_90_decile_9": float(high),
                "max_energy_rank_90": float(energy.max()) if len(energy) else math.nan,
                "largest_possible_rank": float(reals["largest_possible_rank"][places].max()),
                "median_share_of_possible": middle_of(reals["share"][clear]),
                **{
                    f"median_{name}": middle_of(reals[name][clear])
                    for name in (
                        "energy_rank_99",
                        "effective_rank",
                        "stable_rank",
                        "rank_above_mp_edge",
                        "gavish_donoho_rank",
                    )
                },
                # A norm needs no rank to be resolved.
                "median_relative_norm": middle_of(reals["relative_norm"][places]),
                **{name: shared_value(values[places]) for name, values in shapes.items()},
                "storage_dtype": ", ".join(sorted(set(dtypes[places]))),
            }
        )
    table = pd.DataFrame(rows, columns=[*keys, *_RANK_COLUMNS])
    for column in {"adapter_rank", "layer", "out_features", "in_features"} & set(table.columns):
        table[column] = table[column].astype("Int64")
    return table


_RANK_SOURCES = (
    "energy_rank_90",
    "energy_rank_99",
    "effective_rank",
    "stable_rank",
    "rank_above_mp_edge",
    "gavish_donoho_rank",
    "relative_norm",
    "largest_possible_rank",
)
_RANK_COLUMNS = [
    "seeds",
    "n",
    "resolvable",
    "median_energy_rank_90",
    "min_energy_rank_90",
    "energy_rank_90_decile_1",
    "energy_rank_90_decile_9",
    "max_energy_rank_90",
    "largest_possible_rank",
    "median_share_of_possible",
    "median_energy_rank_99",
    "median_effective_rank",
    "median_stable_rank",
    "median_rank_above_mp_edge",
    "median_gavish_donoho_rank",
    "median_relative_norm",
    "out_features",
    "in_features",
    "storage_dtype",
]
