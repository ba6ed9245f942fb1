"""The ledger of claims with their verdicts, as CSV, Markdown and an HTML page.

path = write_ledger(entries, Path("results/claims"))
summary_of(entries)      # "201 claims: 86 hold, 39 fail, ..."
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lowrank_study.claims.measures import CLAIM_MEASURES
from lowrank_study.claims.measures.outcome import Interval, Measured, Observed, Outcome, Unmeasured
from lowrank_study.claims.verdicts import ROUNDING, UNITS, VERDICTS, Claim, Entry, needs_evidence
from lowrank_study.files import require_folder, write_whole
from lowrank_study.reporting.display import Column, Table, csv_text, printable, significant
from lowrank_study.reporting.web_page import packaged, web_page

COLUMNS = (
    ("id", "Id", "name of the claim"),
    ("source", "Source", "document or paper"),
    ("section", "Section", "section, table or figure of the source"),
    ("claim", "Claim", "statement in our own words"),
    ("published", "Published", "value in the source"),
    ("measured", "Measured", "computed or measured value with its interval"),
    (
        "tolerance",
        "Tolerance",
        "largest distance from the published value at which the claim holds",
    ),
    ("verdict", "Verdict", "result of the comparison"),
    (
        "basis",
        "Decided by",
        "trained runs and timings, or arithmetic on shapes and published numbers",
    ),
    ("why", "How measured, or why not", "the measure, or what a check needs"),
)
SHORT = {
    "holds": "hold",
    "fails": "fail",
    "not resolved by this data": "are not resolved by this data",
    "not tested here": "are not tested here",
}


def ledger_table(entries: Sequence[Entry]) -> Table:
    """Return the ledger as a table with one row per claim."""
    frame = pd.DataFrame([row_of(entry) for entry in entries], columns=[c[0] for c in COLUMNS])
    return Table(
        name="claims",
        title="Claims about LoRA and their verdicts",
        note=(
            "A claim holds if the whole interval of the measured value is within the tolerance. "
            "A claim fails if the whole interval is outside. In all other cases, this data does "
            "not resolve the claim."
        ),
        frame=frame,
        columns=tuple(Column(name, label, "text", meaning) for name, label, meaning in COLUMNS),
    )


def row_of(entry: Entry) -> dict[str, str]:
    """Return one claim with its verdict in words."""
    claim = entry.claim
    return {
        "id": claim.id,
        "source": claim.source,
        "section": claim.section,
        "claim": claim.claim,
        "published": published_text(claim),
        "measured": measured_text(claim, entry.outcome),
        "tolerance": tolerance_text(claim),
        "verdict": entry.verdict,
        "basis": _basis(entry),
        "why": why_text(claim, entry.outcome),
    }


def summary_of(entries: Sequence[Entry]) -> str:
    """Return the number of claims with each verdict, in one line without a full stop."""
    verdicts = [entry.verdict for entry in entries]
    *counts, last = [f"{verdicts.count(verdict)} {SHORT[verdict]}" for verdict in VERDICTS]
    decided = [entry for entry in entries if entry.verdict in ("holds", "fails")]
    by_runs = sum(_by_runs(entry.claim) for entry in decided)
    return (
        f"{len(entries)} claims: {', '.join(counts)}, and {last}. Runs and timings decide "
        f"{by_runs} of the {len(decided)} that hold or fail, and arithmetic decides the others"
    )


def _basis(entry: Entry) -> str:
    if entry.verdict == "not tested here":
        return "–"
    return "runs" if _by_runs(entry.claim) else "arithmetic"


def _by_runs(claim: Claim) -> bool:
    return needs_evidence(CLAIM_MEASURES[claim.measure])


def published_text(claim: Claim) -> str:
    """Return the published value with its unit."""
    if not isinstance(claim.published, tuple):
        return _word(claim.published)
    if claim.tolerance == "between":
        return _with_unit(" to ".join(number(value) for value in claim.published), claim.unit)
    return _with_unit("; ".join(number(value) for value in claim.published), claim.unit)


def tolerance_text(claim: Claim) -> str:
    """Return the tolerance in words."""
    amount = number(claim.amount)
    match claim.tolerance:
        case "relative":
            return f"±{number(100 * claim.amount)} %"
        case "absolute":
            return _with_unit(f"±{amount}", claim.unit)
        case "factor":
            return f"within a factor of {amount}"
        case "same":
            return "the same"
        case "between":
            return "within it"
        case kind:
            return kind.replace("_", " ")


def measured_text(claim: Claim, outcome: Outcome) -> str:
    """Return the measured value in the claim's unit."""
    match outcome:
        case Measured(values=values):
            parts = [_interval_text(value, UNITS[claim.unit]) for value in values]
            return _with_unit("; ".join(parts), claim.unit)
        case Observed(value=value):
            return _word(value)
        case _:
            return ""


def why_text(claim: Claim, outcome: Outcome) -> str:
    """Return the measure, or why there is none, and the claim's note."""
    text = outcome.why if isinstance(outcome, Unmeasured) else outcome.how
    return f"{text}. {claim.note}" if claim.note else text


def number(value: float) -> str:
    """Return a number in full if it is whole, and with four significant digits otherwise."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "undefined"
    if value == round(value):
        return f"{value:,.0f}".replace("-0", "0") if value == 0 else f"{value:,.0f}"
    if abs(value) < ROUNDING:
        return "≈ 0"
    text = significant(value, 4)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _interval_text(interval: Interval, scale: float) -> str:
    text = number(_tidy(interval.value / scale))
    if interval.low != interval.high:
        low, high = number(_tidy(interval.low / scale)), number(_tidy(interval.high / scale))
        text = f"{text} ({low} to {high})"
    return f"{interval.label}: {text}" if interval.label else text


def _tidy(value: float) -> float:
    """Round off floating-point error: 0.30000000000000004 becomes 0.3."""
    return value if not math.isfinite(value) else float(f"{value:.12g}") + 0.0


def _word(value: str | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else value


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


# ---------------------------------------------------------------- files


def write_ledger(entries: Sequence[Entry], folder: Path) -> Path:
    """Write claims.csv, claims.md and claims.html; return the path of the page.

    Raises:
        InputError: The folder is a file.
    """
    require_folder(folder)
    table = ledger_table(entries)
    files = {
        "claims.csv": csv_text(table.frame),
        "claims.md": markdown_of(entries),
        "claims.html": page_of(entries),
    }
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    return folder / "claims.html"


def by_source(entries: Sequence[Entry]) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each source, in order."""
    groups: dict[str, list[dict[str, str]]] = {}
    for entry in entries:
        groups.setdefault(entry.claim.source, []).append(row_of(entry))
    return groups


def markdown_of(entries: Sequence[Entry]) -> str:
    """Return the ledger as Markdown, with one table for each source."""
    table = ledger_table(entries)
    shown = [column for column in table.columns if column.name != "source"]
    lines = [f"# {table.title}", "", f"{summary_of(entries)}.", "", table.note]
    for source, rows in by_source(entries).items():
        lines += ["", f"## {_markdown_cell(source)}", ""]
        lines.append("| " + " | ".join(column.label for column in shown) + " |")
        lines.append("|" + " --- |" * len(shown))
        lines += [
            "| " + " | ".join(_markdown_cell(row[column.name]) for column in shown) + " |"
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def _markdown_cell(text: str) -> str:
    """Escape a text so that Markdown shows it literally."""
    shown = printable(text)
    for character in "\\`*_[]|#":
        shown = shown.replace(character, f"\\{character}")
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def page_of(entries: Sequence[Entry]) -> str:
    """Return the HTML page."""
    table = ledger_table(entries)
    verdicts = [entry.verdict for entry in entries]
    return web_page(
        "claims.html.j2",
        scripts=[packaged("script.html.j2")],
        more_style=packaged("claims_style.html.j2"),
        title=table.title,
        table=table,
        columns=[column for column in table.columns if column.name not in ("source", "id")],
        counts=[(verdict, verdicts.count(verdict)) for verdict in VERDICTS],
        sources=by_source(entries),
    )
