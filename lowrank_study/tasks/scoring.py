"""Scorers of generated answers: functions of an answer and its reference that return a number.

    >>> scorer_named("f1")("a red house", "the red car")
    0.5

Token F1 is that of SQuAD (Rajpurkar et al. 2016): the harmonic mean of precision and recall over
the words of both texts, without case, punctuation and articles.
"""

import importlib
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lowrank_study.errors import InputError
from lowrank_study.tasks.metric import ACCURACY, NATS_PER_TOKEN, Metric

Scorer = Callable[[str, str], float]
"""A function from an answer and its reference to a score; the higher, the better."""


def final_number(response: str, reference: str) -> float:
    """Return 1 if both texts have the same number after `####`, else 0."""
    from lowrank_study.data.gsm_symbolic import numbers

    found = numbers.final_number(response)
    return float(found is not None and found == numbers.final_number(reference))


def exact_match(response: str, reference: str) -> float:
    """Return 1 if the texts are equal up to white space, else 0."""
    return float(response.split() == reference.split())


def f1(response: str, reference: str) -> float:
    """Return the F1 of the words of both texts; 1 if neither has a word."""
    given, expected = _words(response), _words(reference)
    if not given or not expected:
        return float(given == expected)
    common = (Counter(given) & Counter(expected)).total()
    return 2 * common / (len(given) + len(expected))


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


SCORERS: dict[str, Scorer] = {"final_number": final_number, "exact_match": exact_match, "f1": f1}


EXACT_MATCH = replace(
    ACCURACY,
    name="exact_match",
    label="exact match",
    chance_name=None,
    baseline=NATS_PER_TOKEN.baseline,
    chance=NATS_PER_TOKEN.chance,
)
F1 = replace(EXACT_MATCH, name="f1", label="F1", is_binary=False)
ANSWER_SCORE = replace(
    F1,
    name="answer_score",
    label="answer score",
    lowest=-math.inf,
    highest=math.inf,
    points="points",
    points_per_unit=1,
)
"""The score of a function of the user's own, whose scale is unknown."""


def metric_of(scorer: str) -> Metric:
    """Return what the scores of a scorer are; its name is the key of their mean in a record."""
    found = {"final_number": EXACT_MATCH, "exact_match": EXACT_MATCH, "f1": F1}
    return found.get(scorer, ANSWER_SCORE)


def scorer_named(name: str) -> Scorer:
    """Return a scorer by its name here, or by its import path, as in `package.module:function`.

    Modules in the working folder are found.

    Raises:
        InputError: There is no such scorer, or it can't be imported.
    """
    if name in SCORERS:
        return SCORERS[name]
    module, _, function = name.partition(":")
    if not (module and function):
        raise InputError(
            f"task.scorer={name!r}: valid are {', '.join(SCORERS)}, or a function of your own, as "
            "in package.module:function"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module may raise anything
        raise InputError(
            f"task.scorer={name!r} can't be imported ({type(error).__name__}: {error}): give a "
            "function of an installed package or of a module in the working folder"
        ) from error
    if not callable(found):
        raise InputError(
            f"task.scorer={name!r} is a {type(found).__name__}: give a function of an answer and "
            "its reference"
        )
    scorer: Scorer = found
    return scorer


def score(name: str, response: str, reference: str) -> float:
    """Return the score of an answer.

    Raises:
        InputError: The scorer raises an exception, or returns no finite number.
    """
    scorer = scorer_named(name)
    try:
        found = scorer(response, reference)
    except Exception as error:  # a user's function may raise anything
        raise InputError(
            f"task.scorer={name!r} raises {type(error).__name__} ({error}) for the answer "
            f"{response[:60]!r}: it must return a number for any text"
        ) from error
    try:
        number = float(found)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(found, str) or not math.isfinite(number):
        raise InputError(
            f"task.scorer={name!r} returned {found!r} for the answer {response[:60]!r}: it must "
            "return a finite number"
        )
    return number
