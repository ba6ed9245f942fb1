"""The ledger: the text of each kind of entry, and escaped names."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.claims.measures.outcome import (
    Interval,
    Measured,
    Observed,
    Outcome,
    Unmeasured,
)
from lowrank_study.claims.request import read_claim_request
from lowrank_study.claims.verdicts import Claim, Entry, verdict_of
from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.errors import InputError
from lowrank_study.reporting.claims_ledger import (
    markdown_of,
    number,
    page_of,
    row_of,
    summary_of,
    write_ledger,
)

PLAIN = Claim(
    id="memory", source="A paper", section="Table 1", claim="It takes 500 GB.", published=(500.0,),
    unit="GB", tolerance="relative", amount=0.1, measure="formula", arguments={}, note="",
)  # fmt: skip
SETTINGS = {
    "sweep": None, "record": None, "live": False, "rounds": 5,
    "results": "results", "out": "results/claims",
}  # fmt: skip


def entry(outcome: Outcome, **changes: object) -> Entry:
    claim = dataclasses.replace(PLAIN, **changes)  # type: ignore[arg-type]
    return Entry(claim=claim, outcome=outcome, verdict=verdict_of(claim, outcome))


def measured(*intervals: tuple[float, float, float, str]) -> Measured:
    values = (Interval(value=v, low=a, high=b, label=label) for v, a, b, label in intervals)
    return Measured(values=tuple(values), how="summed")


def test_rows_are_in_the_claims_unit() -> None:
    row = row_of(entry(measured((1120e9, 1120e9, 1120e9, "")), note="Adam in fp32."))
    assert row["published"] == "500 GB"
    assert row["measured"] == "1,120 GB"
    assert row["tolerance"] == "±10 %"
    assert row["verdict"] == "fails"
    assert row["why"] == "summed. Adam in fp32."


def test_rows_of_intervals_tasks_and_words() -> None:
    tasks = measured((0.011, -0.002, 0.024, "news"), (0.02, -math.inf, math.inf, "films"))
    row = row_of(entry(tasks, published=(0.0,), unit="points", tolerance="above"))
    assert row["measured"] == "news: 1.1 (-0.2 to 2.4); films: 2 (-∞ to ∞) points"
    assert row["verdict"] == "not resolved by this data"
    yes = row_of(
        entry(Observed(value=True, how="tried"), published=False, unit="", tolerance="same")
    )
    assert (yes["published"], yes["measured"], yes["verdict"]) == ("no", "yes", "fails")
    none = row_of(entry(Unmeasured(why="needs a GPU")))
    assert (none["measured"], none["why"]) == ("", "needs a GPU")
    span = row_of(entry(measured((5e9, 5e9, 5e9, "")), published=(4.0, 6.0), tolerance="between"))
    assert (span["published"], span["verdict"]) == ("4 to 6 GB", "holds")


def test_numbers_are_never_scientific() -> None:
    assert number(16_777_216.0) == "16,777,216"
    assert number(0.00390625) == "0.003906"
    assert number(-0.0) == "0"
    assert number(0.3) == "0.3"
    assert number(8.3e-17) == "≈ 0"


ENTRIES = [
    entry(measured((480e9, 480e9, 480e9, ""))),
    entry(Unmeasured(why="needs runs"), id="other"),
]


def test_the_summary_counts_verdicts() -> None:
    assert summary_of(ENTRIES) == (
        "2 claims: 1 hold, 0 fail, 0 are not resolved by this data, and 1 are not tested here. "
        "Runs and timings decide 0 of the 1 that hold or fail, and arithmetic decides the others"
    )


def test_names_stay_text() -> None:
    evil = "<script>alert(1)</script>|`\u202e=HYPERLINK"
    entries = [entry(Unmeasured(why=evil), id=evil, source=evil, claim=evil)]
    page = page_of(entries)
    assert page.count("<script") == 1  # the page's own, which sorts and switches colours
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    text = markdown_of(entries)
    assert "<script" not in text
    assert "\u202e" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {10}


def test_the_files_hold_every_claim(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "claims"
    path = write_ledger(ENTRIES, folder)
    assert path == folder / "claims.html"
    assert sorted(file.name for file in folder.iterdir()) == [
        "claims.csv", "claims.html", "claims.md",
    ]  # fmt: skip
    frame = pd.read_csv(folder / "claims.csv")
    assert list(frame["id"]) == ["memory", "other"]
    assert list(frame.columns)[:4] == ["id", "source", "section", "claim"]
    assert "not tested here" in path.read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_ledger(ENTRIES, tmp_path / "file")


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_ledger(ENTRIES, tmp_path / "a").parent
    second = write_ledger(ENTRIES, tmp_path / "b").parent
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_settings_are_checked(tmp_path: Path) -> None:
    request = read_claim_request(SETTINGS | {"sweep": "rank_sweep"})
    assert request.sweeps == ("rank_sweep",)
    for change, message in (
        ({"live": "yes"}, "live='yes'"),
        ({"rounds": 0}, "rounds=0"),
        ({"sweep": 3}, "sweep=3"),
        ({"out": str(CONF_FOLDER / "config.yaml")}, "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            read_claim_request(SETTINGS | change)
