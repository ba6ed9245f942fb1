"""Decode a text file and split it into rows of equal length; refuse bad lines by number.

>>> text, encoding = decoded("Müller".encode("utf-8"), "a.csv", None)
>>> encoding
'UTF-8'

If no encoding or separator is given, it is detected, and the caller reports it.
"""

import codecs
import csv
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_study.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_ORANGE_TYPES = {"continuous", "c", "discrete", "d", "string", "s", "time", "t"}
_ORANGE_ROLES = {"", "class", "c", "meta", "m", "ignore", "i", "weight", "w"}
_NOT_WESTERN = re.compile(
    rb"[A-Za-z\xc0-\xff][\x80-\x91\x93-\x99\x9b\x9d\x9f-\xb6\xb8-\xbf][A-Za-z\xc0-\xff]"
    rb"|[a-z][\x8a\x8c\x8e\x9f]"
    rb"|[\x80-\xff]{4}|[\xc0-\xff]{3}"
)
"""Patterns that are rare in Windows-1252 text: signs between letters (all but ’ š œ ž ·), the
capitals Š Œ Ž Ÿ after small letters, and three accented letters in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The rows of a delimited text file."""

    header: list[str]
    rows: list[list[str]]
    summary: str
    """A message on what was detected."""


def decoded(content: bytes, name: str, encoding: str | None) -> tuple[str, str]:
    """Return a file's text, and the name of its encoding for messages.

    UTF-8 and byte-order marks are checked first; then zero bytes indicate UTF-16. Text that looks
    Western is read as Windows-1252, and the message says that this is a guess.

    Raises:
        InputError: The given encoding does not fit, or none can be detected.
    """
    if encoding is not None:
        return _decode(content, name, encoding), encoding
    for mark, codec, shown in _MARKS:
        if content.startswith(mark):
            return _decode(content, name, codec), shown
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _decoded_by_guess(content, name, error)
    if "\0" in text:
        return _decoded_by_guess(content, name, None)
    return text, "UTF-8"


def _decoded_by_guess(
    content: bytes, name: str, error: UnicodeDecodeError | None
) -> tuple[str, str]:
    for codec, high in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        if high.count(0) > 0.5 * len(high):
            return _decode(content, name, codec), "UTF-16"
    if error is None or b"\0" in content:
        raise InputError(
            f"{name} contains zero bytes, so it is not text in a known encoding: set "
            "task.encoding=ENCODING, or save it as UTF-8"
        )
    line = content.count(b"\n", 0, error.start) + 1
    try:
        text = None if _NOT_WESTERN.search(content) else content.decode("cp1252")
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise InputError(
            f"{name} is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}), and its "
            "encoding can't be detected: set task.encoding=ENCODING (cp1252, cp1250, cp1251, "
            "mac_roman, gb18030, shift_jis …), or save the file as UTF-8"
        )
    found = re.search(r"\w*[^\x00-\x7f]\w*", text)
    return text, f"not UTF-8, assumed to be Windows-1252 (as in {found[0] if found else ''!r})"


def _decode(content: bytes, name: str, encoding: str) -> str:
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not {encoding}: byte 0x{content[error.start]:02x} in line {line} "
            f"({error.reason}); set the right one with task.encoding=ENCODING"
        ) from error
    except UnicodeError as error:
        raise InputError(
            f"{name} is not {encoding} ({error}); set the right one with task.encoding=ENCODING"
        ) from error


def grid(
    text: str,
    name: str,
    *,
    separator: str | None,
    usual: str,
    columns: Sequence[str],
    label: str | None,
) -> Grid:
    """Return a delimited text's rows; each has as many fields as the header.

    Quotation marks follow RFC 4180, with one exception: they are ordinary letters if this gives
    lines of equal length, and they would otherwise not close, or join rows of a file with tabs.

    Args:
        separator: Separator of the fields; None detects it by the header and required columns.
        usual: The separator to use if the header does not decide.
        label: The column of labels, which reveals rows hidden in an open quotation mark, if any.

    Raises:
        InputError: A line has more or fewer fields than the header, or quotation marks don't close;
            the message gives the line number.
    """
    csv.field_size_limit(sys.maxsize)
    if hint := re.match(r"sep=(.)(?=[\r\n])", text):  # Excel's own first line
        text, separator = text[hint.end() :], separator or hint[1]
    used = separator or _detected(text, usual, columns)
    lines = _records(text, used, name, quoted=False)
    if not lines:
        raise InputError(f"{name} is empty: give a header and rows")
    if '"' not in text:
        return _grid(lines, used, name, "")
    try:
        records = _records(text, used, name, quoted=True)
    except InputError:
        if not _are_equal(lines):
            raise
        return _grid(lines, used, name, ", quotation marks kept")
    is_joined = used == "\t" and len(records) < len(lines) and _are_equal(lines)
    # Otherwise joined lines would produce values that are no labels.
    if is_joined and len(_values(lines, label)) <= len(_values(records, label)):
        return _grid(lines, used, name, ", quotation marks kept")
    if swallowed := _swallowed(text, records, used, label):
        raise InputError(
            f"{name} line {swallowed}: a quotation mark opens a cell that runs over the next lines "
            "and contains what looks like rows of their own: double the quotation marks inside "
            "cells, or save the table as JSONL or Parquet"
        )
    breaks = len(lines) - len(records)
    return _grid(records, used, name, f", {breaks:,} line breaks inside cells" if breaks else "")


def orange_grid(text: str, name: str) -> Grid | None:
    """Return the rows of Orange's format, or None for another table with tabs.

    Its second line contains the types, its third the roles and attributes such as `include=True`;
    quotation marks are letters.
    """
    kinds = [line.split("\t") for line in text.splitlines()[:3]]
    if len(kinds) < 3 or not set(kinds[1]) <= _ORANGE_TYPES:
        return None
    flags = {flag for cell in kinds[2] for flag in cell.split(" ") if "=" not in flag}
    if not flags <= _ORANGE_ROLES:
        return None
    header, _, rest = text.split("\n", 2)
    body = rest.partition("\n")[2]
    return _grid(_records(f"{header}\n{body}", "\t", name, quoted=False), "\t", name, "")


def _detected(text: str, usual: str, columns: Sequence[str]) -> str:
    """Return the separator whose header has the required columns, or else the most fields."""

    def fitness(separator: str) -> tuple[int, int, bool]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = next((fields for fields in reader if any(fields)), [])
        names = {name.strip() for name in header}
        return sum(column in names for column in columns), len(header), separator == usual

    return max((usual, *(s for s in _SEPARATORS if s != usual)), key=fitness)


def _records(text: str, separator: str, name: str, *, quoted: bool) -> list[tuple[int, list[str]]]:
    """Return (number of the last line, fields) of each row that is not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    records = []
    try:
        for fields in reader:
            if any(fields):
                records.append((reader.line_num, fields))
    except csv.Error as error:
        raise InputError(
            f"{name} line {reader.line_num}: a quotation mark opens or closes a cell in the wrong "
            f"place ({error}); double the quotation marks inside cells"
        ) from error
    return records


def _values(records: Sequence[tuple[int, list[str]]], column: str | None) -> set[str]:
    """Return the distinct values of a column; empty if the header lacks it."""
    header = [field.strip() for field in records[0][1]]
    place = header.index(column) if column in header else len(header)
    return {fields[place].strip() for _, fields in records[1:] if len(fields) > place}


def _are_equal(records: Sequence[tuple[int, list[str]]]) -> bool:
    return len({len(fields) for _, fields in records}) == 1


def _swallowed(
    text: str, records: Sequence[tuple[int, list[str]]], separator: str, label: str | None
) -> int | None:
    """Return the line of a cell that contains lines which look like labelled rows."""
    header = [field.strip() for field in records[0][1]]
    if label not in header:
        return None
    place, width = header.index(label), len(header)
    starts = [1, *(last + 1 for last, _ in records)]
    known, spread = set(), []
    for start, (last, fields) in zip(starts, records, strict=False):
        if start == last and len(fields) == width:
            known.add(fields[place].strip())
        if any(_spans_lines(field) for field in fields):
            spread.append((start, last, fields))
    lines = list(io.StringIO(text, newline="")) if spread else []
    for first, last, fields in spread:
        cells = [number for number, field in enumerate(fields) if _spans_lines(field)]
        # The first line may start with this row's own label, and the last may end with it.
        begin = first if place >= cells[0] else first + 1
        end = last if place <= cells[-1] else last - 1
        for line in lines[begin - 1 : end]:
            parts = line.rstrip("\r\n").split(separator)
            if len(parts) == width and parts[place].strip() in known:
                return first
    return None


def _spans_lines(field: str) -> bool:
    return "\n" in field or "\r" in field


def _grid(records: Sequence[tuple[int, list[str]]], separator: str, name: str, more: str) -> Grid:
    header = [field.strip() for field in records[0][1]]
    for line, fields in records[1:]:
        if len(fields) != len(header):
            raise InputError(
                f"{name} line {line} has {len(fields)} fields, the header has {len(header)} "
                f"({', '.join(header)[:200]}), separated by {shown(separator)}: put quotation "
                "marks around a cell that holds the separator, and name every column in the header"
            )
    return Grid(
        header=header,
        rows=[fields for _, fields in records[1:]],
        summary=f"separated by {shown(separator)}{more}",
    )


def shown(separator: str) -> str:
    """Return a separator's name for messages."""
    return _SEPARATORS.get(separator, repr(separator))
