"""Which rank suffices, as far as the data show it.

    [finding.text for finding in sufficient(data)]     # one a method and target

These are the only statements of the summary that rest on a test; see `study/accuracy.py`.
"""

from typing import Any

import pandas as pd

from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    percent,
    points,
)
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import SettingData, groups, records
from lowrank_study.study.correctness import CUT


def sufficient(data: SettingData) -> list[Finding]:
    """Say between which ranks the sufficient one lies; nothing where nothing was compared."""
    return [
        Finding(
            topic="Functional rank, tested" if cut else f"Sufficient rank, {adapter_name(**key)}",
            text=_text(
                "functional rank of full fine-tuning’s update, every matrix cut to it,"
                if cut
                else f"sufficient rank of {adapter_name(**key)}",
                group.sort_values("adapter_rank"),
            ),
            source=f"sufficient_rank{data.suffix}",
        )
        for key, group in groups(data.comparison, ["method", "target"])
        for cut in [key["method"] == CUT]
    ]


def was_tested(data: SettingData) -> bool:
    """Tell whether any rank could be tested against full fine-tuning."""
    return bool(data.comparison["lower_limit"].notna().any())


def _text(name: str, rising: pd.DataFrame) -> str:
    if not rising["lower_limit"].notna().any():
        return (
            f"The {name} can’t be tested: no rank has two seeds that are done, "
            f"have kept their predictions, and have full fine-tuning’s beside them."
        )
    rows = records(rising)
    margin = points(rows[0]["margin"])
    ranks = {
        decision: [int(row["adapter_rank"]) for row in rows if row["decision"] == decision]
        for decision in ("inferior", "open", "sufficient")
    }
    shown = [
        f"{_listed(ranks[decision])} {_is(ranks[decision])} shown to lose {what}"
        for decision, what in (("sufficient", "less"), ("inferior", "more"))
        if ranks[decision]
    ]
    parts = [enumeration(shown)] if shown else []
    if ranks["open"]:
        parts.append(f"for {_listed(ranks['open'])} the data don’t decide")
    if lossy := [int(row["adapter_rank"]) for row in rows if row["lost"]]:
        lost = counted(sum(int(row["lost"]) for row in rows), "run")
        parts.append(f"{_listed(lossy)} lost {lost}, and can’t be shown to suffice")
    seeds = sorted({int(row["seeds"]) for row in rows})
    span = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    examples = counted(int(rising["examples"].max()), "test example")
    text = (
        f"At a margin of {margin}, the {name} {_where(ranks)}: "
        f"{'; '.join(parts)} ({span}, {examples})."
    )
    return text + _retention(rows, ranks["sufficient"])


def _where(ranks: dict[str, list[int]]) -> str:
    """Say where the sufficient rank lies; both ends are among the ranks that were tried."""
    inferior, unsure, enough = ranks["inferior"], ranks["open"], ranks["sufficient"]
    if not enough:
        if not unsure:
            return f"is above {inferior[-1]}, the highest tried"
        if inferior:
            return f"is above {inferior[-1]}, and no upper end is shown"
        return "can’t be told"
    if not inferior:
        lowest = ", the lowest tried" if not unsure else ""
        return f"is at most {enough[0]}{lowest}"
    if not unsure:
        return f"is {enough[0]} of those tried"
    return f"lies between {unsure[0]} and {enough[0]}"


def _retention(rows: list[dict[str, Any]], enough: list[int]) -> str:
    tested = [row for row in rows if row["seeds"] > 1]
    row = next((row for row in tested if int(row["adapter_rank"]) in enough[:1]), tested[-1])
    full = row["accuracy"] - row["difference"]
    # Fieller's interval is unbounded just where the t test can't tell full fine-tuning from chance.
    if not row["retention_bounded"] or full <= row["chance"]:
        return (
            " Full fine-tuning is not shown to lie above the commonest class: to keep up with it "
            "says nothing of the rank."
        )
    low, high = percent(row["retention_low_95"]), percent(row["retention_high_95"])
    return (
        f" At rank {int(row['adapter_rank'])} it keeps {percent(row['retention'])} of what full "
        f"fine-tuning has above the commonest class (95{NARROW_SPACE}% interval over seeds {low} "
        f"to {high})."
    )


def _listed(ranks: list[int]) -> str:
    if len(ranks) > 2:
        return f"ranks {ranks[0]} to {ranks[-1]}"
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {enumeration([str(rank) for rank in ranks])}"


def _is(ranks: list[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
