"""Generated problems become splits in which nothing leaks, the same on every machine."""

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study import assets
from lowrank_study.data.gsm_symbolic.numbers import final_number
from lowrank_study.data.gsm_symbolic.problems import (
    generated,
    held_out_templates,
    rows_of,
    usable_templates,
)
from lowrank_study.errors import InputError
from lowrank_study.left_out import check_left_out
from lowrank_study.spec import GsmSymbolic
from tests.data.gsm_symbolic.made_up import APPLES, TRIPS, write_language

SOURCE = GsmSymbolic(
    requirement="made-up==1.0",
    sha256="0" * 64,
    member="data/eng",
    held_out_templates=50,
    variants=5,
    validation_variants=2,
    test_variants=3,
    seed=0,
    version=GsmSymbolic.VERSION,
)
ALL = {number: APPLES if number % 3 else TRIPS for number in range(100)}


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a made-up language in place of the wheel's."""
    folder = write_language(tmp_path / "eng", ALL)
    monkeypatch.setattr(assets, "fetch", lambda source: folder)
    generated.cache_clear()
    usable_templates.cache_clear()
    return folder


def test_splits_have_the_wanted_sizes_and_share_no_numbers(language: Path) -> None:
    frames = generated(SOURCE).frames
    known, held_out = 50, 50
    assert {split: len(frame) for split, frame in frames.items()} == {
        "train": known * 5,
        "validation": known * 2,
        "test": known * 3 + held_out * 3,
    }
    every = pd.concat(frames.values())
    assert not every.duplicated(["template", "question"]).any()
    apples = next(number for number in frames["train"]["template"] if number % 3)
    of_one = every[every["template"] == apples]
    numbers = of_one["question"].map(lambda text: tuple(re.findall(r"[\d/.]+", text)))
    assert numbers.nunique() == len(of_one) == 10
    assert all(map(final_number, every["answer"]))


def test_test_sets_are_new_numbers_and_held_out_templates(language: Path) -> None:
    frames = generated(SOURCE).frames
    trained = set(frames["train"]["template"])
    sets = dict(tuple(frames["test"].groupby("test_set")["template"]))
    assert set(sets["new_numbers"]) == trained == set(frames["validation"]["template"])
    assert set(sets["unknown_templates"]) == set(held_out_templates(SOURCE))
    assert not trained & set(held_out_templates(SOURCE))
    assert len(trained) == 50


def test_the_same_templates_are_held_out_in_every_language() -> None:
    french = dataclasses.replace(SOURCE, member="data/fra")
    assert french.language == "fra"
    assert held_out_templates(french) == held_out_templates(SOURCE)
    assert held_out_templates(dataclasses.replace(SOURCE, seed=1)) != held_out_templates(SOURCE)
    some = dataclasses.replace(SOURCE, held_out_templates=10)
    assert set(held_out_templates(some)) < set(held_out_templates(SOURCE))


def test_languages_and_seeds_have_other_numbers_and_the_same_settings_the_same(
    language: Path,
) -> None:
    first = generated(SOURCE).frames["test"]
    generated.cache_clear()
    pd.testing.assert_frame_equal(first, generated(SOURCE).frames["test"])
    for other in (
        dataclasses.replace(SOURCE, member="data/fra"),
        dataclasses.replace(SOURCE, seed=1),
    ):
        assert set(generated(other).frames["test"]["question"]) != set(first["question"])


def test_more_training_problems_leave_the_others_as_they_are(language: Path) -> None:
    few, many = (generated(dataclasses.replace(SOURCE, variants=n)).frames for n in (1, 8))
    for split in ("validation", "test"):
        pd.testing.assert_frame_equal(few[split], many[split])
    assert set(few["train"]["variant"]) == {0}  # the stored problems
    assert set(few["train"]["question"]) < set(many["train"]["question"])


def test_templates_without_more_numbers_are_counted(language: Path) -> None:
    _, how, _ = rows_of(dataclasses.replace(SOURCE, variants=50), "train")
    short = sum(n % 3 == 0 for n in range(100) if n not in held_out_templates(SOURCE))
    assert how == (
        f"generated from the templates of eng; {short} templates have fewer variants than "
        "task.variants asks for"
    )


def test_withdrawn_and_wrong_templates_are_left_out(language: Path) -> None:
    wrong = {**APPLES, "answer": "#### 1"}
    folder = write_language(
        language.parent / "few",
        {0: APPLES, 1: {**APPLES, "ignore": True}, 2: {"ignore": True}, 3: wrong}
        | {n: {**APPLES, "answer_annotated": "{n.real}"} for n in (4, 5)},
    )
    usable = usable_templates(folder, "few")
    assert [template.number for template in usable.templates] == [0]
    assert (usable.withdrawn, usable.wrong) == ((1, 2), (3, 4, 5))


def test_a_language_without_most_templates_is_refused_unless_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {n: {**APPLES, "ignore": n >= 90} for n in range(100)}
    folder = write_language(tmp_path / "eng", some)
    monkeypatch.setattr(assets, "fetch", lambda source: folder)
    generated.cache_clear()
    _, _, left_out = rows_of(SOURCE, "train")
    assert not rows_of(SOURCE, "test")[2]  # counted once
    with pytest.raises(InputError, match=r"10 of 100 templates of the language eng.*to be ig"):
        check_left_out(left_out, allow_partial=False)
    check_left_out(left_out, allow_partial=True)


def test_another_version_of_the_generator_is_refused(language: Path) -> None:
    with pytest.raises(InputError, match=r"version 0 of the generator.*train the run again"):
        generated(dataclasses.replace(SOURCE, version=0))


def test_an_unknown_split_is_refused(language: Path) -> None:
    with pytest.raises(InputError, match="train, validation, test"):
        rows_of(SOURCE, "all")
