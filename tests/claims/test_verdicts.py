"""The rule from a published value and a measured interval to a verdict."""

import math
from pathlib import Path
from typing import Any

import pytest

from lowrank_study.claims.files import load_claims, read_claim
from lowrank_study.claims.measures import CLAIM_MEASURES
from lowrank_study.claims.measures.evidence import NO_EVIDENCE
from lowrank_study.claims.measures.outcome import (
    Interval,
    Measured,
    Observed,
    Unmeasured,
)
from lowrank_study.claims.verdicts import (
    VERDICTS,
    Claim,
    check_claim,
    needs_evidence,
    regions_of,
    verdict_of,
)
from lowrank_study.errors import InputError


def claim(published: Any, tolerance: Any, unit: str = "") -> Claim:
    entry = {
        "id": "one", "section": "1", "claim": "it is so", "published": published, "unit": unit,
        "tolerance": tolerance, "measure": {"name": "not_tested", "why": "a test"},
    }  # fmt: skip
    return read_claim(entry, source="a paper", where="test.yaml")


def between(*bounds: tuple[float, float]) -> Measured:
    values = (Interval(value=(a + b) / 2, low=a, high=b, label="") for a, b in bounds)
    return Measured(values=tuple(values), how="given")


HOLDS, FAILS, UNRESOLVED, UNTESTED = VERDICTS


@pytest.mark.parametrize(
    ("tolerance", "low", "high", "expected"),
    [
        ("exact", 10, 10, HOLDS),
        ("exact", 10.001, 10.001, FAILS),
        ({"relative": 0.1}, 9, 11, HOLDS),
        ({"relative": 0.1}, 11.01, 12, FAILS),
        ({"relative": 0.1}, 10.5, 11.5, UNRESOLVED),
        ({"absolute": 2}, 8, 12, HOLDS),
        ({"absolute": 2}, 4, 7.9, FAILS),
        ({"absolute": 2}, 4, 20, UNRESOLVED),
        ({"factor": 2}, 5, 20, HOLDS),
        ({"factor": 2}, 20.1, 30, FAILS),
        ("at_least", 10, 11, HOLDS),
        ("at_least", 8, 9.9, FAILS),
        ("at_least", 9.9, 11, UNRESOLVED),
        ("at_least", 8, 10, UNRESOLVED),
        ("at_most", 9, 10, HOLDS),
        ("at_most", 10.1, 11, FAILS),
        ("at_most", 9, 11, UNRESOLVED),
        ("above", 10.1, 11, HOLDS),
        ("above", 8, 10, FAILS),
        ("above", 10, 11, UNRESOLVED),
        ("below", 8, 9.9, HOLDS),
        ("below", 10, 11, FAILS),
        ("below", 9, 10, UNRESOLVED),
        ("at_least", -math.inf, math.inf, UNRESOLVED),
        ({"relative": 0.1}, math.nan, math.nan, UNRESOLVED),
    ],
)
def test_a_verdict_needs_an_interval_that_decides(
    tolerance: Any, low: float, high: float, expected: str
) -> None:
    assert verdict_of(claim(10, tolerance), between((low, high))) == expected


def test_a_range_and_a_unit() -> None:
    asked = claim([4, 6], "between", unit="GB")
    assert verdict_of(asked, between((4e9, 6e9))) == HOLDS
    assert verdict_of(asked, between((6.1e9, 7e9))) == FAILS
    assert verdict_of(asked, between((5e9, 7e9))) == UNRESOLVED


def test_of_several_values_one_outside_is_a_counterexample() -> None:
    asked = claim([1, 2], "exact")
    assert verdict_of(asked, between((1, 1), (2, 2))) == HOLDS
    assert verdict_of(asked, between((1, 1), (3, 3))) == FAILS
    every_task = claim(0, "above")
    assert verdict_of(every_task, between((1, 2), (-1, 2))) == UNRESOLVED
    assert verdict_of(every_task, between((-2, 3), (-2, -1))) == FAILS


def test_as_many_values_as_are_published_are_needed() -> None:
    with pytest.raises(InputError, match="3 values are published"):
        verdict_of(claim([1, 2, 3], "exact"), between((1, 1), (2, 2)))


def test_words_and_what_was_not_measured() -> None:
    assert verdict_of(claim(True, "same"), Observed(value=True, how="")) == HOLDS
    assert verdict_of(claim("output", "same"), Observed(value="input", how="")) == FAILS
    assert verdict_of(claim(1, "exact"), Unmeasured(why="no GPU")) == UNTESTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": "near"}, "tolerance='near': valid are exact"),
        ({"tolerance": {"relative": -1}}, "of at least 0 is needed"),
        ({"tolerance": {"factor": 0.5}}, "of at least 1 is needed"),
        ({"tolerance": "same"}, "'same' is for words"),
        ({"published": "often"}, "'same' is for words"),
        ({"published": None}, "published=None"),
        ({"unit": "kg"}, "unit='kg': valid are"),
        ({"measure": {"name": "guess"}}, "name='guess': valid are"),
        ({"measure": {"name": "not_tested"}}, "missing a required argument: 'why'"),
        ({"measure": {"name": "retention", "rank": 8}}, "missing a required argument: 'target'"),
        ({"section": None}, "section=None"),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, Any], message: str) -> None:
    entry = {
        "id": "one", "section": "1", "claim": "it is so", "published": 1, "tolerance": "exact",
        "measure": {"name": "not_tested", "why": "a test"},
    }  # fmt: skip
    with pytest.raises(InputError) as error:
        read_claim(entry | change, source="a paper", where="test.yaml")
    assert message in str(error.value)
    assert "test.yaml: one" in str(error.value)


def test_no_claims_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no claims in"):
        load_claims(tmp_path)
    entry = (
        "source: a\nclaims:\n  - {id: twin, section: s, claim: c, published: 1, tolerance: exact, "
        "measure: {name: not_tested, why: w}}\n"
    )
    (tmp_path / "a.yaml").write_text(entry)
    (tmp_path / "b.yaml").write_text(entry)
    with pytest.raises(InputError, match="two claims are called 'twin'"):
        load_claims(tmp_path)
    (tmp_path / "b.yaml").write_text("claims: []\nsource: [1]\n")
    with pytest.raises(InputError, match="source"):
        load_claims(tmp_path)


CLAIMS = load_claims()


def test_every_claim_has_a_source_and_a_measure_that_exists() -> None:
    assert len(CLAIMS) > 150
    for one in CLAIMS:
        assert one.source.strip()
        assert one.section.strip()
        assert one.measure in CLAIM_MEASURES, one.id
        if isinstance(one.published, tuple):
            assert regions_of(one), one.id


def test_every_measure_is_used_by_a_claim() -> None:
    assert {one.measure for one in CLAIMS} == set(CLAIM_MEASURES)


@pytest.mark.parametrize(
    "one", [c for c in CLAIMS if needs_evidence(CLAIM_MEASURES[c.measure])], ids=lambda c: str(c.id)
)
def test_without_evidence_nothing_holds_or_fails(one: Claim) -> None:
    entry = check_claim(one, NO_EVIDENCE)
    assert entry.verdict == UNTESTED
    assert isinstance(entry.outcome, Unmeasured)
    assert entry.outcome.why.startswith("this check needs ")
