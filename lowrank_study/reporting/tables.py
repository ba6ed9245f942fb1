"""The tidy tables that every figure and every sentence of the report is made from.

A study comes in as three frames (runs, spectra of their updates, singular values) and is
condensed to a handful of tables, each with one row per configuration:

    accuracy = accuracy_by_rank(study.runs)   # test accuracy over seeds, with its interval

A *setting* is a task with a base model. A *configuration* is a method with its target and
adapter rank in one setting. Where a configuration was run with several learning rates (or
alphas), the one with the best mean **validation** accuracy is `chosen`; a rate at which a
run diverged is chosen only when every rate lost one. Test accuracy never chooses.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from lowrank_study.errors import InputError

Vector = npt.NDArray[np.float64]

SETTING = ["task", "model"]
CONFIGURATION = ["task", "model", "method", "target", "adapter_rank"]
TUNING = ["alpha", "scaling", "learning_rate"]
STATUSES = ("done", "diverged", "failed")
CONFIDENCE = 0.95

RUN_COLUMNS = {
    **dict.fromkeys(["run_id", "task", "model", "method", "target", "status", "message"], "text"),
    **dict.fromkeys(["adapter_rank", "seed", "test_examples", "steps"], "whole"),
    **dict.fromkeys(["alpha", "scaling", "learning_rate"], "real"),
    **dict.fromkeys(["validation_accuracy", "test_accuracy", "test_macro_f1"], "share"),
    **dict.fromkeys(["train_accuracy", "majority_accuracy"], "share"),
    **dict.fromkeys(["test_loss", "train_loss"], "real"),
    **dict.fromkeys(["trainable_parameters", "adapted_parameters", "total_parameters"], "whole"),
    **dict.fromkeys(["checkpoint_bytes", "peak_memory_bytes"], "whole"),
    **dict.fromkeys(["train_seconds", "evaluate_seconds", "examples_per_second"], "real"),
    "precision": "text",
}
SPECTRA_COLUMNS = {
    **dict.fromkeys(["run_id", "module", "role", "storage_dtype"], "text"),
    **dict.fromkeys(["layer", "out_features", "in_features"], "whole"),
    **dict.fromkeys(["frobenius_norm", "base_frobenius_norm", "relative_norm"], "real"),
    **dict.fromkeys(["numerical_rank", "stable_rank", "effective_rank"], "real"),
    **dict.fromkeys(["energy_rank_90", "energy_rank_95", "energy_rank_99"], "real"),
    **dict.fromkeys(["participation_ratio", "sigma1_over_sigma10", "mp_edge"], "real"),
    **dict.fromkeys(["rank_above_mp_edge", "gavish_donoho_rank", "rounding_floor"], "real"),
    "resolvable": "flag",
}
SINGULAR_VALUE_COLUMNS = {
    **dict.fromkeys(["run_id", "module", "role"], "text"),
    **dict.fromkeys(["layer", "index"], "whole"),
    "singular_value": "real",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTables:
    """Everything a report is written from."""

    title: str
    """what the study is called"""
    question: str
    """what it asks, in one sentence"""
    runs: pd.DataFrame
    """one row a run, whatever became of it; see `RUN_COLUMNS`"""
    spectra: pd.DataFrame
    """one row a weight matrix of a run: the ranks of its update; see `SPECTRA_COLUMNS`"""
    singular_values: pd.DataFrame
    """one row a singular value of an update; see `SINGULAR_VALUE_COLUMNS`"""
    planned: int
    """how many runs the sweep planned; those without a row are reported as not run"""
    provenance: Mapping[str, object]
    """commit, versions, hashes, machine; may be nested"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A task with a base model: what is compared is compared within one of these."""

    task: str
    """name of the task"""
    model: str
    """name of the base model"""

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Give the rows of a table that belong to this setting."""
        return frame[(frame["task"] == self.task) & (frame["model"] == self.model)]


# ---------------------------------------------------------------- checking what came in


def checked(study: StudyTables) -> StudyTables:
    """Give the study with sorted, typed tables, or say what is wrong with it.

    Raises:
        InputError: a column is missing or not of its type, a status is unknown, a run
            appears twice, an accuracy is not a share, two runs can't be told apart, or no
            run is done.
    """
    runs = _typed(study.runs, RUN_COLUMNS, "runs").sort_values("run_id", ignore_index=True)
    spectra = _typed(study.spectra, SPECTRA_COLUMNS, "spectra")
    values = _typed(study.singular_values, SINGULAR_VALUE_COLUMNS, "singular values")
    _check_runs(runs)
    for frame, name in ((spectra, "spectra"), (values, "singular values")):
        strangers = sorted(set(frame["run_id"]) - set(runs["run_id"]))
        if strangers:
            raise InputError(
                f"the {name} table names run {strangers[0]!r}, which the runs table lacks: "
                f"give the tables of one and the same study"
            )
    return replace(
        study,
        runs=runs,
        spectra=spectra.sort_values(["run_id", "module"], ignore_index=True),
        singular_values=values.sort_values(["run_id", "module", "index"], ignore_index=True),
    )


def _typed(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(
            f"the {name} table lacks the column(s) {', '.join(missing)}: it needs "
            f"{', '.join(columns)}"
        )
    typed = frame.reset_index(drop=True).copy()
    for column, kind in columns.items():
        try:
            typed[column] = _as_kind(typed[column], kind)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the column {column} of the {name} table does not hold {_KINDS[kind]}: {error}"
            ) from error
    return typed


_KINDS = {
    "text": "text",
    "whole": "whole numbers",
    "real": "numbers",
    "share": "numbers",
    "flag": "true or false",
}


def _as_kind(column: "pd.Series[Any]", kind: str) -> "pd.Series[Any]":
    match kind:
        case "text":
            return column.astype(object).where(column.notna(), None).map(_text).astype(object)
        case "whole":
            return pd.to_numeric(column).astype("Int64")
        case "flag":
            return column.astype("boolean").fillna(False).astype(bool)
        case _:
            return pd.to_numeric(column).astype("Float64").astype(float)


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)


def _check_runs(runs: pd.DataFrame) -> None:
    unknown = sorted(set(runs["status"]) - set(STATUSES))
    if unknown:
        raise InputError(f"status {unknown[0]!r} is unknown: a run is one of {', '.join(STATUSES)}")
    twice = runs["run_id"][runs["run_id"].duplicated()]
    if len(twice):
        raise InputError(f"run {twice.iloc[0]!r} appears twice: a run has one row")
    for column, kind in RUN_COLUMNS.items():
        if kind == "share":
            wrong = runs[(runs[column] < 0) | (runs[column] > 1)]
            if len(wrong):
                raise InputError(
                    f"{column} of run {wrong['run_id'].iloc[0]!r} is "
                    f"{wrong[column].iloc[0]:g}: give a share between 0 and 1"
                )
    done = runs[runs["status"] == "done"]
    if not len(done):
        counts = ", ".join(
            f"{(runs['status'] == status).sum()} {status}" for status in STATUSES[1:]
        )
        raise InputError(
            f"none of the {len(runs)} runs is done ({counts}): a report needs at least one "
            f"finished run; look at the messages of the runs and run the sweep again"
        )
    if not done["test_accuracy"].notna().any():
        raise InputError(
            f"none of the {len(done)} done runs has a test accuracy: evaluate them first"
        )
    same = done[done.duplicated([*CONFIGURATION, *TUNING, "seed"], keep=False)]
    if len(same):
        first, second = list(same.sort_values([*CONFIGURATION, *TUNING, "seed"])["run_id"])[:2]
        raise InputError(
            f"runs {first!r} and {second!r} have the same task, model, method, target, rank, "
            f"alpha, learning rate and seed: report them as two studies"
        )


# ---------------------------------------------------------------- accuracy


def interval_of_mean(values: Vector) -> tuple[float, float]:
    """Give the two-sided 95 % Student t interval of a mean over seeds.

    mean ± t(0.975, n - 1) · sd / √n, with sd the sample standard deviation (n - 1).
    It assumes that seeds are independent and their accuracies near normal, and covers the
    seeds' spread alone, not the drawing of the test set. (NaN, NaN) for fewer than two.
    """
    if len(values) < 2:
        return math.nan, math.nan
    mean = float(values.mean())
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def accuracy_by_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """Give test accuracy over seeds, one row for each configuration and learning rate.

    `n` counts the done runs that have a test accuracy; means, sd and the interval
    (`test_low_95`, `test_high_95`, see `interval_of_mean`) are over those. `runs`,
    `diverged` and `failed` count what was run. `test_standard_error` is
    sqrt(p (1 - p) / test_examples), the error of one accuracy from the drawing of the test
    set, which the interval over seeds does not hold. `chosen` marks the learning rate that
    figures and sentences use.
    """
    typed = _typed(runs, RUN_COLUMNS, "runs")
    rows = [
        {**key, **_accuracy_of(group)} for key, group in groups(typed, [*CONFIGURATION, *TUNING])
    ]
    table = pd.DataFrame(rows)
    table["adapter_rank"] = table["adapter_rank"].astype("Int64")
    for column in ("trainable_parameters", "total_parameters", "test_examples"):
        table[column] = table[column].astype("Int64")
    chosen: set[int] = set()
    for _, group in groups(table, CONFIGURATION):
        able = group[group["n"] > 0]
        whole = able[able["diverged"] == 0]
        pool = next(rows for rows in (whole, able, group) if len(rows))
        pool = pool.sort_values(
            ["mean_validation_accuracy", "learning_rate"], ascending=[False, True]
        )
        chosen.update(pool.index[:1])
    table["chosen"] = [index in chosen for index in table.index]
    return table


def _accuracy_of(group: pd.DataFrame) -> dict[str, object]:
    done = group[(group["status"] == "done") & group["test_accuracy"].notna()]
    test = done["test_accuracy"].to_numpy(dtype=np.float64)
    low, high = interval_of_mean(test)
    mean = float(test.mean()) if len(test) else math.nan
    examples = _median(done["test_examples"])
    return {
        "runs": len(group),
        "n": len(test),
        "diverged": int((group["status"] == "diverged").sum()),
        "failed": int((group["status"] == "failed").sum()),
        "mean_test_accuracy": mean,
        "sd_test_accuracy": float(test.std(ddof=1)) if len(test) > 1 else math.nan,
        "test_low_95": low,
        "test_high_95": high,
        "min_test_accuracy": float(test.min()) if len(test) else math.nan,
        "max_test_accuracy": float(test.max()) if len(test) else math.nan,
        "mean_validation_accuracy": _mean(done["validation_accuracy"]),
        "mean_train_accuracy": _mean(done["train_accuracy"]),
        "mean_test_macro_f1": _mean(done["test_macro_f1"]),
        "majority_accuracy": _mean(done["majority_accuracy"]),
        "test_examples": _whole(examples),
        "test_standard_error": math.sqrt(mean * (1 - mean) / examples)
        if examples and examples > 0 and len(test)
        else math.nan,
        "trainable_parameters": _whole(_median(done["trainable_parameters"])),
        "total_parameters": _whole(_median(done["total_parameters"])),
    }


def chosen_runs(runs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Give the runs, whatever became of them, at each configuration's chosen learning rate."""
    runs = _typed(runs, RUN_COLUMNS, "runs")
    keys = accuracy.loc[accuracy["chosen"], [*CONFIGURATION, *TUNING]]
    wanted = {_key(row) for row in keys.itertuples(index=False, name=None)}
    rows = runs[[*CONFIGURATION, *TUNING]].itertuples(index=False, name=None)
    return runs[[_key(row) in wanted for row in rows]]


def settings_of(runs: pd.DataFrame) -> list[Setting]:
    """Give the settings that have a done run, in order of their names."""
    done = runs[(runs["status"] == "done") & runs["test_accuracy"].notna()]
    pairs = sorted(set(zip(done["task"], done["model"], strict=True)))
    return [Setting(task=task, model=model) for task, model in pairs]


def full_row(accuracy: pd.DataFrame, setting: Setting) -> dict[str, Any] | None:
    """Give the chosen row of full fine-tuning in a setting, if it was run and is done."""
    rows = setting.rows(accuracy)
    rows = rows[(rows["method"] == "full") & rows["chosen"]]
    return records(rows)[0] if len(rows) else None


# ---------------------------------------------------------------- ranks of updates


def noise_energy_rank(out_features: int, in_features: int, energy: float = 0.9) -> float:
    r"""Give the energy rank that independent Gaussian noise of this shape would have.

    Marchenko and Pastur: with β = min/max of the shape and σ² ∝ 1 + β + 2√β cos θ, the
    density of θ on (0, π) is ∝ sin²θ / (1 + β + 2√β cos θ) and of the energy ∝ sin²θ, so
    the top singular values that hold `energy` are those with θ below the quantile of
    sin²θ. It is what a rank says of an update without any structure: .509 n for n × n.
    """
    small, large = sorted((out_features, in_features))
    beta = small / large
    theta = (np.arange(20_000) + 0.5) * (math.pi / 20_000)
    held = np.cumsum(np.sin(theta) ** 2)
    count = np.cumsum(np.sin(theta) ** 2 / (1 + beta + 2 * math.sqrt(beta) * np.cos(theta)))
    share = float(np.interp(energy, held / held[-1], count / count[-1]))
    return share * small


def spectra_of_chosen(study: StudyTables, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Give the spectra of done runs at the chosen learning rates, with their configuration.

    `largest_possible_rank` is the adapter rank where no update of that configuration,
    layer and role has a higher numerical rank (so for LoRA's products), and min(out, in)
    elsewhere (full fine-tuning, and modules that an adapter run trained whole).
    """
    runs = chosen_runs(study.runs, accuracy)
    runs = runs[(runs["status"] == "done") & runs["test_accuracy"].notna()]
    joined = study.spectra.merge(
        runs[["run_id", *CONFIGURATION, "learning_rate", "seed"]], on="run_id", how="inner"
    )
    smaller = joined[["out_features", "in_features"]].min(axis=1).astype(float)
    highest = joined.groupby([*CONFIGURATION, "module"], dropna=False)["numerical_rank"].transform(
        "max"
    )
    rank = joined["adapter_rank"].astype("Float64").astype(float)
    bounded = rank.notna() & ~(highest > rank)
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
    shapes = {
        (int(out), int(inside)): noise_energy_rank(int(out), int(inside))
        for out, inside in set(zip(table["out_features"], table["in_features"], strict=True))
        if not (pd.isna(out) or pd.isna(inside))
    }
    table["noise_energy_rank_90"] = [
        math.nan if pd.isna(out) or pd.isna(inside) else shapes[int(out), int(inside)]
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
    for key, places in _places(spectra, keys):
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
                "median_energy_rank_90": _middle(energy),
                "min_energy_rank_90": float(energy.min()) if len(energy) else math.nan,
                "energy_rank_90_decile_1": float(low),
                "energy_rank_90_decile_9": float(high),
                "max_energy_rank_90": float(energy.max()) if len(energy) else math.nan,
                "largest_possible_rank": float(reals["largest_possible_rank"][places].max()),
                "median_share_of_possible": _middle(reals["share"][clear]),
                **{
                    f"median_{name}": _middle(reals[name][clear])
                    for name in (
                        "energy_rank_99",
                        "effective_rank",
                        "stable_rank",
                        "rank_above_mp_edge",
                        "gavish_donoho_rank",
                    )
                },
                # A norm needs no rank to be resolved.
                "median_relative_norm": _middle(reals["relative_norm"][places]),
                **{name: _shared(values[places]) for name, values in shapes.items()},
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


# ---------------------------------------------------------------- costs, runs, provenance


def cost_by_method(runs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Give size, time and memory, one row a configuration, medians over its done runs.

    `*_ratio` divides by the median of full fine-tuning in the same setting; NaN without it.
    """
    picked = chosen_runs(runs, accuracy)
    picked = picked[picked["status"] == "done"]
    measures = ["checkpoint_bytes", "train_seconds", "peak_memory_bytes"]
    rows: list[dict[str, object]] = []
    for key, group in groups(picked, CONFIGURATION):
        trainable = _median(group["trainable_parameters"])
        total = _median(group["total_parameters"])
        row: dict[str, object] = {
            **key,
            "n": len(group),
            "steps": _median(group["steps"]),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "trainable_share": trainable / total if total else math.nan,
        }
        for measure in measures:
            row[measure] = _median(group[measure])
            row[f"min_{measure}"] = _extreme(group[measure], largest=False)
            row[f"max_{measure}"] = _extreme(group[measure], largest=True)
        row["examples_per_second"] = _median(group["examples_per_second"])
        rows.append(row)
    table = pd.DataFrame(rows)
    table["adapter_rank"] = table["adapter_rank"].astype("Int64")
    full = table[table["method"] == "full"].set_index(SETTING)
    for measure in ["trainable_parameters", *measures]:
        base = [
            float(full[measure].get((task, model), math.nan))
            for task, model in zip(table["task"], table["model"], strict=True)
        ]
        table[f"{measure}_ratio"] = table[measure] / pd.Series(base, index=table.index).replace(
            0, math.nan
        )
    return table


def flat_provenance(provenance: Mapping[str, object]) -> pd.DataFrame:
    """Give nested provenance as two columns: the path of the item, and its value."""
    return pd.DataFrame(list(_items(provenance, "")), columns=["item", "value"], dtype=object)


def _items(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _items(inner, f"{path} / {key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield path, ", ".join(str(item) for item in value)
    else:
        yield path, str(value)


# ---------------------------------------------------------------- small arithmetic


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the rows as mappings from column to value."""
    names = [str(name) for name in frame.columns]
    return [dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def _places(
    frame: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.intp]]]:
    """Group by columns that may hold NA, in order; NA comes first, as full fine-tuning should."""
    places: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(frame[keys].itertuples(index=False, name=None)):
        places.setdefault(_key(row), []).append(place)
    for key in sorted(places, key=_order):
        yield dict(zip(keys, key, strict=True)), np.array(places[key])


def groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Give the rows of each combination of values of the keys, in order; NA is None."""
    for key, places in _places(frame, keys):
        yield key, frame.iloc[places]


def _key(row: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(None if value is pd.NA or value != value else value for value in row)


def _order(key: tuple[object, ...]) -> tuple[tuple[int, float, str], ...]:
    return tuple(
        (0, 0.0, "")
        if value is None or value == "full"
        else (1, float(value), "")
        if isinstance(value, int | float | np.number)
        else (2, 0.0, str(value))
        for value in key
    )


def _mean(column: "pd.Series[Any]") -> float:
    values = column.dropna().to_numpy(dtype=np.float64)
    return float(values.mean()) if len(values) else math.nan


def _median(column: "pd.Series[Any]") -> float:
    return _middle(column.dropna().to_numpy(dtype=np.float64))


def _middle(values: Vector) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _extreme(column: "pd.Series[Any]", *, largest: bool) -> float:
    values = column.dropna().to_numpy(dtype=np.float64)
    if not len(values):
        return math.nan
    return float(values.max() if largest else values.min())


def _whole(value: float) -> int | None:
    return None if math.isnan(value) else round(value)


def _shared(column: npt.NDArray[Any]) -> int | None:
    """Give the value that all entries have, or none where they differ."""
    values = {str(value) for value in column if not pd.isna(value)}
    return int(values.pop()) if len(values) == 1 else None
