r"""A template: what a problem's text says, which values it takes, and how its answer is computed.

    A fog bank rolls in. It covers {d,3} miles in {t,10} minutes …      text, with a first value

    #init:                                                               one variable per line
    - $t = range(2, 500)
    #conditions:
    - is_int(y/d)

The answer is a text with expressions in braces, as in `it takes {y//d*t} minutes\n#### {y//d*t}`.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_study.data.gsm_symbolic.drawing import Several, choices, drawn
from lowrank_study.data.gsm_symbolic.expressions import Expression, evaluated, parsed
from lowrank_study.data.gsm_symbolic.functions import FUNCTIONS, as_text, capitalised, is_int
from lowrank_study.data.gsm_symbolic.numbers import (
    final_number,
    is_number,
    is_short,
    localised,
    number_or_text,
)
from lowrank_study.errors import InputError

_PLACEHOLDER = re.compile(r"\{(\w+),\s*([^}]+)\}")
_EXPRESSION = re.compile(r"\{([^}]+)\}")
_SENTENCE = re.compile(r"([.!?]+\s*)([a-z])")
_ASCII_DIGITS = str.maketrans("०१२३४५६७८९", "0123456789")
_MOST_DRAWS = 200_000
"""Most draws until the conditions hold."""
_MOST_HIDDEN = 5_000
"""Most combinations of values that the stored problem doesn't show."""
_MOST_MISSES = 200
"""Draws in a row without other numbers after which a template is exhausted."""

Values = Mapping[str, Any]


class NoValues(InputError):
    """No values were found that satisfy a template's conditions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The variables that one line of `#init:` draws."""

    names: tuple[str, ...]
    value: Expression

    def assigned(self, value: Any) -> dict[str, Any]:
        """Return name → value; a list of tuples is unpacked where there are more names."""
        if len(self.names) == 1:
            return {self.names[0]: value}
        parts = list(value) if isinstance(value, list | tuple) else [value]
        if len(parts) < len(self.names):
            parts = [
                p for part in parts for p in (part if isinstance(part, list | tuple) else [part])
            ]
        if len(parts) != len(self.names):
            raise InputError(f"{', '.join(self.names)}: {len(parts)} values for so many names")
        return dict(zip(self.names, parts, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines that conditions link: they are drawn together until the conditions hold."""

    lines: tuple[Line, ...]
    checks: tuple[tuple[Expression, ...], ...]
    """The conditions that can be checked once each line is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question and its worked answer."""

    question: str
    answer: str
    numbers: tuple[Any, ...]
    """The numbers that were drawn. Problems that share them differ only in names and words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template of one language."""

    language: str
    number: int
    """From 0 to 99; translations of a template have the same number."""
    question: str
    """The stored problem."""
    answer: str
    """Its worked answer."""
    text: str
    """The question with placeholders."""
    worked: str
    """The answer with expressions."""
    blocks: tuple[Block, ...]
    derived: tuple[Line, ...]
    """Lines that use other lines, such as the plural that agrees with a number."""
    words: Values
    """The language's lists of names, cities, units …"""

    def variants(self, generator: np.random.Generator) -> Iterator[Problem]:
        """Draw problems that differ from the stored one and each other in their numbers.

        An answer has no number of more than `DECIMALS` decimals, and ends with a whole number if
        the stored one does. The iterator ends if `_MOST_MISSES` draws in a row give none.
        """
        original = self.original()
        seen, misses = {original.numbers if original else None}, 0
        while misses < _MOST_MISSES:
            misses += 1
            try:
                problem = self.drawn(generator)
            except NoValues:
                return
            except (InputError, ZeroDivisionError):  # such as ensure_int of a fraction
                continue
            if problem.numbers not in seen and self._is_fit(problem):
                seen.add(problem.numbers)
                misses = 0
                yield problem

    def _is_fit(self, problem: Problem) -> bool:
        stored, found = final_number(self.answer), final_number(problem.answer)
        if found is None or (is_int(stored) and not is_int(found)):
            return False
        return is_short(problem.answer)

    def drawn(self, generator: np.random.Generator) -> Problem:
        """Draw a problem whose conditions hold."""
        values = self.shown()  # a variable without a line keeps the stored value
        for block in self.blocks:
            values |= self._drawn_block(block, generator)
        for line in self.derived:
            found = choices(line.value, {**self.words, **_all_read(values)})
            values |= line.assigned(drawn(found, generator))
        return self.rendered(values)

    def _drawn_block(self, block: Block, generator: np.random.Generator) -> dict[str, Any]:
        found = [choices(line.value, self.words) for line in block.lines]
        steps = list(zip(block.lines, found, block.checks, strict=True))
        for _ in range(_MOST_DRAWS):
            values: dict[str, Any] = {}
            names: dict[str, Any] = {}
            for line, values_of, checks in steps:
                new = line.assigned(drawn(values_of, generator))
                values |= new
                names |= _all_read(new)
                if checks and not _hold(checks, names):
                    break
            else:
                return values
        raise NoValues(
            f"template {self.number} of {self.language}: no values of {_MOST_DRAWS:,} drawn "
            "satisfy its conditions"
        )

    def rendered(self, values: Values) -> Problem:
        """Write the question and the answer with some values."""
        names = _all_read(values)
        question = _PLACEHOLDER.sub(lambda found: _written(values[found.group(1)]), self.text)
        answer = _EXPRESSION.sub(
            lambda found: _written(evaluated(_parsed(found.group(1)), names, FUNCTIONS)),
            self.worked,
        )
        if unknown := re.search(r"[{}].*", question + answer):
            raise InputError(f"placeholder {unknown[0][:60]!r} isn't known")
        drawn = (names.get(n) for block in self.blocks for line in block.lines for n in line.names)
        return Problem(
            question=_sentences(localised(question, self.language)),
            answer=_sentences(localised(answer, self.language)),
            numbers=tuple(value for value in drawn if is_number(value)),
        )

    def shown(self) -> dict[str, Any]:
        """Return the values of the stored problem that its question shows."""
        return {name: value.strip() for name, value in _PLACEHOLDER.findall(self.text)}

    def original(self) -> Problem | None:
        """Return the stored problem as the template writes it with the stored values.

        Values that the question doesn't show are those that give the stored answer. None if no
        values give it, or the question differs by more than white space, case and digits' script.
        """
        shown = self.shown()
        lines = [line for block in self.blocks for line in block.lines] + list(self.derived)
        hidden = [line for line in lines if not set(line.names) <= set(shown)]
        for values in itertools.islice(self._completed(shown, hidden), _MOST_HIDDEN):
            try:
                made = self.rendered(values)
            except (InputError, ZeroDivisionError):
                continue
            if _normal(made.question) != _normal(self.question):
                return None
            if _normal(made.answer) == _normal(self.answer):
                return made
        return None

    def _completed(self, known: dict[str, Any], lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
        """Add the values that the question doesn't show, in all ways that fit the others."""
        if not lines:
            yield known
            return
        for found in _candidates(lines[0], known, self.words):
            yield from self._completed({**found, **known}, lines[1:])


def _hold(conditions: Sequence[Expression], names: Values) -> bool:
    try:
        return all(evaluated(each, names, FUNCTIONS) for each in conditions)
    except ZeroDivisionError:
        return False


def _candidates(line: Line, known: Values, words: Values) -> list[dict[str, Any]]:
    """Return the values of a line that agree with the known ones, or all if none does."""
    try:
        found = choices(line.value, {**words, **_all_read(known)})
        if isinstance(found, Several):
            return _several_candidates(line, found, known)
        return _agreeing([line.assigned(value) for value in found], known)
    except (InputError, ZeroDivisionError):
        return [{}]


def _several_candidates(line: Line, found: Several, known: Values) -> list[dict[str, Any]]:
    """Let each of several items agree with the known values for itself."""
    width = len(line.names) // found.count
    options = []
    for part in range(found.count):
        names = line.names[part * width : (part + 1) * width]
        items = [Line(names=names, value=line.value).assigned(item) for item in found.items]
        options.append(_agreeing(items, known))
    sets = itertools.islice(itertools.product(*options), _MOST_HIDDEN)
    return [{name: value for each in parts for name, value in each.items()} for parts in sets]


def _agreeing(found: list[dict[str, Any]], known: Values) -> list[dict[str, Any]]:
    agree = [each for each in found if all(_same(each[n], known[n]) for n in each if n in known)]
    return agree or found


def read_template(stored: Mapping[str, Any], words: Values, *, language: str) -> Template:
    """Read a template from the content of its TOML file.

    Raises:
        InputError: A part is missing, or an expression uses syntax that isn't known.
    """
    text, _, rest = stored["question_annotated"].partition("#init:")
    rest, _, _ = rest.partition("#answer:")
    init, _, conditions = rest.partition("#conditions:")
    worked = stored["answer_annotated"].strip()
    for expression in _EXPRESSION.findall(worked):
        _parsed(expression)
    lines = list(map(_line, _bullets(init)))
    known = {name for line in lines for name in line.names}
    independent = [line for line in lines if not line.value.names & known]
    return Template(
        language=language,
        number=int(stored["id_shuffled"]),
        question=stored["question"].strip(),
        answer=stored["answer"].strip(),
        text=text.strip(),
        worked=worked,
        blocks=tuple(_blocks(independent, list(map(_parsed, _bullets(conditions))))),
        derived=tuple(line for line in lines if line not in independent),
        words={name: value for name, value in words.items() if isinstance(value, list)},
    )


def _blocks(lines: Sequence[Line], conditions: Sequence[Expression]) -> Iterator[Block]:
    """Group lines that share conditions, so that few draws are wasted."""
    groups = [({*line.names}, [line]) for line in lines]
    for condition in conditions:
        used = condition.names
        linked = [group for group in groups if group[0] & used]
        groups = [group for group in groups if not group[0] & used]
        merged = sorted((line for _, part in linked for line in part), key=lines.index)
        groups += [({name for names, _ in linked for name in names}, merged)] * bool(merged)
    for names, members in sorted(groups, key=lambda group: lines.index(group[1][0])):
        waiting = [each for each in conditions if each.names & names]
        checks, known = [], set(FUNCTIONS)
        for line in members:
            known |= set(line.names)
            checks.append(tuple(each for each in waiting if each.names <= known))
            waiting = [each for each in waiting if each not in checks[-1]]
        if waiting:
            raise InputError(f"condition {waiting[0].source[:60]!r} uses an unknown name")
        yield Block(lines=tuple(members), checks=tuple(checks))


def _bullets(block: str) -> list[str]:
    return [line.strip("- ") for line in block.strip().splitlines() if line.strip("- ")]


def _line(text: str) -> Line:
    names, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"line {text[:60]!r} has no =")
    bare = re.sub(r"[()$]", "", names).split(",")
    return Line(names=tuple(name.strip() for name in bare if name.strip()), value=_parsed(value))


def _written(value: Any) -> str:
    try:
        return as_text(value)
    except TypeError as error:
        raise InputError(str(error)) from error


def _parsed(source: str) -> Expression:
    return parsed(source.translate(_ASCII_DIGITS))


def _read(value: Any) -> Any:
    return number_or_text(value) if isinstance(value, str) else value


def _all_read(values: Values) -> dict[str, Any]:
    return {name: _read(value) for name, value in values.items()}


def _same(one: Any, other: Any) -> bool:
    return bool(_read(one) == _read(other))


def _sentences(text: str) -> str:
    """Begin the sentences of a text with capitals."""
    return _SENTENCE.sub(lambda found: found[1] + found[2].upper(), capitalised(text))


def _normal(text: str) -> str:
    """Return a text without case, white space, and the script and format of its last number."""
    before, mark, _ = text.partition("####")
    digits = "".join(str(unicodedata.digit(each, each)) for each in before)
    return f"{''.join(digits.split()).casefold()} {final_number(text) if mark else ''}"
