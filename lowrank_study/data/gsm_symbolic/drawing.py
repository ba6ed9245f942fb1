"""Find the values that a line of a template may have, and draw one.

`name = sample(names_male)` has the items of a list, `$x = range(2, 20)` the integers from 2 to 19,
`a, b = sample(sports, 2)` all pairs of different items.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lowrank_study.data.gsm_symbolic.expressions import Expression, evaluated
from lowrank_study.data.gsm_symbolic.functions import FUNCTIONS
from lowrank_study.data.gsm_symbolic.numbers import Number, Real
from lowrank_study.errors import InputError

_MOST_VALUES = 100_000
"""Most values that a range may have."""


@functools.lru_cache(maxsize=10_000)
def whole_range(start: Number, end: Number, step: Number = 1) -> range:
    """Return the integers from start to before end."""
    if any(value.denominator != 1 for value in (start, end, step)):
        raise ValueError("range needs whole numbers")
    values = range(int(start), int(end), int(step))
    if len(values) > _MOST_VALUES:
        raise ValueError(f"a range has more than {_MOST_VALUES} values")
    return values


@functools.lru_cache(maxsize=100)
def stepped(start: Number, end: Number, step: Number = 1) -> Sequence[Real]:
    """Return evenly spaced real numbers from start to end, both included."""
    if step <= 0 or (end - start) / Fraction(step) > _MOST_VALUES:
        raise ValueError(f"arange needs a positive step and at most {_MOST_VALUES} values")
    count = round((end - start) / Fraction(step)) + 1
    return [Real(start + number * Fraction(step)) for number in range(count)]


def word_numbers(start: Number, end: Number, step: Number, words: Sequence[str]) -> list[Any]:
    """Return pairs of a number's word and the number; `words` begin with one."""
    return [(words[n - 1], n) for n in whole_range(start, end, step) if 0 < n <= len(words)]


def runs_of(items: Sequence[Any], count: int) -> list[list[Any]]:
    """Return all runs of consecutive items, which go on from the last to the first."""
    if not 0 < count <= len(items):
        raise ValueError(f"{count} of {len(items)} items can't be drawn")
    return [[items[(n + k) % len(items)] for k in range(count)] for n in range(len(items))]


class Several:
    """Different items of a list, in any order."""

    def __init__(self, items: Sequence[Any], count: int) -> None:
        if not 0 < count <= len(items):
            raise ValueError(f"{count} of {len(items)} items can't be drawn")
        self.items, self.count = items, count


def items_of(items: Any, count: Number = 1) -> Any:
    """Return the items of a list, or what stands for several of them."""
    if not isinstance(items, list | tuple | range):
        raise TypeError(f"{type(items).__name__} is no list to draw from")
    return list(items) if count == 1 else Several(items, int(count))


CHOICES: Mapping[str, Callable[..., Any]] = {
    **FUNCTIONS,
    "range": whole_range,
    "range_list": whole_range,
    "arange": stepped,
    "range_str": word_numbers,
    "sample": items_of,
    "sample_sequential": runs_of,
}
"""Name in templates → a function; those that draw there return all that may be drawn."""


def choices(expression: Expression, names: Mapping[str, Any]) -> Sequence[Any] | Several:
    """Return the values that a line may have.

    Raises:
        InputError: The expression can't be evaluated, or there is no value.
    """
    found = evaluated(expression, names, CHOICES)
    is_name = expression.source in names
    if isinstance(found, Several) or (isinstance(found, list | range) and found and not is_name):
        return found
    if isinstance(found, list | range) and not is_name:
        raise InputError(f"expression {expression.source[:60]!r} has no values to draw from")
    return [found]


def drawn(found: Sequence[Any] | Several, generator: np.random.Generator) -> Any:
    """Return one of some values."""
    if isinstance(found, Several):
        order = generator.permutation(len(found.items))[: found.count]
        return [found.items[int(number)] for number in order]
    return found[int(generator.integers(len(found)))] if len(found) > 1 else found[0]
