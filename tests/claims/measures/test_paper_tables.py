"""Claims that read papers' tables with our own numbers."""

from dataclasses import replace

import pandas as pd
import pytest

from lowrank_study.claims.measures.evidence import NO_EVIDENCE
from lowrank_study.claims.measures.outcome import Measured, Unmeasured
from lowrank_study.claims.measures.paper_tables import paper_row

TABLE = pd.DataFrame(
    {
        "target": ["all_linear", "full", "mlp"],
        "adapter_rank": [8, 0, 8],
        "published": ["some", "none", "some"],
        "own": [3.0, 0.5, float("nan")],
        "low": [2.0, float("nan"), float("nan")],
        "high": [4.0, float("nan"), float("nan")],
    }
)
EVIDENCE = replace(NO_EVIDENCE, papers={"intruders": TABLE})
LORA, FULL = {"target": "all_linear", "adapter_rank": 8}, {"target": "full", "adapter_rank": 0}


def test_a_row_keeps_its_interval() -> None:
    found = paper_row(EVIDENCE, paper="intruders", where=LORA)
    assert isinstance(found, Measured)
    [value] = found.values
    assert (value.low, value.value, value.high) == (2.0, 3.0, 4.0)


def test_a_difference_reaches_as_far_as_both_intervals_allow() -> None:
    known = EVIDENCE.papers["intruders"].assign(low=[2.0, 0.0, None], high=[4.0, 1.0, None])
    evidence = replace(NO_EVIDENCE, papers={"intruders": known})
    found = paper_row(evidence, paper="intruders", where=LORA, minus=FULL)
    assert isinstance(found, Measured)
    [value] = found.values
    assert (value.low, value.value, value.high) == (1.0, 2.5, 4.0)


def test_a_difference_can_be_read_against_noise_of_each_shape() -> None:
    known = EVIDENCE.papers["intruders"].assign(
        low=[2.0, 0.0, None], high=[4.0, 1.0, None], of_noise=[2.0, 0.5, 1.0]
    )
    evidence = replace(NO_EVIDENCE, papers={"intruders": known})
    found = paper_row(evidence, paper="intruders", where=LORA, minus=FULL, over_noise=True)
    assert isinstance(found, Measured)
    [value] = found.values
    assert (value.low, value.value, value.high) == (-1.0, 0.5, 2.0)


def test_without_an_interval_nothing_is_decided() -> None:
    found = paper_row(EVIDENCE, paper="intruders", where=LORA, minus=FULL)
    assert isinstance(found, Measured)
    assert found.values[0].high == float("inf")


@pytest.mark.parametrize(
    ("paper", "where", "why"),
    [
        ("lora_table5", LORA, "reproduce.py papers=[lora_table5]"),
        ("intruders", {"target": "mlp"}, "one row of intruders with target mlp; it has 0"),
        (
            "intruders",
            {"maps": "all"},
            "a table of intruders with a column maps: experiments/reproduce.py",
        ),
        ("intruders", {"adapter_rank": 4}, "one row of intruders with adapter_rank 4; it has 0"),
    ],
)
def test_what_is_not_there_is_said(paper: str, where: dict[str, object], why: str) -> None:
    found = paper_row(EVIDENCE, paper=paper, where=where)
    assert isinstance(found, Unmeasured)
    assert why in found.why
