"""The scores of each test set against the rank, and those of generated answers beside the loss.

    test_sets.section(data).figures[0].table.frame      # one row a metric, test set, configuration

Nothing is tested here: `sufficient_rank.py` tests the primary metric on all test examples.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from lowrank_study.answers.rows import groups, records
from lowrank_study.answers.test_sets import SetScores
from lowrank_study.reporting.columns import columns
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    capitalised,
    counted,
    enumeration,
    is_missing,
    printable,
    rank_list,
)
from lowrank_study.reporting.drawing.figure import (
    DOTTED,
    FAINT,
    Entry,
    Figure,
    Paper,
    draw_figure,
    line,
)
from lowrank_study.reporting.drawing.rank_axis import RankAxis, Series, series_of, series_style
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections.seeds import is_sequential
from lowrank_study.reporting.sections.sufficient_rank import was_tested
from lowrank_study.reporting.setting import SettingData
from lowrank_study.tasks.metric import Metric


def section(data: SettingData) -> Section | None:
    """Show the scores of each test set; nothing with one test set and no second metric."""
    scores = [
        SetScores(metric=each.metric, table=rows)
        for each in data.study.test_sets
        if len(rows := data.setting.rows(each.table))
    ]
    if not scores:
        return None
    labels = [each.metric.label for each in scores]
    several = scores[0].table["test_set"].nunique() > 1
    title = f"{enumeration(labels)}{' of each test set' if several else ''} against adapter rank"
    return Section(
        name=f"test_sets{data.suffix}",
        title=capitalised(title),
        figures=[_figure(data, scores, capitalised(title))],
        findings=[finding for each in scores for finding in _findings(each)],
        reading=_reading(data),
        tables=[_table(data, each) for each in scores],
    )


def _findings(scores: SetScores) -> list[Finding]:
    """Say for each test set where the baseline and the adapters lie beside full fine-tuning."""
    found, topic = [], capitalised(scores.metric.label)
    for name, rows in scores.table.groupby("test_set", sort=False):
        sentences = _levels(scores.metric, rows)
        has_full = bool((rows["method"] == "full").any())
        compared = rows["adapter_rank"].notna() & has_full
        for key, group in groups(rows[compared], ["method", "target"]):
            sentences += _differences(adapter_name(**key), records(group))
        named = f"{topic}, {printable(name)}" if name else topic
        found.append(Finding(topic=named, text=" ".join(sentences)))
    return found


def _levels(metric: Metric, rows: pd.DataFrame) -> list[str]:
    """Say what full fine-tuning and the baseline reach, and whether full fine-tuning gains."""
    base = rows["base"].dropna()
    beside = f"; {metric.baseline} has {base.iloc[0]:.3f}" if len(base) else ""
    full = records(rows[rows["method"] == "full"])
    if not full:
        return [f"No run of full fine-tuning is done, so nothing is compared with it{beside}."]
    basis = counted(int(full[0]["n"]), "seed")
    if rows["examples"].notna().any():
        basis += f", {counted(int(rows['examples'].max()), 'test example')}"
    sentences = [
        f"Full fine-tuning has a mean {metric.label} of {full[0]['mean']:.3f} ({basis}){beside}."
    ]
    lows = rows["gain_low_95"].dropna()
    if len(lows) and lows.min() <= 0:
        sentences.append(
            f"It is not shown to be {metric.better} {metric.baseline}, so a rank that matches it "
            "shows nothing."
        )
    return sentences


def _differences(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Say at which ranks the interval of the difference lies on which side of 0."""
    tried = [int(row["adapter_rank"]) for row in rows]
    places: dict[str, list[int]] = {}
    for rank, row in zip(tried, rows, strict=True):
        low, high = row["difference_low_95"], row["difference_high_95"]
        if is_missing(low):
            place = "can’t be given"
        elif low <= 0 <= high:
            place = "contains 0"
        else:
            place = f"lies on the {'better' if low > 0 else 'worse'} side of 0"
        places.setdefault(place, []).append(rank)
    where = [f"{place} at {rank_list(ranks, tried)}" for place, ranks in places.items()]
    return [
        f"The 95{NARROW_SPACE}% interval of the difference between {name} and full fine-tuning "
        f"{enumeration(where)}."
    ]


def _reading(data: SettingData) -> list[str]:
    """Return what the intervals do not show."""
    tests = (
        " Only the section “Which rank suffices?” tests ranks, by the "
        f"{data.metric.label} of all test examples."
        if was_tested(data)
        else ""
    )
    added = (
        " They take no account of seeds that were added while a test was open."
        if is_sequential(data)
        else ""
    )
    return [
        "Differences are paired by seed and test example. Their intervals hold for other seeds and "
        f"for other examples like those of the test set.{added} The intervals in the figure are "
        "over seeds only.",
        "An interval that contains 0 does not show that a rank is as good as full fine-tuning. "
        f"There is no correction for comparing many ranks and test sets.{tests}",
    ]


def _table(data: SettingData, scores: SetScores) -> Table:
    metric, rows = scores.metric, scores.table
    cut_off = Column("cut_off", "cut off", "percent", "answers that the limit of tokens ended")
    better = "more" if metric.higher_is_better else "less"
    return Table(
        name=f"test_sets_{metric.name}{data.suffix}",
        title=f"{capitalised(metric.label)} by test set",
        note=(
            "One row per test set and configuration, at its chosen learning rate. The difference "
            f"from full fine-tuning is in {metric.points}, and positive where the adapter has "
            f"{better}. Its 95 % interval is over paired seeds and test examples (crossed random "
            "effects, Satterthwaite’s degrees of freedom)."
        ),
        frame=rows,
        columns=columns(
            metric,
            *_set_columns(rows),
            "method target adapter_rank",
            Column("n", "n", "count", "done runs"),
            Column("mean", "test {score}", "decimal", "mean over seeds"),
            Column("sd", "sd", "decimal", "standard deviation over seeds, n − 1"),
            Column("base", metric.baseline, "decimal", f"{{score}} {metric.chance}"),
            Column("pairs", "pairs", "count", "seeds with both runs done and predictions kept"),
            Column("examples", "examples", "count", "paired test examples"),
            Column("difference", "difference", "points", f"from full, in {metric.points}"),
            Column("difference_low_95", "95 % low", "points", "95 % interval, lower end"),
            Column("difference_high_95", "95 % high", "points", "95 % interval, upper end"),
            *([cut_off] if rows["cut_off"].notna().any() else []),
        ),
    )


def _set_columns(rows: pd.DataFrame) -> list[Column]:
    named = Column("test_set", "test set", "text", "name of the test set")
    return [named] if (rows["test_set"] != "").any() else []


def _figure(data: SettingData, scores: Sequence[SetScores], title: str) -> Figure:
    table = pd.concat(
        [each.table.assign(metric=each.metric.label) for each in scores], ignore_index=True
    )
    return draw_figure(
        lambda on: _draw(on, scores, data.metric.baseline),
        name=f"test_sets{data.suffix}",
        title=title,
        caption=(
            "Marks are means with their 95 % Student t intervals over seeds. Dashed lines and "
            "bands are full fine-tuning’s means and intervals, dotted lines "
            f"{data.metric.baseline}. The vertical axes need not start at zero."
        ),
        note="One row per metric, test set and configuration.",
        frame=table,
        columns=columns(
            data.metric,
            Column("metric", "metric", "text", "what the score is"),
            *_set_columns(table),
            "method target adapter_rank",
            Column("n", "n", "count", "done runs"),
            Column("mean", "mean", "decimal", "over n seeds"),
            Column("low_95", "95 % low", "decimal", "95 % interval of the mean, lower end"),
            Column("high_95", "95 % high", "decimal", "95 % interval of the mean, upper end"),
            Column("base", data.metric.baseline, "decimal", data.metric.chance),
        ),
    )


def _draw(on: Paper, scores: Sequence[SetScores], baseline: str) -> None:
    panels = [(each, one) for each in scores for one in _adapters(each.table)]
    axes = on.panels(len(panels), across=(2, 1), height=(2.9, 2.4), beside=(0.4, 0.9))
    names = list(dict.fromkeys(name for each in scores for name in each.table["test_set"]))
    for axis, (each, one) in zip(axes, panels, strict=True):
        axis.set_ylabel(f"test {each.metric.axis_label}")
        if one is not None and len(panels) > len(scores):
            axis.set_title(one.label)
        ranks = RankAxis.of(each.table)
        ranks.dress(axis)
        for number, name in enumerate(names):
            rows = each.table[each.table["test_set"] == name]
            _draw_set(axis, rows, one, series_style(number), ranks)
        _limit(axis, each.metric)
    entries: list[Entry] = [
        line(printable(name), **series_style(number), ms=4.5) for number, name in enumerate(names)
    ]
    entries.append(line("full fine-tuning", FAINT, ls="--", lw=1.1))
    if any(each.table["base"].notna().any() for each in scores):
        entries.append(line(baseline, FAINT, ls=DOTTED, lw=1.1))
    on.legend(entries, columns=(3, 2))


def _limit(axis: Axes, metric: Metric) -> None:
    """Leave out of the axis what no score can be, but for the room that a mark needs."""
    low, high = axis.get_ylim()
    room = 0.03 * (high - low)
    axis.set_ylim(max(low, metric.lowest - room), min(high, metric.highest + room))


def _adapters(table: pd.DataFrame) -> list[Series | None]:
    """Return the methods with ranks, each of which has a panel; one panel if there is none."""
    return [*series_of(table)] or [None]


def _draw_set(
    axis: Axes, rows: pd.DataFrame, one: Series | None, style: dict[str, Any], ranks: RankAxis
) -> None:
    """Draw the scores of one test set: of an adapter's ranks, full fine-tuning, the base model."""
    colour = style["color"]
    for full in records(rows[rows["method"] == "full"]):
        axis.axhline(full["mean"], color=colour, ls="--", lw=1.1, zorder=1)
        if full["n"] > 1:
            axis.axhspan(full["low_95"], full["high_95"], color=colour, alpha=0.1, lw=0, zorder=0)
    base = rows["base"].dropna()
    if len(base):
        axis.axhline(base.iloc[0], color=colour, ls=DOTTED, lw=1.1, zorder=1)
    parts = [rows[rows["adapter_rank"].isna()]] + ([] if one is None else [one.rows(rows)])
    for part, width in zip(parts, (0.0, 1.6), strict=False):
        mean = part["mean"].to_numpy()
        half = (part["high_95"] - part["mean"]).fillna(0.0).to_numpy()
        places = ranks.places(part)
        axis.errorbar(places, mean, yerr=half, fmt="none", ecolor=colour, elinewidth=0.9)
        axis.plot(places, mean, **style, ms=4.5, lw=width, zorder=2)
