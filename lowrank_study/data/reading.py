"""Read the rows of the splits from a task's source, unchanged, and report what was read."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lowrank_study import assets
from lowrank_study.data.gsm_symbolic.problems import rows_of
from lowrank_study.data.text_files import Grid, decoded, grid, orange_grid
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut
from lowrank_study.spec import GsmSymbolic, HubRepo

if TYPE_CHECKING:
    from lowrank_study.tasks import Task

_OPENERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet")
_EXCEL = "save its sheet as CSV UTF-8 (in Excel: File, Save As, CSV UTF-8), and give that file"
_FOREIGN = (
    (b"\xd0\xcf\x11\xe0", f"an Excel workbook: {_EXCEL}"),
    (b"\x1f\x8b", "compressed by gzip: rename it so that it ends in .gz"),
    (b"BZh", "compressed by bzip2: rename it so that it ends in .bz2"),
    (b"\xfd7zXZ", "compressed by xz: rename it so that it ends in .xz"),
    (b"PAR1", "a Parquet file: rename it so that it ends in .parquet"),
    (b"%PDF", "a PDF: give a table, or its text as UTF-8"),
    (b"version https://git-lfs", "a pointer of git-lfs: fetch the file with git lfs pull"),
    (b"<!DOCTYPE", "a web page: download the table itself"),
    (b"<html", "a web page: download the table itself"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of one file or hub split, with unchanged values."""

    frame: pd.DataFrame
    of: str
    """The file's name, or the hub's id and split."""
    summary: str
    """A message on how many rows were read, and how."""
    left_out: tuple[LeftOut, ...]
    """Parts of the source that gave no rows."""


def read_splits(task: "Task", *, label_column: str | None) -> dict[str, Rows]:
    """Read the rows of the splits for which the task names a file.

    Args:
        label_column: A column of few distinct values, if there is one; it reveals rows hidden in
            an open quotation mark.

    Raises:
        InputError: A file can't be read, has changed since it was hashed, or lacks a column.
    """
    files = {"train": task.train, "validation": task.validation, "test": task.test}
    return {
        split: _read_rows(task, file, label_column)
        for split, file in files.items()
        if file is not None
    }


def _read_rows(task: "Task", file: str, label: str | None) -> Rows:
    """Read one split's rows; a local file is verified before and after."""
    left_out: tuple[LeftOut, ...] = ()
    if isinstance(task.source, GsmSymbolic):
        of = f"{task.source.language} {file}"
        frame, how, left_out = rows_of(task.source, file)
    elif isinstance(task.source, HubRepo):
        of = f"{task.source.repo_id}/{file}"
        frame, how = _read_hub(task.source, file), "from the hub"
    else:
        path = assets.fetch(task.source, task.files)
        if task.reads_files and (texts := _texts_of(path, file)):
            of = file or path.name
            frame, how = _read_texts(texts, path, task), "one in each file"
        else:
            path = path / file if file else path
            of = path.name
            frame, how = _read_file(path, task, label)
        assets.fetch(task.source, task.files)
    _check_columns(task.read_columns, of, [str(column) for column in frame.columns])
    return Rows(
        frame=frame, of=of, summary=f"{of}: {len(frame):,} rows read, {how}", left_out=left_out
    )


def _texts_of(path: Path, file: str) -> list[Path]:
    """Return the files that are texts of their own; none if a table is meant."""
    files = [path / name for name in assets.files_of(path, file)] if file else [path]
    tables = [each for each in files if _table_suffix(each) in _SUFFIXES]
    if tables and len(files) > 1:
        raise InputError(
            f"task.train={file!r} matches the table {tables[0]}: name one table, or a pattern that "
            "matches texts only, as in '**/*.txt'"
        )
    return [] if tables else files


def _read_texts(files: Sequence[Path], folder: Path, task: "Task") -> pd.DataFrame:
    """Read files, each as one text, with the columns text, file and folder."""
    rows = []
    for path in files:
        content = path.read_bytes()
        _refuse_foreign(path, content)
        name = path.relative_to(folder) if path != folder else Path(path.name)
        text, _ = decoded(content, str(path), task.encoding)
        rows.append({"text": text, "file": str(name), "folder": str(name.parent)})
    return pd.DataFrame(rows, dtype=object)


def _check_columns(columns: Mapping[str, str], of: str, there: Sequence[str]) -> None:
    for name, setting in columns.items():
        if name not in there:
            raise InputError(
                f"{setting}={name!r} is not a column of {of}. Columns: "
                f"{', '.join(there)[:500] or 'none'}"
            )
        if there.count(name) > 1:
            raise InputError(
                f"{setting}={name!r}: {of} has {there.count(name)} columns of this name; rename "
                "all but one"
            )


def _read_hub(source: HubRepo, split: str) -> pd.DataFrame:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.repo_id, source.subset, split=split, revision=source.revision
        )
    except Exception as error:  # the library raises many types without a common base
        raise InputError(assets.why_hub_failed(source, error)) from error
    # Otherwise a null in a column of whole numbers would turn them into floats.
    frame: pd.DataFrame = rows.with_format("arrow")[:].to_pandas(integer_object_nulls=True)
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.ClassLabel):
            names = dict(enumerate(feature.names))
            frame[name] = frame[name].map(names)  # -1, a label that is not public, becomes missing
    return frame


def _read_file(path: Path, task: "Task", label: str | None) -> tuple[pd.DataFrame, str]:
    """Read a table, which may be compressed; return it, and how it was read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = _table_suffix(path)
    try:
        content = path.read_bytes()
        if suffixes and suffixes[-1] in _OPENERS:
            content = _OPENERS[suffixes[-1]](content)
        elif suffixes and suffixes[-1] == ".zst":
            import pyarrow as pa

            content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise InputError(f"{path} can't be read: {_first_line(error)}") from error
    _refuse_foreign(path, content)
    if suffix not in _SUFFIXES:
        remedy = f": {_EXCEL}" if suffix.startswith(".xls") else ""
        raise InputError(f"{path}: the suffix {suffix!r} is none of {', '.join(_SUFFIXES)}{remedy}")
    is_grid = suffix in (".csv", ".tsv", ".tab")
    for setting, value, is_read in (
        ("encoding", task.encoding, suffix != ".parquet"),
        ("separator", task.separator, is_grid),
    ):
        if value is not None and not is_read:
            raise InputError(f"task.{setting}={value!r}: {path.name} has no {setting}; use null")
    if suffix == ".parquet":
        return _read_parquet(path, content), "Parquet"
    text, encoding = decoded(content, path.name, task.encoding)
    if not text.strip():
        raise InputError(f"{path} can't be read as {suffix}: it is empty")
    if is_grid:
        found = _grid_of(text, path.name, suffix, task, label)
        frame = pd.DataFrame(found.rows, columns=found.header, dtype=object)
        return frame, f"{encoding}, {found.summary}"
    records = _json_lines(text, path) if suffix != ".json" else _json_records(text, path)
    return pd.DataFrame(records, dtype=object), f"{encoding}, JSON"


def _grid_of(text: str, name: str, suffix: str, task: "Task", label: str | None) -> Grid:
    if suffix == ".tab" and not task.separator and (found := orange_grid(text, name)):
        return found
    return grid(
        text,
        name,
        separator=task.separator,
        usual="," if suffix == ".csv" else "\t",
        columns=list(task.columns),
        label=label,
    )


def _table_suffix(path: Path) -> str:
    """Return the suffix of a file before it was compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((s for s in reversed(suffixes) if s not in (*_OPENERS, ".zst")), "")


def _refuse_foreign(path: Path, content: bytes) -> None:
    """Refuse a file whose content is not of the type that its suffix says."""
    is_parquet = _table_suffix(path) == ".parquet"
    for magic, what in _FOREIGN:
        if content.startswith(magic) and not (is_parquet and magic == b"PAR1"):
            raise InputError(f"{path} is {what}")
    if content.startswith(b"PK\x03\x04"):
        try:
            members = zipfile.ZipFile(io.BytesIO(content)).namelist()
        except zipfile.BadZipFile:
            members = []
        if any(member.startswith("xl/") for member in members):
            raise InputError(f"{path} is an Excel workbook: {_EXCEL}")
        if "content.xml" in members:
            raise InputError(f"{path} is an OpenDocument sheet: save it as CSV UTF-8")
        if any(member.startswith("word/") for member in members):
            raise InputError(f"{path} is a Word document: save it as plain text in UTF-8")
        raise InputError(f"{path} is a zip archive: unpack it, and give the table in it")


def _read_parquet(path: Path, content: bytes) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        table.validate(full=True)  # otherwise invalid UTF-8 shows only when a value is read
        # pandas' metadata would turn a column into the index.
        frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read as .parquet: {_first_line(error)}") from error
    return frame


def _json_lines(text: str, path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            records.append(_object(_parsed(line, path, number), f"{path} line {number}"))
    return records


def _json_records(text: str, path: Path) -> list[dict[str, Any]]:
    """Read a list of objects, or pandas' layout, an object of columns."""
    parsed = _parsed(text, path, 1)
    if isinstance(parsed, dict) and parsed and all(isinstance(v, dict) for v in parsed.values()):
        rows = list(dict.fromkeys(row for column in parsed.values() for row in column))
        return [{name: column.get(row) for name, column in parsed.items()} for row in rows]
    if not isinstance(parsed, list):
        raise InputError(
            f"{path} can't be read as .json: it holds {_kind(parsed)}; give a list of objects, one "
            "per row"
        )
    return [_object(row, f"{path} row {number}") for number, row in enumerate(parsed, start=1)]


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        place = f" line {line}" if path.suffix != ".json" else ""
        raise InputError(
            f"{path}{place} can't be read as {path.suffix}: {_first_line(error)}"
        ) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {max(names, key=names.count)!r} twice")
    return made


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place} holds {_kind(value)}: give an object, {{column: value}}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), f"the value {value!r}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def as_texts(column: pd.Series, name: str, of: str) -> pd.Series:
    """Return a column's values as texts, and missing ones as None."""
    values = [
        as_text(value, f"{of} row {row}: column {name!r}") for row, value in enumerate(column, 1)
    ]
    return pd.Series(values, column.index, object)


def as_text(value: Any, place: str) -> str | None:
    """Return a value as a text, or None if it is missing; `place` is for messages."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{place} holds half a character (a lone surrogate): repair the file")
        return value or None
    if isinstance(value, list | tuple | dict | set | bytes | np.ndarray):
        raise InputError(
            f"{place} holds {str(value)[:60]}, of type {type(value).__name__}: give one text or "
            "number per row"
        )
    return None if pd.isna(value) else str(value)
