"""How values become text, and that no text can become anything else."""

import io
import math

import pandas as pd
import pytest

from lowrank_study.reporting.display import (
    csv_text,
    enumeration,
    method_name,
    printable,
    written,
)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.78213, "decimal", "0.782"),
        (294912, "count", "294,912"),
        (28.5, "rank", "28.5"),
        (29.0, "rank", "29"),
        (0.00044, "percent", "0.044\u202f%"),
        (0.117, "percent", "11.7\u202f%"),
        (1.0, "percent", "100\u202f%"),
        (4.3e-16, "percent", "0\u202f%"),  # what subtracting two equal accuracies leaves
        (0.00005, "rate", "5e-5"),
        (90_857_992, "bytes", "90.9\u202fMB"),
        (412.04, "seconds", "412\u202fs"),
        (0.7204, "ratio", "0.72×"),
        (float("nan"), "decimal", "–"),
        (math.inf, "count", "–"),
        (pd.NA, "rank", "–"),
        (None, "text", "–"),
        ("", "text", "–"),
        (True, "text", "yes"),
    ],
)
def test_each_kind_is_written_its_way(value: object, kind: str, text: str) -> None:
    assert written(value, kind) == text  # type: ignore[arg-type]


def test_control_and_direction_characters_become_visible() -> None:
    assert printable("a\x00b\n\u202ec\u200bd") == "a\\x00b\\n\\u202ec\\u200bd"
    assert printable("Δ σ é 中") == "Δ σ é 中"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_finds_no_formula(start: str) -> None:
    name = f'{start}HYPERLINK("http://evil","x")'
    frame = pd.DataFrame({"name": [name], "value": [-0.25], f"{start}column": [1]})
    text = csv_text(frame)
    read = pd.read_csv(io.StringIO(text))
    assert read["name"][0] == "'" + printable(name)
    assert read["value"][0] == -0.25
    assert list(read.columns) == ["name", "value", "'" + printable(f"{start}column")]


def test_numbers_survive_the_csv_exactly() -> None:
    frame = pd.DataFrame({"x": [0.1 + 0.2, 1e-300, -1 / 3]})
    assert list(pd.read_csv(io.StringIO(csv_text(frame)))["x"]) == [
        0.1 + 0.2,
        1e-300,
        -1 / 3,
    ]


def test_enumeration_reads_as_prose() -> None:
    assert enumeration(["1"]) == "1"
    assert enumeration(["1", "2", "4"]) == "1, 2 and 4"


@pytest.mark.parametrize(
    ("method", "written_out"),
    [
        ("full", "full fine-tuning"),
        ("dora", "DoRA"),
        ("peft_dora", "PEFT's DoRA"),
        ("ia3", "IA3"),
        ("loha (alpha=4, r=2)", "LOHA (alpha=4, r=2)"),
    ],
)
def test_methods_are_written_as_the_field_does(method: str, written_out: str) -> None:
    assert method_name(method) == written_out
