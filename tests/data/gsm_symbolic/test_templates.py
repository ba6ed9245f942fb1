"""A template gives its stored problem, and variants whose answers are right."""

import itertools
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lowrank_study.data.gsm_symbolic.numbers import (
    Real,
    final_number,
    is_short,
    localised,
    number_or_text,
    written,
)
from lowrank_study.data.gsm_symbolic.templates import Problem, Template, read_template
from lowrank_study.errors import InputError
from tests.data.gsm_symbolic.made_up import APPLES, TRIPS, WORDS


def read(stored: dict[str, Any], *, language: str = "eng") -> Template:
    return read_template({"id_shuffled": 3, **stored}, WORDS, language=language)


def drawn(template: Template, count: int, seed: int = 0) -> list[Problem]:
    return list(itertools.islice(template.variants(np.random.default_rng(seed)), count))


@pytest.mark.parametrize("stored", [APPLES, TRIPS])
def test_the_stored_problem_is_given_back(stored: dict[str, str]) -> None:
    made = read(stored).original()
    assert made is not None
    assert made.question.casefold() == stored["question"].casefold()
    assert made.answer == stored["answer"]


def test_hidden_values_are_those_that_give_the_stored_answer() -> None:
    thrice = TRIPS["question_annotated"].replace("{times,two}", "{times,a pair of}")
    question = TRIPS["question"].replace("two", "a pair of")
    made = read({**TRIPS, "question": question, "question_annotated": thrice}).original()
    assert made is not None
    assert made.answer == TRIPS["answer"]


@pytest.mark.parametrize(
    "change",
    [
        {"answer": APPLES["answer"].replace("#### 9", "#### 8")},
        {"answer": APPLES["answer"].replace("12 - 3", "13 - 3")},
        {"question": APPLES["question"].replace("12", "16")},
    ],
)
def test_another_stored_problem_is_not_given_back(change: dict[str, str]) -> None:
    assert read({**APPLES, **change}).original() is None


def test_variants_are_right_and_differ_in_their_numbers() -> None:
    made = drawn(read(APPLES), 30)
    assert len({problem.numbers for problem in made}) == 30
    assert (12, Fraction(1, 4)) not in {problem.numbers for problem in made}
    assert len({problem.question.split()[0] for problem in made}) == 3
    for problem in made:
        found = re.search(r"has (\d+) \w+ apples and gives (\d)/(\d)", problem.question)
        assert found
        n, a, b = map(int, found.groups())
        assert (n * a) % b == 0
        assert final_number(problem.answer) == n - n * a // b
        assert f"<<{n}*{a}/{b}={n * a // b}>>{n * a // b} away" in problem.answer


def test_numbers_run_out_at_some_time() -> None:
    whole = 18 + 9 + 18  # of 2, 3 and 4 trips of 0.5 to 9 miles
    assert len(drawn(read(TRIPS), 1_000)) == whole - 1  # without the stored problem


def test_variants_depend_on_the_seed_only() -> None:
    first = drawn(read(APPLES), 5)
    assert first == drawn(read(APPLES), 5) == drawn(read(APPLES), 9)[:5]
    assert first != drawn(read(APPLES), 5, seed=1)
    assert first[0].question == FIRST


FIRST = "Sofya has 6 green apples and gives 1/2 of them away. How many are left?"
"""Drawn once; a change means that GsmSymbolic.VERSION has to increase."""


def test_a_derived_word_agrees_with_its_number() -> None:
    for problem in drawn(read(TRIPS), 30):
        miles = final_number(problem.answer)
        assert problem.answer.splitlines()[0].endswith(" mile." if miles == 1 else " miles.")


def test_sentences_begin_with_capitals() -> None:
    assert ". How many miles" in drawn(read(TRIPS), 1)[0].question


def test_conditions_that_never_hold_are_refused() -> None:
    never = APPLES["question_annotated"].replace("- is_int(n * share)", "- n < 0")
    with pytest.raises(InputError, match="template 3 of eng: no values of 200,000 drawn"):
        read({**APPLES, "question_annotated": never}).drawn(np.random.default_rng(0))
    assert not drawn(read({**APPLES, "question_annotated": never}), 1)


def test_a_variable_without_a_line_keeps_the_stored_value() -> None:
    lines = APPLES["question_annotated"].replace("- colour = sample(['red', 'green'])\n", "")
    made = drawn(read({**APPLES, "question_annotated": lines}), 9)
    assert all(" red apples" in problem.question for problem in made)


def test_a_placeholder_without_a_value_is_no_problem_s_text() -> None:
    text = APPLES["question_annotated"].replace("{colour,red}", "{colour}")
    question = APPLES["question"].replace("red", "{colour}")
    template = read({**APPLES, "question_annotated": text, "question": question})
    assert template.original() is None
    assert not drawn(template, 1)


def test_a_draw_that_has_no_answer_is_drawn_again() -> None:
    lines = APPLES["question_annotated"].replace("- is_int(n * share)\n", "")
    answer = APPLES["answer_annotated"].replace("}>>{n*share}", "}>>{ensure_int(n*share)}")
    made = drawn(read({**APPLES, "question_annotated": lines, "answer_annotated": answer}), 30)
    assert len(made) == 30
    assert all(final_number(problem.answer).denominator == 1 for problem in made)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("- is_int(n * share)", "- is_int(n * unknown)", "uses an unknown name"),
        ("- is_int(n * share)", "- n.real > 0", "Attribute is not allowed"),
        ("- name = sample(names)", "- name sample(names)", "has no ="),
    ],
)
def test_bad_templates_are_refused(old: str, new: str, words: str) -> None:
    bad = APPLES["question_annotated"].replace(old, new)
    with pytest.raises(InputError, match=words):
        read({**APPLES, "question_annotated": bad})


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Real("0.25"), "0.25"),
        (Real("-0.05"), "-0.05"),
        (Real(4), "4"),
        (Real(1, 3), "0.3333333333333333"),
        (Fraction(3, 4), "3/4"),
        (Fraction(8, 4), "2"),
        (-7, "-7"),
    ],
)
def test_numbers_are_written(number: int | Fraction, text: str) -> None:
    assert written(number) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("-3", -3),
        ("०.५", Real("0.5")),
        ("३", 3),
        ("3/4", Fraction(3, 4)),
        ("1/0", "1/0"),
        ("nan", "nan"),
        ("Inf", "Inf"),
        ("1e9", "1e9"),
        ("½", "½"),
        ("9" * 40, "9" * 40),
    ],
)
def test_numbers_are_read_from_texts(text: str, number: object) -> None:
    found = number_or_text(text)
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize(
    ("language", "written_as"),
    [
        ("eng", "12,500 at 0.5, <<12500*0.5=6250>>6250, 10,000.25\n#### 12500"),
        ("deu", "12.500 at 0,5, <<12500*0,5=6250>>6250, 10.000,25\n#### 12500"),
        ("swe", "12 500 at 0,5, <<12500*0,5=6250>>6250, 10 000,25\n#### 12500"),
        ("hin", "१२५०० at ०.५, <<१२५००*०.५=६२५०>>६२५०, १००००.२५\n#### १२५००"),
    ],
)
def test_numbers_are_written_as_a_language_does(language: str, written_as: str) -> None:
    text = "12500 at 0.5, <<12500*0.5=6250>>6250, 10000.25\n#### 12500"
    assert localised(text, language) == written_as
    assert final_number(written_as) == 12500


def test_long_decimals_are_found() -> None:
    assert is_short("0.25 of 1,200.5 is 1.2345")
    assert not is_short("1/3 = 0.33333")
    assert not is_short("1e-05 of it")


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("#### 1,234", 1234),
        ("#### 82,3", Fraction("82.3")),
        ("#### 0.25\n", Fraction("0.25")),
        ("#### 1.234.567", 1234567),
        ("#### -5 euros", -5),
        ("no number", None),
        ("#### none", None),
    ],
)
def test_final_numbers(answer: str, number: object) -> None:
    assert final_number(answer) == number
