"""The functions that templates call: tests of numbers, and forms of words.

Functions that draw at random are in `drawing`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lowrank_study.data.gsm_symbolic.numbers import Number, Real, is_number, number_or_text, written

_MOST_DECIMALS = 10


def is_int(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return is_number(value) and value.denominator == 1


def divides(number: Number, divisor: Number) -> bool:
    """Return whether a number is a multiple of another; no number is one of 0."""
    return divisor != 0 and number % divisor == 0


def truncated(value: Number) -> int:
    """Return a number without its decimals."""
    return int(_number(value))


def ensured_int(value: Number) -> int:
    """Return a whole number as an integer; refuse other numbers."""
    if not is_int(value):
        raise ValueError(f"{value} is not a whole number")
    return int(value)


def rounded(value: Number, decimals: int = 0) -> Number:
    """Return a number rounded to some decimals, halves to even."""
    if not 0 <= decimals <= _MOST_DECIMALS:
        raise ValueError(f"round to 0 to {_MOST_DECIMALS} decimals, not {decimals}")
    exact = round(Real(_number(value)), int(decimals))
    return Real(exact) if decimals else int(exact)


def real(value: Number) -> Real:
    """Return a number as a real number, which is written with decimals."""
    return Real(_number(value))


def ratio(value: Any) -> str:
    """Return a number as a ratio such as 3/4."""
    return f"{value.numerator}/{value.denominator}" if not is_int(_number(value)) else str(value)


def as_text(value: Any) -> str:
    """Return a value as it is written in a problem."""
    if is_number(value):
        return written(value)
    if isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} can't be written in a problem")


def plural(count: Number, *forms: str) -> str:
    """Return the form that a count asks for: one of two forms, or of three in Slavic languages."""
    if len(forms) == 2:
        return forms[0] if abs(_number(count)) == 1 else forms[1]
    if len(forms) != 3:
        raise ValueError(f"plural needs 2 or 3 forms, not {len(forms)}")
    number = abs(int(_number(count)))
    if 11 <= number % 100 <= 14:
        return forms[2]
    return forms[0] if number % 10 == 1 else forms[1] if number % 10 in (2, 3, 4) else forms[2]


def ukrainian_months(count: Number) -> str:
    """Return the word for months after a count."""
    return plural(count, "місяць", "місяці", "місяців")


def ukrainian_on_day(day: str) -> str:
    """Return a weekday as it is written after "у" (on)."""
    return {"середа": "середу", "п’ятниця": "п’ятницю", "субота": "суботу", "неділя": "неділю"}.get(
        day, day
    )


def capitalised(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


_HALF = {
    "masc": "अर्धा",
    "fem": "अर्धी",
    "neut": "अर्धे",
    "plural": "अर्धे",
    "oblique": "अर्ध्या",
    "obl": "अर्ध्या",
}
_OBLIQUE = {
    "निळ": "निळ्या",
    "हिरव": "हिरव्या",
    "पिवळ": "पिवळ्या",
    "जांभळ": "जांभळ्या",
    "काळ": "काळ्या",
    "पांढर": "पांढऱ्या",
}


def marathi_fraction(text: str, form: str) -> str:
    """Return a fraction in a grammatical form; only "half" has several."""
    return _HALF.get(form, text) if text == "अर्धा" else text


def marathi_colour(colour: str, form: str) -> str:
    """Return a colour in a grammatical form."""
    stem = colour.removesuffix("ा").removesuffix("े")
    if stem not in _OBLIQUE or stem == colour:
        return colour
    if form in ("oblique", "obl"):
        return _OBLIQUE[stem]
    return f"{stem}े" if form in ("plural", "pl", "neut") else colour


def _number(value: Any) -> Number:
    found: Any = number_or_text(value) if isinstance(value, str) else value
    if not is_number(found):
        raise TypeError(f"{str(value)[:40]!r} is not a number")
    number: Number = found
    return number


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "is_int": is_int,
    "divides": divides,
    "int": truncated,
    "ensure_int": ensured_int,
    "round": rounded,
    "float": real,
    "Fraction": ratio,
    "str": as_text,
    "plural": plural,
    "ukr_plural_measurements": plural,
    "ukr_month_form_on_number": ukrainian_months,
    "ukr_weekday_to_when": ukrainian_on_day,
    "to_title": capitalised,
    "mar_fraction_form": marathi_fraction,
    "mar_color_form": marathi_colour,
}
"""Name in templates → function."""
