"""How the test score depends on the adapter rank, beside full fine-tuning and the linear probe.

    score.section(data).figures[0].table.frame      # one row a run, with its configuration's mean

A mean is called inside, below or above the interval of full fine-tuning. Nothing is called equal
or better, because this section tests nothing: `sufficient_rank.py` does.
"""

import math
from typing import Any

import pandas as pd

from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    counted,
    enumeration,
    is_missing,
    percent,
    points,
    rank_list,
)
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections.noise import noise
from lowrank_study.reporting.sections.score_figure import score_against_rank
from lowrank_study.reporting.sections.sufficient_rank import was_tested
from lowrank_study.reporting.setting import SettingData, full_row


def section(data: SettingData) -> Section:
    """Show the test score against the rank."""
    return Section(
        name=f"score{data.suffix}",
        title=f"{data.metric.label.capitalize()} against adapter rank",
        figures=[score_against_rank(data)],
        findings=[
            full_fine_tuning(data),
            *linear_probe(data),
            *adapters(data),
            *learnt_nothing(data),
        ],
        reading=noise(data),
        tables=[_table(data)],
    )


def full_fine_tuning(data: SettingData) -> Finding:
    """Say what full fine-tuning reaches, and how far from the baseline that is."""
    full = full_row(data)
    text = (
        "No run of full fine-tuning is done, so the adapters are described and not compared."
        if full is None
        else f"Full fine-tuning reaches {_reached(data, full)}."
    )
    return Finding(topic="Full fine-tuning", text=text)


def linear_probe(data: SettingData) -> list[Finding]:
    """Say what a linear probe reaches, and how many configurations do worse."""
    rows, found, metric, full = data.chosen, [], data.metric, full_row(data)
    end = "test_low_95" if metric.higher_is_better else "test_high_95"
    for probe in records(rows[rows["method"] == "head"]):
        others = rows[rows["method"] != "head"]
        reached = _reached(data, probe, explain=full is None)
        text = f"A linear probe, which trains only the head, reaches {reached}."
        worth = others["mean_test_score"].map(metric.worth)
        behind = int((worth < metric.worth(probe[end])).sum())
        if behind:
            text += (
                f" {behind} of the {len(others)} configurations that train more than the head have "
                f"a mean {metric.worse} the probe’s interval."
            )
        found.append(Finding(topic="Linear probe", text=text))
    return found


def adapters(data: SettingData) -> list[Finding]:
    """Say for each method and target which ranks lie inside full fine-tuning's interval."""
    rows = data.chosen[~data.chosen["method"].isin(["full", "head"])]
    full = full_row(data)
    found = []
    for key, group in groups(rows, ["method", "target"]):
        name = adapter_name(**key)
        rising = group.sort_values("adapter_rank")
        if group["adapter_rank"].isna().any():
            text = _without_rank(data, name, records(group)[0], full)
        elif full is not None and full["n"] > 1:
            text = _against_interval(data, name, rising, full)
        else:
            text = _without_interval(data, name, records(rising), full)
        found.append(Finding(topic=name, text=text))
    return found


def learnt_nothing(data: SettingData) -> list[Finding]:
    """Name the configurations with runs that score no better than the baseline."""
    runs = data.runs[data.runs["status"] == "done"]
    worth = data.metric.worth
    runs = runs.assign(worse=runs["test_score"].map(worth) <= runs["chance"].map(worth))
    parts = []
    for key, group in groups(runs, ["method", "target", "adapter_rank"]):
        if count := int(group["worse"].sum()):
            name = adapter_name(key["method"], key["target"])
            rank = "" if is_missing(key["adapter_rank"]) else f" at rank {int(key['adapter_rank'])}"
            parts.append(f"{count} of {counted(len(group), 'run')} of {name}{rank}")
    if not parts:
        return []
    text = (
        f"Some runs score no better than {data.metric.baseline}: {enumeration(parts)}. The tests "
        "and intervals assume nearly normal seeds, which these are not."
    )
    return [Finding(topic="Runs that learnt nothing", text=text)]


def _seeds(row: dict[str, Any]) -> str:
    return counted(int(row["n"]), "seed")


def _best(data: SettingData) -> str:
    return "highest" if data.metric.higher_is_better else "lowest"


def _gap(data: SettingData, difference: float) -> str:
    return f"{points(abs(difference), data.metric)} {'above' if difference >= 0 else 'below'}"


def _gap_to(data: SettingData, row: dict[str, Any], full: dict[str, Any]) -> str:
    difference = row["mean_test_score"] - full["mean_test_score"]
    return f"{_gap(data, difference)} full fine-tuning’s"


def _reached(data: SettingData, row: dict[str, Any], *, explain: bool = True) -> str:
    mean, chance = row["mean_test_score"], row["chance"]
    text = f"a test {data.metric.label} of {mean:.3f} ({_seeds(row)}"
    if row["n"] > 1:
        text += (
            f", 95{NARROW_SPACE}% interval over seeds "
            f"{row['test_low_95']:.3f}–{row['test_high_95']:.3f}"
        )
    text += ")"
    if math.isnan(chance):
        return text
    text = f"{text}, {_gap(data, mean - chance)} {data.metric.baseline}"
    return f"{text} ({chance:.3f}, {data.metric.chance})" if explain else text


def _against_interval(
    data: SettingData, name: str, rising: pd.DataFrame, full: dict[str, Any]
) -> str:
    low, high = full["test_low_95"], full["test_high_95"]
    mean = rising["mean_test_score"]
    inside = rising[(mean >= low) & (mean <= high)]
    tried = [int(rank) for rank in rising["adapter_rank"]]
    sides = {"inside": inside, "below": rising[mean < low], "above": rising[mean > high]}
    places = [
        (where, rank_list([int(rank) for rank in rows["adapter_rank"]], tried))
        for where, rows in sides.items()
        if len(rows)
    ]
    where = enumeration(
        [
            f"{where} {'it' if number else 'full fine-tuning’s interval'} at {ranks}"
            for number, (where, ranks) in enumerate(places)
        ]
    )
    text = f"The mean {data.metric.label} of {name} lies {where}."
    if was_tested(data) or not len(inside):  # the test then says which rank suffices
        best = data.best(records(rising))
        return (
            f"{text} The {_best(data)} mean is {best['mean_test_score']:.3f} at rank "
            f"{int(best['adapter_rank'])} ({_seeds(best)}), {_gap_to(data, best, full)}."
        )
    first = records(inside)[0]
    text += (
        f" The lowest rank inside is {int(first['adapter_rank'])}: its mean is "
        f"{first['mean_test_score']:.3f} ({_seeds(first)}), {_gap_to(data, first, full)}"
        f"{_share(first['trainable_parameters'], first['total_parameters'])}."
    )
    higher = rising[rising["adapter_rank"] > first["adapter_rank"]]
    again = sides[data.metric.worse].index
    if higher.index.isin(again).any():
        verb = "fall below" if data.metric.higher_is_better else "rise above"
        text += f" Some higher ranks {verb} the interval again, so it is not a threshold."
    return text


def _without_rank(
    data: SettingData, name: str, row: dict[str, Any], full: dict[str, Any] | None
) -> str:
    beside = "" if full is None else f" and {_gap_to(data, row, full)}"
    reached = _reached(data, row, explain=full is None)
    return f"{name} reaches {reached}{beside}. It has no rank, so it is not tested."


def _without_interval(
    data: SettingData, name: str, rising: list[dict[str, Any]], full: dict[str, Any] | None
) -> str:
    first, last = rising[0], rising[-1]
    best = data.best(rising)
    if len(rising) == 1:
        text = (
            f"{name} reaches a test {data.metric.label} of {best['mean_test_score']:.3f} at rank "
            f"{int(best['adapter_rank'])} ({_seeds(best)})"
        )
    else:
        text = (
            f"The mean test {data.metric.label} of {name} is {first['mean_test_score']:.3f} at "
            f"rank {int(first['adapter_rank'])} and {last['mean_test_score']:.3f} at rank "
            f"{int(last['adapter_rank'])}. The {_best(data)}, {best['mean_test_score']:.3f} "
            f"({_seeds(best)}), is at rank {int(best['adapter_rank'])}"
        )
    worth = data.metric.worth
    if worth(best["mean_test_score"]) <= worth(best["chance"]):
        baseline = f"{data.metric.baseline} ({best['chance']:.3f}, {data.metric.chance})"
        text += f", not {data.metric.better} {baseline}"
    reason = (
        "no run of full fine-tuning is done"
        if full is None
        else "full fine-tuning has one seed, so it has no interval"
    )
    return f"{text}. The data do not show which rank suffices: {reason}."


def _share(part: object, whole: object) -> str:
    if is_missing(part) or is_missing(whole) or not whole:
        return ""
    trained = int(str(part))
    share = percent(trained / float(str(whole)))
    return f"; it trains {trained:,} parameters, {share} of the model’s"


def _table(data: SettingData) -> Table:
    score, metric = data.metric.label, data.metric
    error = Column(
        "test_standard_error",
        "test s.e.",
        "decimal",
        "sqrt(p(1−p)/test examples): error from sampling the test set",
    )
    chance = Column("chance", metric.baseline, "decimal", f"{{score}} of {metric.chance}")
    return Table(
        name=f"score_by_rank{data.suffix}",
        title=f"{score.capitalize()} by rank",
        note=(
            "One row per configuration and learning rate. The interval is the 95 % Student t "
            "interval of the mean over n seeds, mean ± t(0.975, n−1)·sd/√n. One seed has no "
            "interval. Figures and sentences use the rows marked “chosen”: the rate with the best "
            f"mean validation {score}. A rate that lost a run is chosen only if every rate lost "
            "one."
        ),
        frame=data.scores,
        columns=data.columns(
            "method target adapter_rank learning_rate",
            Column("chosen", "chosen", "text", "used in figures and sentences"),
            Column("n", "n", "count", "done runs with a test {score}"),
            Column("diverged", "diverged", "count", "runs that diverged"),
            Column("failed", "failed", "count", "runs that failed"),
            "mean_test_score",
            Column("sd_test_score", "sd", "decimal", "standard deviation over seeds, n − 1"),
            "test_low_95 test_high_95",
            Column("mean_validation_score", "validation", "decimal", "mean validation {score}"),
            Column("mean_train_score", "train", "decimal", "mean {score} on training data"),
            *([chance] if data.scores["chance"].notna().any() else []),
            *([error] if metric.is_binary else []),
            "trainable_parameters",
        ),
    )
