"""Claims of documents and papers, each with what is measured of it and the verdict that follows.

A claim is an entry of a file in `conf/claim/`, one file per document or paper. It holds the
published value, how far a measured one may be from it, and the name and arguments of a measure
(`measures/`); what is measured is never written there.

    claims = load_claims()                           # claims/files.py
    entries = check_claims(claims, NO_EVIDENCE)      # the arithmetic ones have verdicts
    entries[0].verdict                               # "fails"

The rule is the same for all. The published value and the tolerance are a region; the measured
value is an interval, of no width where it is computed. Inside the region the claim `holds`,
clear of it it `fails`, and across its border it is `not resolved by this data`. Of several
values, all have to be inside, and one that is clear of the region is a counterexample.
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
"""Units that published values are written in, each with its size in base units."""
BOUNDS = ("exact", "at_least", "at_most", "above", "below", "between", "same")
WIDTHS = ("relative", "absolute", "factor")
ROUNDING = 1e-9
"""Relative slack of an exact comparison, for floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One checkable statement, with where it stands and what decides it."""

    id: str
    source: str
    """A document by its title, a paper by authors and year."""
    section: str
    """Section of the document; section, table or figure of the paper."""
    claim: str
    """The statement in our own words."""
    published: str | bool | tuple[float, ...]
    """The published value or values, in `unit`."""
    unit: str
    """A key of `UNITS`."""
    tolerance: str
    """One of `BOUNDS` or `WIDTHS`."""
    amount: float
    """Width that goes with one of `WIDTHS`; `absolute` is in the claim's unit."""
    measure: str
    """A key of `CLAIM_MEASURES`."""
    arguments: Mapping[str, Any]
    """What the measure is called with."""
    note: str
    """What a reader has to know besides; `""` for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A claim with its verdict: one row of the ledger."""

    claim: Claim
    outcome: Outcome
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where a measured value has to be for a claim to hold."""

    low: float
    high: float
    open: bool
    """Whether the border itself is outside."""


def check_claims(claims: Sequence[Claim], evidence: Evidence) -> list[Entry]:
    """Measure every claim and give its verdict, in the order of the claims."""
    return [check_claim(claim, evidence) for claim in claims]


def check_claim(claim: Claim, evidence: Evidence) -> Entry:
    """Measure one claim on the evidence there is and give its verdict."""
    function = CLAIM_MEASURES[claim.measure]
    given = dict(claim.arguments)
    if needs_evidence(function):
        given["evidence"] = evidence
    outcome = function(**given)
    return Entry(claim=claim, outcome=outcome, verdict=verdict_of(claim, outcome))


def verdict_of(claim: Claim, outcome: Outcome) -> Verdict:
    """Hold what was measured against what was published."""
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
                    f"claim {claim.id}: {len(regions)} values are published and {claim.measure} "
                    f"gives {len(values)}: give as many"
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
    """Give where each measured value has to be, in base units."""
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
    """Tell whether a measure reads trained runs rather than computing its value."""
    return "evidence" in inspect.signature(function).parameters
