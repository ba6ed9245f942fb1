"""Where seeds were added to a sequential sweep, and why they stopped."""

from typing import Any

from lowrank_study.answers.paired_scores import TRUNCATED
from lowrank_study.answers.rows import CONFIGURATION, records
from lowrank_study.reporting.display import (
    Column,
    Table,
    adapter_name,
    capitalised,
    counted,
    enumeration,
)
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData

STOPS = {
    "decided": "passed a bound",
    "unlikely to be decided": "stopped because more seeds were unlikely to decide",
    "out of reach": "stopped because the sequence of tests can’t reach it any more",
    "no seeds left": "is open after all seeds",
    "": "is open: rerun the sweep with this margin to add seeds",
}
"""Why the seeds of a rank stopped (`RankTest.stop`), in words."""


def section(data: SettingData) -> Section | None:
    """Show the looks of a sequential sweep; nothing if all seeds were planned at once."""
    rows = [row for row in records(data.comparison) if row["method"] != TRUNCATED]
    if not is_sequential(data) or not rows:
        return None
    frame = data.comparison[data.comparison["method"] != TRUNCATED]
    return Section(
        name=f"seeds{data.suffix}",
        title="Where were seeds added?",
        findings=[_looks(data, rows), _reasons(rows)],
        reading=[
            "The limits of the tests hold at all looks together (error spending; exact t tests if "
            "seeds are normal), so the error rates don’t depend on what made the seeds stop.",
            "Intervals of mean scores take no account of the stopping.",
        ],
        tables=[
            Table(
                name=f"seeds{data.suffix}",
                title="Looks",
                note="One row per tested rank. Each look tests it with more seeds.",
                frame=frame,
                columns=data.columns(
                    "method target adapter_rank",
                    Column("seeds", "pairs", "count", "seeds at the last look"),
                    Column("looks", "looks", "count", "tests so far"),
                    Column("most_seeds", "most seeds", "count", "seeds at the last planned look"),
                    Column("stop", "seeds stopped", "text", "why no more seeds were added"),
                ),
            )
        ],
    )


def is_sequential(data: SettingData) -> bool:
    """Tell whether seeds were added while the answer was open."""
    return bool(data.comparison["most_seeds"].notna().any())


def _looks(data: SettingData, rows: list[dict[str, Any]]) -> Finding:
    most, looks = (max(int(row[name]) for row in rows) for name in ("most_seeds", "looks"))
    trained = len(data.runs)
    possible = most * len(data.runs[CONFIGURATION].drop_duplicates())
    return Finding(
        topic="Runs",
        text=(
            f"{counted(looks, 'look')} at the tests needed {trained:,} of {possible:,} runs, which "
            f"{most} seeds of every configuration would have been."
        ),
    )


def _reasons(rows: list[dict[str, Any]]) -> Finding:
    """Say why seeds stopped; ranks are named unless they were decided."""
    parts = []
    for reason, words in STOPS.items():
        names = [
            f"{adapter_name(row['method'], row['target'])} at rank {int(row['adapter_rank'])}"
            for row in rows
            if row["stop"] == reason
        ]
        if reason == "decided" and names:
            parts.append(f"{counted(len(names), 'rank')} {words}")
        elif names:
            parts.append(f"{enumeration(names)} {words}")
    return Finding(topic="Why seeds stopped", text=f"{capitalised('; '.join(parts))}.")
