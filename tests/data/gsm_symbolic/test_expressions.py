"""Expressions of templates are computed exactly, and nothing else can be reached or made to run."""

import resource
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_study.data.gsm_symbolic.drawing import CHOICES, choices
from lowrank_study.data.gsm_symbolic.expressions import evaluated, parsed
from lowrank_study.data.gsm_symbolic.functions import FUNCTIONS
from lowrank_study.data.gsm_symbolic.numbers import LARGEST, Real
from lowrank_study.errors import InputError

NAMES: dict[str, Any] = {
    "n": 7,
    "k": 3,
    "third": Fraction(1, 3),
    "price": Real("0.1"),
    "name": "Ada",
    "names": ["Ada", "Emmy"],
}


def value(source: str) -> Any:
    return evaluated(parsed(source), NAMES, FUNCTIONS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("n // k * 2 - -1", 5),
        ("n / 2", Real("3.5")),
        ("price + 0.2", Real("0.3")),
        ("int(0.57 * 100)", 57),
        ("third * 3", 1),
        ("n % k", 1),
        ("2 ** k", 8),
        ("round(n / 3, 2)", Real("2.33")),
        ("round(2.5)", 2),
        ("1 < k < n and not n == k", True),
        ("name == 'Ada' or 1 / 0 > 1", True),
        ("name + 's' if k > 1 else name", "Adas"),
        ("is_int(n / k)", False),
        ("is_int(price * 20)", True),
        ("divides(n, 0)", False),
        ("divides(12, 3.0)", True),
        ("Fraction(n / 28)", "1/4"),
        ("str(6 / 4)", "1.5"),
        ("plural(1, 'coin', 'coins')", "coin"),
        ("plural(22, 'рік', 'роки', 'років')", "роки"),
        ("plural(112, 'рік', 'роки', 'років')", "років"),
        ("ensure_int(price * 30)", 3),
    ],
)
def test_values_are_exact(source: str, expected: object) -> None:
    found = value(source)
    assert found == expected
    assert isinstance(found, bool) == isinstance(expected, bool)


def test_a_ratio_stays_one_until_a_real_number_joins_it() -> None:
    assert type(value("third * n")) is Fraction
    assert type(value("third * 0.5")) is Real
    assert type(value("n / k")) is Real


ESCAPES = [
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "name.format(names)",
    "'{0.__class__}'.format(n)",
    "f'{names.__class__}'",
    "names[0]",
    "names[0:1]",
    "[each for each in names]",
    "{each: 1 for each in names}",
    "sum(each for each in names)",
    "lambda: n",
    "(lambda: n)()",
    "(n := 3)",
    "open('/etc/passwd')",
    "getattr(name, 'upper')",
    "plural(*names)",
    "round(number=n)",
    "eval('n')",
    "name * 1000000000",
    "'%1000000000d' % n",
    "names + names",
    "n << 100000000",
    "9 ** 9 ** 9",
    "9 ** 9999999",
    "10 ** -3",
    "2 ** 0.5",
    "1e308 * 10",
    "1e999",
    "1j",
    "b'x'",
    "None",
    "...",
    "n < name",
    "True + 1",
    "name < 'B'",
    "await n",
    "unknown",
    "round(n, 1000000000)",
    "'9' * 5000",
    "1" * 5_000,
    "-" * 4_999 + "1",
    "(" * 2_000 + "1" + ")" * 2_000,
    "+".join(["1"] * 2_000),
    "n if " * 500 + "n",
    "n\0",
    "n; k",
    "",
    "x" * 6_000,
]


@pytest.mark.parametrize("source", ESCAPES)
def test_everything_else_is_refused_in_one_line_at_once(source: str) -> None:
    begin = time.process_time()
    with pytest.raises(InputError) as refused:
        value(source)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    "source",
    [
        "range(0, 1000000000)",
        "range_list(0, 1000000000)",
        "range(5, 5)",
        "range(0, 9, 0)",
        "range(0.5, 9)",
        "arange(0, 1000000, 0.0001)",
        "arange(0, 1, 0)",
        "range_str(1, 1000000000, 1, names)",
        "sample(names, 3)",
        "sample(name)",
        "sample(names, 0)",
        "sample_sequential(names, 1000000000)",
        "sample(range_list(0, 1000000000), 2)",
        "[]",
    ],
)
def test_large_and_empty_draws_are_refused(source: str) -> None:
    with pytest.raises(InputError) as refused:
        choices(parsed(source), NAMES)
    assert "\n" not in str(refused.value)


SYNTAX = [" if ", " else ", " and ", " not ", " for ", " in ", "lambda ", "f'", ".__class__"]
PIECES = st.sampled_from(
    [*NAMES, *CHOICES, *SYNTAX, *"()[]{},.:+-*/%<>=!'\"\\ 019\né", "**", "//", "==", "1e9", "99999"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_random_text_gives_a_plain_value_or_is_refused(source: str) -> None:
    begin = time.process_time()
    try:
        found = evaluated(parsed(source), NAMES, CHOICES)
    except (InputError, ZeroDivisionError) as refused:
        found = str(refused)
    assert_plain(found)
    assert time.process_time() - begin < 0.5


def assert_plain(found: Any) -> None:
    module = type(found).__module__
    assert module in ("builtins", "fractions") or module.startswith("lowrank_study.data.gsm")
    assert not callable(found)
    if isinstance(found, int | Fraction):
        assert abs(found) <= LARGEST
    if isinstance(found, str):
        assert len(found) <= 10_000


OPERATORS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**"])
ARITHMETIC = st.recursive(
    st.integers(-(10**6), 10**6).map(str) | st.sampled_from(["n", "price", "third", "0.001"]),
    lambda part: st.tuples(part, OPERATORS, part).map(lambda x: f"({x[0]} {x[1]} {x[2]})"),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(ARITHMETIC)
def test_numbers_stay_bounded(source: str) -> None:
    try:
        found = value(source)
    except (InputError, ZeroDivisionError):
        return
    assert max(abs(found.numerator), found.denominator) <= LARGEST


def test_refusals_need_little_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in ("9 ** 99 ** 99", "name * 10 ** 9", "(10 ** 29) ** 99", "(1 / 3 ** 60) ** 100"):
        with pytest.raises(InputError):
            value(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
