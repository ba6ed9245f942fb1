"""What full fine-tuning reaches, which ranks reach it, and above what noise that is said.

    full_fine_tuning(data).text
    [finding.text for finding in adapters(data)]     # one a method and target
    [finding.text for finding in learnt_nothing(data)]
    noise(data).text

The first two are printed alone too, so each is one or two short sentences.
"""

import math
from typing import Any

import pandas as pd

from lowrank_study.answers.statistics import ERROR
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    is_missing,
    percent,
    points,
    span,
)
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.findings.sufficient import sequences, was_tested
from lowrank_study.reporting.tables import (
    SettingData,
    at_several_scalings,
    full_row,
    groups,
    records,
)

FEW_SEEDS = 5
"""Below this the report warns that small differences can’t be told."""


def full_fine_tuning(data: SettingData) -> Finding:
    """Say what full fine-tuning reaches, above the commonest class."""
    full = full_row(data)
    if full is None:
        text = "No run of full fine-tuning is done: the adapters are described, not compared."
        return Finding(topic="Full fine-tuning", text=text, source=_source(data))
    text = f"Full fine-tuning reaches {_reached(full)}."
    return Finding(topic="Full fine-tuning", text=text, source=_source(data))


def head_alone(data: SettingData) -> list[Finding]:
    """Say what is reached without any ΔW, where it was tried, and how many others reach less."""
    rows, found = data.chosen, []
    for head in records(rows[rows["method"] == "head"]):
        others = rows[rows["method"] != "head"]
        text = f"Without any ΔW, a linear probe reaches {_reached(head)}."
        behind = int((others["mean_test_score"] < head["test_low_95"]).sum())
        if behind:
            text += (
                f" {behind} of the {len(others)} configurations that train a ΔW too have a mean "
                "below its interval, though a ΔW of zero is open to them."
            )
        found.append(Finding(topic="The head alone", text=text, source=_source(data)))
    return found


def learnt_nothing(data: SettingData) -> list[Finding]:
    """Name the configurations some of whose runs answer no better than the commonest class."""
    runs = data.runs[data.runs["status"] == "done"]
    worse = runs["test_score"] <= runs["chance"]
    parts = []
    for key, group in groups(runs.assign(worse=worse), ["method", "target", "adapter_rank"]):
        count = int(group["worse"].sum())
        if count:
            name = adapter_name(key["method"], key["target"])
            rank = "" if is_missing(key["adapter_rank"]) else f" at rank {int(key['adapter_rank'])}"
            parts.append(f"{count} of {len(group)} of {name}{rank}")
    if not parts:
        return []
    text = (
        f"These runs answer no better than always the commonest class: {enumeration(parts)}. "
        "Tests and intervals take seeds to spread near normally, which such seeds don’t."
    )
    return [Finding(topic="Runs that learnt nothing", text=text, source="runs")]


def adapters(data: SettingData) -> list[Finding]:
    """Say which ranks lie inside the interval of full fine-tuning, for each method and target.

    Of an adapter of PEFT's, whose kind has no rank of ΔW, what it reaches.
    """
    rows = data.chosen[~data.chosen["method"].isin(["full", "head"])]
    full = full_row(data)
    statements = []
    for key, group in groups(rows, ["method", "target"]):
        name = adapter_name(**key)
        rising = group.sort_values("adapter_rank")
        if group["adapter_rank"].isna().any():
            text = _without_rank(name, records(group)[0], full)
        elif full is not None and full["n"] > 1:
            text = _against_interval(name, rising, full, tested=was_tested(data))
        else:
            text = _without_interval(name, records(rising), full)
        if at_several_scalings(data.accuracy[data.accuracy["method"] == key["method"]]):
            text += " A rank run at several α or scalings stands at the one validation prefers."
        statements.append(Finding(topic=name, text=text, source=_source(data)))
    return statements


def noise(data: SettingData) -> Finding:
    """Say on how many seeds and test examples everything rests, and what was not tested."""
    rows = data.chosen
    least, most = int(rows["n"].min()), int(rows["n"].max())
    tested = was_tested(data)
    text = (
        f"The means rest on {span(str(least), str(most))} {'seed' if most == 1 else 'seeds'} each"
    )
    if least < FEW_SEEDS:
        text += ", too few to tell small differences"
    if most == 1:
        text += ": how much another seed would differ is not known. No difference was tested here."
    elif tested:
        count = sequences(data)
        text += (
            f"; their intervals are 95{NARROW_SPACE}% Student t intervals over seeds. To lie "
            "inside one is not to be equal, and outside not to be different. What was tested are "
            "sufficient ranks, with seeds and test examples both taken as drawn, at the rates that "
            "were chosen. Where seeds spread near normally each of their ends is wrong at most "
            f"{100 * ERROR:g}{NARROW_SPACE}% of the time, one of these {2 * count} at most "
            f"{min(100, 200 * count * ERROR):g}{NARROW_SPACE}%. They speak of the ranks tried; of "
            "those between them only if accuracy does not fall with rank. "
            f"That none of {most} seeds collapses does not rule out that up to "
            f"{100 * (1 - ERROR ** (1 / most)):.0f}{NARROW_SPACE}% would."
        )
    else:
        text += (
            f"; their intervals are 95{NARROW_SPACE}% Student t intervals over seeds. To lie "
            "inside an interval is not to be equal, and outside not to be different: neither was "
            "tested here."
        )
    known = rows[rows["test_standard_error"].notna()]
    if len(known):
        error = float(known["test_standard_error"].max())
        examples = int(known["test_examples"].min())
        text += (
            f" A single accuracy on {counted(examples, 'test example')} has a standard error of "
            f"up to {points(error)}, sqrt(p(1−p)/{examples:,}), from the drawing of the examples "
            f"alone. All runs share them, so differences between runs are mostly steadier; but "
            f"what is said here is of this test set only{', tests aside' if tested else ''}."
        )
    return Finding(topic="Noise", text=text, source=_source(data))


# ---------------------------------------------------------------- of one method and target


def _reached(row: dict[str, Any]) -> str:
    mean = row["mean_test_score"]
    text = f"a test accuracy of {mean:.3f} ({_seeds(row)}"
    low, high = row["test_low_95"], row["test_high_95"]
    if row["n"] > 1:
        text += f", 95{NARROW_SPACE}% interval over seeds {low:.3f}–{high:.3f}"
    text += ")"
    majority = row["chance"]
    if not math.isnan(majority):
        text += f", {_gap(mean - majority)} always answering the commonest class ({majority:.3f})"
    return text


def _against_interval(
    name: str, rising: pd.DataFrame, full: dict[str, Any], *, tested: bool
) -> str:
    low, high = full["test_low_95"], full["test_high_95"]
    mean = rising["mean_test_score"]
    inside = rising[(mean >= low) & (mean <= high)]
    places = [
        (where, _rank_list(rows, everywhere=len(rows) == len(rising)))
        for rows, where in (
            (inside, "inside"),
            (rising[mean < low], "below"),
            (rising[mean > high], "above"),
        )
        if len(rows)
    ]
    where = enumeration(
        [
            f"{where} {'it' if number else 'full fine-tuning’s interval'} at {ranks}"
            for number, (where, ranks) in enumerate(places)
        ]
    )
    text = f"The mean accuracy of {name} lies {where}."
    if tested or not len(inside):  # what suffices is then said by the test
        best = max(records(rising), key=lambda row: row["mean_test_score"])
        return (
            f"{text} The highest, {best['mean_test_score']:.3f} at rank "
            f"{int(best['adapter_rank'])} ({_seeds(best)}), is {_gap_to(best, full)}."
        )
    first = records(inside)[0]
    text += (
        f" The lowest rank inside, {int(first['adapter_rank'])}, has a mean of "
        f"{first['mean_test_score']:.3f} ({_seeds(first)}), {_gap_to(first, full)}"
        + _share(first["trainable_parameters"], first["total_parameters"])
    )
    higher = rising[rising["adapter_rank"] > first["adapter_rank"]]
    if (higher["mean_test_score"] < low).any():
        text += "; higher ranks fall below the interval again, so it is no threshold"
    return f"{text}."


def _without_rank(name: str, row: dict[str, Any], full: dict[str, Any] | None) -> str:
    beside = "" if full is None else f", {_gap_to(row, full)}"
    return f"{name} reaches {_reached(row)}{beside}. It has no rank, and no test here."


def _without_interval(name: str, rising: list[dict[str, Any]], full: dict[str, Any] | None) -> str:
    first, last = rising[0], rising[-1]
    best = max(rising, key=lambda row: row["mean_test_score"])
    if len(rising) == 1:
        text = (
            f"{name} reaches a test accuracy of {best['mean_test_score']:.3f} at rank "
            f"{int(best['adapter_rank'])} ({_seeds(best)})"
        )
    else:
        text = (
            f"The mean test accuracy of {name} is {first['mean_test_score']:.3f} at rank "
            f"{int(first['adapter_rank'])} and {last['mean_test_score']:.3f} at rank "
            f"{int(last['adapter_rank'])}; the highest, {best['mean_test_score']:.3f} "
            f"({_seeds(best)}), is at rank {int(best['adapter_rank'])}"
        )
    if best["mean_test_score"] <= best["chance"]:
        text += f", not above the commonest class ({best['chance']:.3f})"
    reason = (
        "full fine-tuning has no done run"
        if full is None
        else "full fine-tuning has one seed, hence no interval"
    )
    return f"{text}. Which rank suffices can’t be said: {reason}."


# ---------------------------------------------------------------- words


def _source(data: SettingData) -> str:
    return f"score_by_rank{data.suffix}"


def _seeds(row: dict[str, Any]) -> str:
    return counted(int(row["n"]), "seed")


def _gap(difference: float) -> str:
    return f"{points(abs(difference))} {'above' if difference >= 0 else 'below'}"


def _gap_to(row: dict[str, Any], full: dict[str, Any]) -> str:
    difference = row["mean_test_score"] - full["mean_test_score"]
    return f"{_gap(difference)} full fine-tuning’s"


def _rank_list(rows: pd.DataFrame, *, everywhere: bool) -> str:
    ranks = [str(int(rank)) for rank in rows["adapter_rank"]]
    if everywhere and len(ranks) > 2:
        return f"all {len(ranks)} ranks from {ranks[0]} to {ranks[-1]}"
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {enumeration(ranks)}"


def _share(part: object, whole: object) -> str:
    if is_missing(part) or is_missing(whole) or not whole:
        return ""
    share = percent(float(str(part)) / float(str(whole)))
    return f", and trains {int(str(part)):,} parameters, {share} of the model’s"
