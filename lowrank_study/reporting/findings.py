"""The summary in words, computed from the tables: no sentence that a number does not carry.

    for finding in findings(data): print(finding.text, finding.source)

The rules of the wording:

* a mean is called inside, below or above the *interval of full fine-tuning*; nothing is
  called equal, better or significant, because nothing is tested here;
* how many seeds stand behind a statement is said with it, and with one seed no comparison
  is made;
* ranks that the storage format can’t resolve are left out of medians and counted.
"""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    in_bytes,
    is_missing,
    percent,
    points,
    printable,
    written,
)
from lowrank_study.reporting.figures import SettingData
from lowrank_study.reporting.tables import (
    StudyTables,
    cost_by_method,
    full_row,
    groups,
    noise_energy_rank,
    records,
)

FEW_SEEDS = 5
"""Below this the report warns that its intervals are wide and rest on normality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statement and the table it was computed from."""

    topic: str
    """two or three words in front of it"""
    text: str
    """the statement, in whole sentences"""
    source: str
    """stem of the table that holds its numbers"""


def completeness(study: StudyTables) -> Finding:
    """Say how many planned runs are done, and what became of the others."""
    runs = study.runs
    counts = runs["status"].value_counts()
    done = int(counts.get("done", 0))
    others = [
        f"{int(counts[status])} {status}" for status in ("diverged", "failed") if status in counts
    ]
    missing = study.planned - len(runs)
    if missing > 0:
        others.append(f"{missing} not run")
    text = f"{done} of {counted(study.planned, 'planned run')} {_is(done)} done"
    if missing < 0:
        text = (
            f"{done} of {counted(len(runs), 'run')} {_is(done)} done ({study.planned} were planned)"
        )
    text += f"; {enumeration(others)}." if others else "."
    unmeasured = int(((runs["status"] == "done") & runs["test_accuracy"].isna()).sum())
    if unmeasured:
        text += (
            f" {counted(unmeasured, 'done run')} {_has(unmeasured)} no test accuracy and "
            f"{_is(unmeasured)} left out of every mean."
        )
    if others:
        text += " What is missing is missing from the means below: every mean gives its own n."
    return Finding(topic="Completeness", text=text, source="runs")


def findings(data: SettingData) -> list[Finding]:
    """Give the statements about one setting, the answer first."""
    statements = [
        _full_accuracy(data),
        *_ranks_inside(data),
        _noise(data),
        *_cost(data),
        *_full_spectrum(data),
        *_adapter_spectrum(data),
        *_unresolvable(data),
    ]
    return [finding for finding in statements if finding is not None]


# ---------------------------------------------------------------- accuracy


def _full_accuracy(data: SettingData) -> Finding | None:
    full = full_row(data.accuracy, data.setting)
    if full is None or not full["n"]:
        text = (
            "No run of full fine-tuning is done, so there is nothing to measure the adapters "
            "against: the ranks below are described, not compared."
        )
        return Finding(topic="Full fine-tuning", text=text, source=f"accuracy_by_rank{data.suffix}")
    count = full["n"]
    mean = full["mean_test_accuracy"]
    text = f"Full fine-tuning reaches a test accuracy of {mean:.3f}"
    if count > 1:
        text += (
            f", the mean of {count} seeds (95{NARROW_SPACE}% t interval of the mean "
            f"{full['test_low_95']:.3f}–{full['test_high_95']:.3f}, standard deviation "
            f"{full['sd_test_accuracy']:.3f})"
        )
    else:
        text += " with a single seed: how much another seed would differ is not known"
    majority = full["majority_accuracy"]
    if not math.isnan(majority):
        above = mean - majority
        text += (
            f". That is {points(abs(above))} {'above' if above >= 0 else 'below'} always "
            f"answering the commonest class ({majority:.3f})"
        )
    return Finding(
        topic="Full fine-tuning", text=f"{text}.", source=f"accuracy_by_rank{data.suffix}"
    )


def _ranks_inside(data: SettingData) -> list[Finding]:
    rows = data.accuracy
    rows = rows[rows["chosen"] & rows["adapter_rank"].notna() & (rows["n"] > 0)]
    full = full_row(data.accuracy, data.setting)
    full = full if full is not None and full["n"] else None
    statements = []
    for key, group in groups(rows, ["method", "target"]):
        group = group.sort_values("adapter_rank")
        name = adapter_name(**key)
        if full is not None and full["n"] > 1:
            text = _against_band(group, full)
        else:
            text = _without_band(group, full)
        statements.append(Finding(topic=name, text=text, source=f"accuracy_by_rank{data.suffix}"))
    return statements


def _against_band(group: pd.DataFrame, full: dict[str, Any]) -> str:
    low, high = full["test_low_95"], full["test_high_95"]
    mean = group["mean_test_accuracy"]
    inside = group[(mean >= low) & (mean <= high)]
    places = [
        (where, _rank_list(rows))
        for rows, where in (
            (inside, "inside"),
            (group[mean < low], "below"),
            (group[mean > high], "above"),
        )
        if len(rows)
    ]
    text = "Mean accuracy lies " + enumeration(
        [
            f"{where} {'it' if number else 'full fine-tuning’s interval'} at {ranks}"
            for number, (where, ranks) in enumerate(places)
        ]
    )
    text += "."
    if len(inside):
        first = records(inside)[0]
        gap = full["mean_test_accuracy"] - first["mean_test_accuracy"]
        text += (
            f" The lowest rank inside is {int(first['adapter_rank'])} "
            f"(mean {first['mean_test_accuracy']:.3f} over {counted(first['n'], 'seed')}, "
            f"{points(abs(gap))} {'below' if gap >= 0 else 'above'} full fine-tuning’s mean), "
            f"which trains {int(first['trainable_parameters']):,} parameters"
            + _share(first["trainable_parameters"], first["total_parameters"])
            + "."
        )
        higher = group[group["adapter_rank"] > first["adapter_rank"]]
        if (higher["mean_test_accuracy"] < low).any():
            text += " Higher ranks fall below the interval again, so no rank stands as a threshold."
    return text


def _without_band(group: pd.DataFrame, full: dict[str, Any] | None) -> str:
    rising = records(group)
    first, last = rising[0], rising[-1]
    best = max(rising, key=lambda row: row["mean_test_accuracy"])
    text = (
        f"Mean test accuracy is {first['mean_test_accuracy']:.3f} at rank "
        f"{int(first['adapter_rank'])} (n = {int(first['n'])})"
    )
    if len(group) > 1:
        text += (
            f" and {last['mean_test_accuracy']:.3f} at rank {int(last['adapter_rank'])} "
            f"(n = {int(last['n'])}); the highest mean, {best['mean_test_accuracy']:.3f}, is at "
            f"rank {int(best['adapter_rank'])}"
        )
    reason = (
        "full fine-tuning has no done run"
        if full is None
        else "full fine-tuning has one seed, hence no interval"
    )
    return f"{text}. Which rank suffices can’t be said: {reason}."


def _noise(data: SettingData) -> Finding:
    rows = data.accuracy[data.accuracy["chosen"] & (data.accuracy["n"] > 0)]
    least, most = int(rows["n"].min()), int(rows["n"].max())
    text = f"The means rest on {_between(least, most)} {'seed' if most == 1 else 'seeds'} each"
    if least < FEW_SEEDS:
        text += ", too few to tell small differences"
    text += (
        ". To lie inside an interval is not to be equal, and outside not to be different: "
        "neither was tested here."
    )
    known = rows[rows["test_standard_error"].notna()]
    if len(known):
        error = float(known["test_standard_error"].max())
        examples = int(known["test_examples"].min())
        text += (
            f" A single accuracy on {counted(examples, 'test example')} has a standard error of "
            f"up to {points(error)}, sqrt(p(1−p)/{examples:,}), from the drawing of the examples "
            f"alone. All runs share them, so differences between runs are steadier than that; "
            f"but the intervals over seeds leave it out and speak of this test set only."
        )
    return Finding(topic="Noise", text=text, source=f"accuracy_by_rank{data.suffix}")


# ---------------------------------------------------------------- cost


def _cost(data: SettingData) -> list[Finding]:
    table = cost_by_method(data.setting.rows(data.study.runs), data.accuracy)
    ranked = table[table["adapter_rank"].notna()]
    if not len(ranked) or not (table["method"] == "full").any():
        return []
    parts = []
    for measure, what in (
        ("trainable_parameters_ratio", "parameters"),
        ("checkpoint_bytes_ratio", "checkpoint"),
        ("train_seconds_ratio", "training time"),
        ("peak_memory_bytes_ratio", "peak memory"),
    ):
        known = ranked[measure].dropna()
        if len(known):
            low, high = float(known.min()), float(known.max())
            span = (
                percent(low)
                if percent(low) == percent(high)
                else f"{percent(low)} to {percent(high)}"
            )
            parts.append(f"{span} of its {what}")
        else:
            parts.append(f"{what} not measured")
    full = table[table["method"] == "full"].iloc[0]
    text = (
        f"Against full fine-tuning the adapters have, from the cheapest to the dearest, "
        f"{enumeration(parts)} (medians over runs; full fine-tuning: "
        f"{written(full['trainable_parameters'], 'count')} parameters, "
        f"{in_bytes(full['checkpoint_bytes']) if full['checkpoint_bytes'] > 0 else 'unknown'} on "
        f"disk)."
    )
    if table["steps"].dropna().nunique() > 1:
        text += " The configurations took different numbers of steps, so times are not per step."
    return [Finding(topic="Cost", text=text, source=f"cost_by_method{data.suffix}")]


# ---------------------------------------------------------------- spectra


def _full_spectrum(data: SettingData) -> list[Finding]:
    rows = data.configurations[data.configurations["method"] == "full"]
    if not len(rows) or not rows.iloc[0]["resolvable"]:
        return []
    row = records(rows)[0]
    inside = data.spectra[(data.spectra["method"] == "full") & data.spectra["layer"].notna()]
    clear = inside[inside["resolvable"]]
    noise = sorted(
        {
            (int(out), int(into)): noise_energy_rank(int(out), int(into))
            for out, into in zip(clear["out_features"], clear["in_features"], strict=True)
        }.values()
    )
    text = (
        f"The update ΔW of full fine-tuning has a median 90{NARROW_SPACE}% energy rank of "
        f"{written(row['median_energy_rank_90'], 'rank')} of at most "
        f"{written(row['largest_possible_rank'], 'rank')}, from "
        f"{written(row['min_energy_rank_90'], 'rank')} to "
        f"{written(row['max_energy_rank_90'], 'rank')} over "
        f"{counted(int(row['resolvable']), 'resolvable matrix', 'resolvable matrices')} of "
        f"{counted(int(row['seeds']), 'seed')}. Independent Gaussian noise of the same shapes "
        f"would read {_span(noise)}."
    )
    layers = {
        int(key["layer"]): float(group["energy_rank_90"].median())
        for key, group in groups(clear, ["layer"])
    }
    if len(layers) > 1:
        low, high = min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)
        text += (
            f" By layer the median is lowest in layer {low} "
            f"({written(layers[low], 'rank')}) and highest in layer {high} "
            f"({written(layers[high], 'rank')})."
        )
    cut = row["median_gavish_donoho_rank"]
    if not math.isnan(cut):
        text += (
            f" The Gavish–Donoho cut, which asks how many directions stand out from noise, "
            f"keeps a median of {written(cut, 'rank')}."
        )
    return [Finding(topic="Rank of ΔW, full", text=text, source=f"rank_by_module{data.suffix}")]


def _adapter_spectrum(data: SettingData) -> list[Finding]:
    rows = data.configurations
    ranked = rows[rows["adapter_rank"].notna() & rows["median_energy_rank_90"].notna()]
    if not len(ranked):
        return []
    parts = []
    for key, group in groups(ranked, ["method", "target"]):
        rising = records(group.sort_values("adapter_rank"))
        ends = rising if len(rising) == 1 else [rising[0], rising[-1]]
        parts.append(
            f"{adapter_name(**key)} has a median of "
            + " and ".join(
                f"{written(end['median_energy_rank_90'], 'rank')} at rank "
                f"{int(end['adapter_rank'])}"
                for end in ends
            )
        )
    beyond = ranked[ranked["largest_possible_rank"] > ranked["adapter_rank"].astype(float)]
    text = (
        f"In its 90{NARROW_SPACE}% energy rank, {enumeration(parts)}. "
        "A product of rank r can’t have an energy rank above r, so a lower number than full "
        "fine-tuning’s is built in and says nothing of how much rank the task needs."
    )
    if len(beyond):
        text += " Updates that an adapter run trained whole are not bound by r."
    return [
        Finding(
            topic="Rank of ΔW, adapters",
            text=text,
            source=f"rank_by_configuration{data.suffix}",
        )
    ]


def _unresolvable(data: SettingData) -> list[Finding]:
    lost = data.spectra[~data.spectra["resolvable"]]
    if not len(data.spectra):
        text = "No spectra were given: nothing can be said of the rank of the updates."
        return [Finding(topic="Resolution", text=text, source="spectra")]
    dtypes = enumeration(sorted({printable(dtype) for dtype in data.spectra["storage_dtype"]}))
    if not len(lost):
        text = (
            f"All {counted(len(data.spectra), 'matrix', 'matrices')} are resolvable: their "
            f"90{NARROW_SPACE}% energy ranks stand above the floor that rounding of the stored "
            f"weights ({dtypes}) leaves."
        )
    else:
        where = enumeration(sorted({printable(role) for role in lost["role"]}))
        text = (
            f"{len(lost):,} of {counted(len(data.spectra), 'matrix', 'matrices')} are not "
            f"resolvable ({where}): their 90{NARROW_SPACE}% energy rank can’t be told from the "
            f"floor that rounding of the stored weights ({dtypes}) leaves. They are left out of "
            f"every median and hatched in the heat map."
        )
    return [Finding(topic="Resolution", text=text, source="spectra")]


# ---------------------------------------------------------------- words


def _rank_list(rows: pd.DataFrame) -> str:
    ranks = [str(int(rank)) for rank in rows["adapter_rank"]]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {enumeration(ranks)}"


def _share(part: object, whole: object) -> str:
    if is_missing(part) or is_missing(whole) or not whole:
        return ""
    return f", {percent(float(str(part)) / float(str(whole)))} of the model’s"


def _between(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _span(values: list[float]) -> str:
    low, high = f"{values[0]:.0f}", f"{values[-1]:.0f}"
    return low if low == high else f"{low} to {high}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"
