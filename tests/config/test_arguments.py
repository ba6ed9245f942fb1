"""Every argument reaches the configuration unchanged, or is refused in one line."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_study.config.arguments import as_override, quoted, read_arguments
from lowrank_study.config.composition import composer_of, plain
from lowrank_study.errors import InputError

SPECIAL = list("\\'\"${}[]()=,:;#~@!%&*?|<> \n\tab-ü模")
TYPED = st.text(st.sampled_from(SPECIAL) | st.characters(exclude_characters="\0"), max_size=12)
MEASURE = composer_of("measure_spectra")


def out_of(*arguments: str) -> object:
    return plain(MEASURE.config(read_arguments(arguments).overrides))["out"]


@given(TYPED)
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_back(text: str) -> None:
    assert plain(MEASURE.config([f"out={quoted(text)}"]))["out"] == text


@given(TYPED.filter(lambda text: not text.startswith("$")))
@settings(max_examples=50, deadline=None)
def test_a_path_after_two_dashes_is_taken_literally(text: str) -> None:
    assert out_of("--out", text) == text
    assert out_of(f"--out={text}") == text


def test_bytes_that_are_not_utf8_are_kept() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert out_of(f"out={name}") == name


def test_null_and_quoted_values_keep_hydras_meaning() -> None:
    assert out_of("out=null") is None
    assert out_of("--out", "null") == "null"
    assert out_of("out='a b'") == "a b"
    assert out_of("--out", "'a b'") == "'a b'"


def test_an_existing_path_is_taken_literally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "'a b'").mkdir()
    assert out_of("out='a b'") == "'a b'"


def test_an_unexpanded_variable_is_a_file_name() -> None:
    assert out_of("out=$HOME") == "./$HOME"


def test_a_number_is_a_valid_sweep_name() -> None:
    for typed, name in (("2024", "2024"), ("1e3", "1e3"), ("2024_01", "2024_01"), ("true", "true")):
        [override] = read_arguments([f"sweep={typed}"]).overrides
        assert plain(composer_of("report").config([override]))["sweep"] == name


def test_lists_and_pins_keep_hydras_grammar() -> None:
    assert as_override("sweep=[a,b]") == "sweep=[a,b]"
    assert as_override("model.source={requirement: x}") == "model.source={requirement: x}"


def test_other_settings_keep_hydras_grammar() -> None:
    read = read_arguments(["-m", "--method.rank", "1,2", "method.target=[query,key]"])
    assert read.is_grid
    assert read.overrides == ("method.rank=1,2", "method.target=[query,key]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rank_sweep"], ["'rank_sweep'", "KEY=VALUE"]),
        (["--before"], ["--before VALUE"]),
        (["-x"], ["'-x'", "--help"]),
        (
            ["-m", "task.source=a.csv,b.csv"],
            ["no such path", "cases=[{task.source: a.csv, task.name: first}"],
        ),
    ],
)
def test_an_argument_that_is_not_a_setting_is_refused(
    arguments: list[str], words: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        read_arguments(arguments)
    for word in words:
        assert word in str(refused.value)
