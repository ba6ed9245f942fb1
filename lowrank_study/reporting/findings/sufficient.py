"""Which rank suffices, as far as the data show it.

    [finding.text for finding in sufficient(data)]     # one a method and target

These are the only statements of the summary that rest on a test; see `answers/statistics.py`.
"""

from typing import Any

from lowrank_study.answers.paired_scores import TRUNCATED
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    is_missing,
    percent,
    points,
)
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import SettingData, groups, records


def sufficient(data: SettingData) -> list[Finding]:
    """Say between which ranks the sufficient one lies; nothing where nothing was compared."""
    source = f"sufficient_rank{data.suffix}"
    found = []
    for key, group in groups(data.comparison, ["method", "target"]):
        rising = records(group.sort_values("adapter_rank"))
        name = adapter_name(**key)
        match key["method"]:
            case "head":
                topic, text = "The head alone, tested", _of_head(rising[0])
            case method if method == TRUNCATED:
                topic = "Functional rank, tested"
                text = _text("functional rank of full fine-tuning’s update", rising)
            case _:
                topic = f"Sufficient rank, {name}"
                text = _text(f"sufficient rank of {name}", rising)
        found.append(Finding(topic=topic, text=text, source=source))
    return found


def was_tested(data: SettingData) -> bool:
    """Tell whether any rank could be tested against full fine-tuning."""
    return bool(data.comparison["lower_limit"].notna().any())


def sequences(data: SettingData) -> int:
    """Count the sequences of tests, of which each has two ends that can be wrong."""
    tested = data.comparison[data.comparison["lower_limit"].notna()]
    return len(tested[["method", "target"]].drop_duplicates())


def _of_head(row: dict[str, Any]) -> str:
    margin = points(row["margin"])
    match row["decision"]:
        case "sufficient":
            shown = "is shown to lose less: what ranks suffice says nothing of ΔW"
        case "inferior":
            shown = "is shown to lose more"
        case _:
            shown = "is not shown to lose less, nor more"
    return f"At a margin of {margin}, a linear probe, without any ΔW, {shown} ({_basis([row])})."


def _text(name: str, rows: list[dict[str, Any]]) -> str:
    if all(is_missing(row["lower_limit"]) for row in rows):
        return (
            f"The {name} can’t be tested: no rank has two seeds that are done, "
            f"have kept their predictions, and have full fine-tuning’s beside them."
        )
    tried = [int(row["adapter_rank"]) for row in rows]
    ranks = {
        decision: [int(row["adapter_rank"]) for row in rows if row["decision"] == decision]
        for decision in ("inferior", "open", "sufficient")
    }
    shown = [
        f"{_listed(ranks[decision], tried)} {_is(ranks[decision])} shown to lose {what}"
        for decision, what in (("sufficient", "less"), ("inferior", "more"))
        if ranks[decision]
    ]
    parts = [enumeration(shown)] if shown else []
    if ranks["open"]:
        parts.append(f"{_listed(ranks['open'], tried)} {_is(ranks['open'])} left open")
    if lossy := [int(row["adapter_rank"]) for row in rows if row["lost"]]:
        lost = counted(sum(int(row["lost"]) for row in rows), "run")
        parts.append(
            f"{_listed(lossy, tried)} lost {lost}, and can’t be shown to suffice, "
            "nor can lower ones"
        )
    # A sequence ends at the first rank that isn't shown: one beyond it may lie clearly below.
    low = [row for row in rows if row["decision"] == "open" and row["upper_limit"] < -row["margin"]]
    if low:
        stray = [int(row["adapter_rank"]) for row in low]
        parts.append(
            f"by itself {_listed(stray, tried)} would be shown to lose more, above a rank that is "
            "not: accuracy need not rise with rank here"
        )
    text = (
        f"At a margin of {points(rows[0]['margin'])}, the {name} {_where(ranks)}: "
        f"{'; '.join(parts)} ({_basis(rows)})."
    )
    return text + _retention(rows, ranks["sufficient"])


def _basis(rows: list[dict[str, Any]]) -> str:
    seeds = sorted({int(row["seeds"]) for row in rows})
    span = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return f"{span}, {counted(max(int(row['examples']) for row in rows), 'test example')}"


def _where(ranks: dict[str, list[int]]) -> str:
    """Say where the smallest sufficient rank lies; both ends are among those that were tried."""
    inferior, unsure, enough = ranks["inferior"], ranks["open"], ranks["sufficient"]
    if not enough:
        if not unsure:
            return "is none of those tried"
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
    """Of the smallest rank that suffices; where none is shown to, of the most accurate."""
    tested = [row for row in rows if row["seeds"] > 1]
    best = max(tested, key=lambda row: row["score"])
    row = next((row for row in tested if int(row["adapter_rank"]) in enough[:1]), best)
    # Fieller's interval is unbounded where full fine-tuning can't be told from chance.
    if not row["retention_bounded"]:
        return (
            " Full fine-tuning is not shown to lie above the commonest class: to keep up with it "
            "says nothing of the rank."
        )
    low, high = percent(row["retention_low_95"]), percent(row["retention_high_95"])
    return (
        f" At rank {int(row['adapter_rank'])} it keeps {percent(row['retention'])} of what full "
        f"fine-tuning has above the commonest class (95{NARROW_SPACE}% interval {low} to {high})."
    )


def _listed(ranks: list[int], tried: list[int]) -> str:
    """Write ranks as a range only where none that was tried lies in it and is not among them."""
    first = tried.index(ranks[0])
    if len(ranks) > 2 and ranks == tried[first : first + len(ranks)]:
        return f"ranks {ranks[0]} to {ranks[-1]}"
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {enumeration([str(rank) for rank in ranks])}"


def _is(ranks: list[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
