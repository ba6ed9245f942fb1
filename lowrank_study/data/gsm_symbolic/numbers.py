"""Exact numbers, and how they are written in a problem.

    >>> Real("0.1") + Real("0.2") == Real("0.3")      # floats would give 0.30000000000000004
    True

Templates compute as Python does: two integers divide to a real number, and `1/2` as a text is a
ratio, which stays one (`3/2`) until a real number joins it. Only rounding differs: there is none.
"""

import math
import re
from fractions import Fraction

LARGEST = 10**30
"""Largest numerator or denominator of a number."""
DECIMALS = 4
"""Most decimals that a worked answer may need."""
_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"-?\d*[.]\d+")
_RATIO = re.compile(r"-?\d+/\d+")
_LONGEST = 30

INDIC = ("hin", "mar")
"""Languages written with Devanagari digits."""
COMMA = ("dan", "nob", "nno", "swe", "deu", "fin", "isl", "nld", "fra", "ita", "fao")
"""Languages with a decimal comma, and a full stop (a space in Swedish) between thousands."""
_DEVANAGARI = str.maketrans("0123456789", "०१२३४५६७८९")
_PLAIN = re.compile(r"(<<[^>]*>>|####\s*-?\d[\d.,]*)")
_WRITTEN = re.compile(r"\b\d+\.\d+\b|\b\d{5,}\b")


class Real(Fraction):
    """An exact real number, written with decimals; a `Fraction` is written as a ratio."""

    __slots__ = ()


Number = int | Fraction


def is_number(value: object) -> bool:
    """Return whether a value is a number; True and False are not."""
    return isinstance(value, int | Fraction) and not isinstance(value, bool)


def number_or_text(text: str) -> Number | str:
    """Return the number that a text is, or the text."""
    if len(text) > _LONGEST:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return Real(text)
    if _RATIO.fullmatch(text) and int(text.partition("/")[2]):
        return Fraction(text)
    return text


def written(value: Number) -> str:
    """Return a number as an English text: an integer, a decimal number, or a ratio."""
    if value.denominator == 1:
        return str(value.numerator)
    if not isinstance(value, Real):
        return f"{value.numerator}/{value.denominator}"
    places = next((n for n in range(_LONGEST) if 10**n % value.denominator == 0), None)
    if places is None:  # as Python writes 1/3
        return repr(float(value))
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def is_short(text: str) -> bool:
    """Return whether no number of a text has more than `DECIMALS` decimals."""
    return not re.search(rf"\d\.\d{{{DECIMALS + 1},}}|\d[.]?\d*e[-+]\d", text)


def localised(text: str, language: str) -> str:
    """Write the numbers of a text as a language does.

    Calculations in `<<…>>` keep their thousands together, and the number after `####` is unchanged.
    """
    if language in INDIC:
        return text.translate(_DEVANAGARI)
    comma = "," if language in COMMA else "."
    thousands = " " if language == "swe" else "." if comma == "," else ","

    def of(match: re.Match[str]) -> str:
        whole, _, decimals = match.group().partition(".")
        grouped = f"{int(whole):,}".replace(",", thousands) if int(whole) >= 10_000 else whole
        return f"{grouped}{comma}{decimals}" if decimals else grouped

    def inside(part: str) -> str:
        return re.sub(r"\b(\d+)\.(\d+)\b", rf"\1{comma}\2", part)

    parts = _PLAIN.split(text)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            parts[number] = _WRITTEN.sub(of, part)
        elif part.startswith("<<"):
            parts[number] = inside(part)
    return "".join(parts)


def final_number(answer: str) -> Fraction | None:
    """Return the number after `####`, in any digits and with any separators; None without one."""
    found = re.search(r"####[^\S\n]*(-?\d(?:[\d.,]|[^\S\n](?=\d{3}))*)", answer)
    if not found:
        return None
    digits = re.sub(r"\s", "", found.group(1)).rstrip(".,")
    whole, separator, rest = _parted(digits)
    number = f"{whole}.{rest}" if separator else whole
    return Fraction(number)


def _parted(digits: str) -> tuple[str, str, str]:
    """Part a number at its decimal separator; three digits after it are thousands, not in 0.125."""
    last = max(digits.rfind("."), digits.rfind(","))
    are_thousands = len(digits) - last == 4 and digits[:last].lstrip("-") != "0"
    if last < 0 or are_thousands:
        return re.sub("[.,]", "", digits), "", ""
    return re.sub("[.,]", "", digits[:last]), ".", digits[last + 1 :]


def bounded(value: Number) -> Number:
    """Refuse a number that is too large to be part of a problem."""
    if not -LARGEST <= value.numerator <= LARGEST or value.denominator > LARGEST:
        raise OverflowError(f"a number exceeds {LARGEST:.0e}")
    return value


def power(base: Number, exponent: Number) -> Number:
    """Return a power; refuse one whose result would be too large before it is computed."""
    if exponent.denominator != 1 or not 0 <= exponent <= 100:
        raise OverflowError(f"the exponent {written(exponent)} is not an integer from 0 to 100")
    size = max(abs(base.numerator), base.denominator)
    if size > 1 and int(exponent) * math.log(size) > math.log(LARGEST):
        raise OverflowError(f"a power exceeds {LARGEST:.0e}")
    result: Number = base ** int(exponent)
    return result
