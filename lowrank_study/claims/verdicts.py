"""Claims of documents and papers, and the verdict that follows from a measurement.

    claims = load_claims()                           # claims/files.py
    entries = check_claims(claims, NO_EVIDENCE)      # claims that need no runs get a verdict
    entries[0].verdict                               # "fails"

The published value and its tolerance are a region. The measured value is an interval, of width
zero if it is computed. Inside the region the claim `holds`, outside it `fails`, and across its
border the verdict is `not resolved by this data`. Several values must all be inside, and one
value outside is a counterexample.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lowrank_study.claims.measures import CLAIM_MEASURES
from lowrank_study.claims.measures.evidence import Evidence
from lowrank_study.claims.measures.outcome import (
    Interval,
    Measured,
    Observed,
    Outcome,
    Unmeasured,
)
from lowrank_study.errors import InputError

Verdict = Literal["holds", "fails", "not resolved by this data", "not tested here"]
VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "not resolved by this data", "not tested here")

UNITS = {
    "": 1.0, "×": 1.0, "parameters": 1.0, "GPUs": 1.0, "ranks": 1.0,
    "million": 1e6, "billion": 1e9, "MB": 1e6, "GB": 1e9, "%": 0.01, "points": 0.01,
}  # fmt: skip
"""Units of published values, each in base units."""
BOUNDS = ("exact", "at_least", "at_most", "above", "below", "between", "same")
WIDTHS = ("relative", "absolute", "factor")
ROUNDING = 1e-9
"""Relative slack of an exact comparison, for floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One checkable statement."""

    id: str
    source: str
    """Title of a document, or authors and year of a paper."""
    section: str
    """Section, table or figure of the source."""
    claim: str
    """The statement in our own words."""
    published: str | bool | tuple[float, ...]
    """The published value or values, in `unit`."""
    unit: str
    """A key of `UNITS`."""
    tolerance: str
    """One of `BOUNDS` or `WIDTHS`."""
    amount: float
    """Size of one of `WIDTHS`; `absolute` is in `unit`."""
    measure: str
    """A key of `CLAIM_MEASURES`."""
    arguments: Mapping[str, Any]
    """Arguments of the measure."""
    note: str
    """A remark for the reader; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A claim with its verdict: one row of the ledger."""

    claim: Claim
    outcome: Outcome
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Values for which a claim holds; an open region excludes its border."""

    low: float
    high: float
    open: bool


def check_claims(claims: Sequence[Claim], evidence: Evidence) -> list[Entry]:
    """Measure every claim and return it with its verdict, in order."""
    return [check_claim(claim, evidence) for claim in claims]


def check_claim(claim: Claim, evidence: Evidence) -> Entry:
    """Measure one claim and return it with its verdict."""
    function = CLAIM_MEASURES[claim.measure]
    given = {"evidence": evidence} if needs_evidence(function) else {}
    outcome = function(**given, **claim.arguments)
    return Entry(claim=claim, outcome=outcome, verdict=verdict_of(claim, outcome))


def verdict_of(claim: Claim, outcome: Outcome) -> Verdict:
    """Return the verdict that follows from the published value and the outcome."""
    match outcome:
        case Unmeasured():
            return "not tested here"
        case Observed(value=value):
            return "holds" if value == claim.published else "fails"
        case Measured(values=values):
            regions = regions_of(claim)
            if len(regions) == 1:
                regions *= len(values)
            if len(regions) != len(values):
                raise InputError(
                    f"claim {claim.id}: {len(regions)} values are published, but {claim.measure} "
                    f"returns {len(values)}; give as many"
                )
            places = [_place(*pair) for pair in zip(values, regions, strict=True)]
    if "outside" in places:
        return "fails"
    return "holds" if set(places) == {"inside"} else "not resolved by this data"


def _place(interval: Interval, region: Region) -> str:
    low, high = interval.low, interval.high
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if region.open:
        inside = region.low < low and high < region.high
        outside = high <= region.low or low >= region.high
    else:
        inside = region.low <= low and high <= region.high
        outside = high < region.low or low > region.high
    return "inside" if inside else "outside" if outside else "undecided"


def regions_of(claim: Claim) -> list[Region]:
    """Return the region of each measured value, in base units."""
    assert isinstance(claim.published, tuple), claim.id
    scale, kind, amount = UNITS[claim.unit], claim.tolerance, claim.amount
    if kind == "between":
        low, high = claim.published
        return [Region(low=low * scale, high=high * scale, open=False)]
    regions = []
    for published in claim.published:
        low = high = published
        match kind:
            case "at_least" | "above":
                high = math.inf
            case "at_most" | "below":
                low = -math.inf
            case "factor":
                low, high = published / amount, published * amount
            case _:
                half = {"exact": ROUNDING, "relative": amount}.get(kind, 0.0) * abs(published)
                half += amount if kind == "absolute" else 0.0
                low, high = published - half, published + half
        regions.append(Region(low=low * scale, high=high * scale, open=kind in ("above", "below")))
    return regions


def needs_evidence(function: Callable[..., Outcome]) -> bool:
    """Tell whether a measure reads trained runs or timings."""
    return "evidence" in inspect.signature(function).parameters
