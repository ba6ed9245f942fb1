"""Every source gives the same rows, complete; other files are refused with their real type."""

import dataclasses
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study import assets
from lowrank_study.config.run import compose
from lowrank_study.data.reading import Rows, as_texts, read_splits
from lowrank_study.errors import InputError
from lowrank_study.tasks import Task


def task_of(source: Path, *overrides: str) -> Task:
    return compose("task=file", f"task.source={source}", *overrides).task


def read(path: Path, content: str | bytes, *overrides: str) -> Rows:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return rows_of(task_of(path, *overrides))


def rows_of(task: Task) -> Rows:
    return read_splits(task, label_column="label")["train"]


def zipped(*members: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for member in members:
            archive.writestr(member, "x")
    return made.getvalue()


def test_what_was_read_is_reported(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", "text;label\nschön;up\n".encode("cp1252"))
    assert rows.summary == (
        "a.csv: 1 rows read, not UTF-8, assumed to be Windows-1252 (as in 'schön'), "
        "separated by semicolons"
    )
    named = read(
        tmp_path / "b.csv", "text;label\nдень;up\n".encode("cp1251"), "task.encoding=cp1251"
    )
    assert named.frame["text"].tolist() == ["день"]
    assert read(
        tmp_path / "c.csv", "text;label\na;b\n", "task.separator=semicolon"
    ).frame.shape == (
        1,
        2,
    )


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.csv{suffix}"
    frame = pd.DataFrame({"text": ["one", "two"], "label": ["up", "down"]})
    if suffix == ".zst":
        import pyarrow as pa

        content = frame.to_csv(index=False).encode()
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        frame.to_csv(path, index=False)
    assert rows_of(task_of(path)).frame.to_dict("list") == frame.to_dict("list")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="can't be read"):
        rows_of(task_of(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel workbook: .*CSV UTF-8"),
        ("a.csv", zipped("xl/workbook.xml"), "Excel workbook: .*CSV UTF-8"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "Excel workbook: .*CSV UTF-8"),
        ("a.csv", zipped("content.xml"), "OpenDocument"),
        ("a.csv", zipped("a.csv"), "zip archive: unpack"),
        ("a.docx", zipped("word/document.xml"), "Word document: save it as plain text"),
        ("a.pdf", b"%PDF-1.7", "a PDF: give a table, or its text"),
        ("a.csv", b"\x1f\x8b\x08\0", r"compressed by gzip: .*\.gz"),
        ("a.csv", b"PAR1\0\0", r"Parquet file: .*\.parquet"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.csv", b"<!DOCTYPE html><p>", "web page"),
        ("a.txt", b"text,label\n", r"suffix '\.txt' is none of \.csv"),
        ("a.xlsx", b"no workbook", r"suffix '\.xlsx' is none of .*CSV UTF-8"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\xef\xbb\xbf\n", "is empty"),
        ("a.json", b"", "is empty"),
        ("a.jsonl", b'{"text": "a", "label": 0}\n{"text": \n', "line 2 can't be read as .jsonl"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 holds a list: give an object"),
        ("a.jsonl", b'{"text": "a", "label": 1, "label": 2}\n', "the key 'label' twice"),
        ("a.json", b'{"text": "a", "label": 1}', "holds an object; give a list of objects"),
        ("a.json", b"7", "holds the value 7"),
        ("a.csv", b"text,text,label\na,b,up\n", r"text_columns='text': a\.csv has 2 columns"),
        (
            "a.csv",
            b"text,lable\na,b\n",
            "label_column='label' is not a column of a.csv.* text, lable",
        ),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_by_its_type(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read(tmp_path / name, content)
    assert "\n" not in str(refused.value)


NULLED = [{"text": "a", "label": 0}, {"text": "b", "label": None}, {"text": "c", "label": 1}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.json", "a.parquet"])
def test_a_null_among_whole_numbers_leaves_them_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    match name:
        case "a.jsonl":
            path.write_text("\n".join(map(json.dumps, NULLED)))
        case "a.json":
            path.write_text(json.dumps(NULLED))
        case "b.json":
            path.write_text(pd.DataFrame(NULLED).astype({"label": "Int64"}).to_json())
        case "a.parquet":
            pd.DataFrame(NULLED).astype({"label": "Int64"}).to_parquet(path)
    frame = rows_of(task_of(path)).frame
    assert as_texts(frame["label"], "label", name).tolist() == ["0", None, "1"]
    assert frame["text"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_a_nested_value_is_refused_with_its_row(value: object, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "up"}, {"text": value, "label": "up"}]
    found = read(tmp_path / "a.json", json.dumps(rows)).frame
    with pytest.raises(InputError, match=r"a\.json row 2: column 'text' holds .*a.*: give one"):
        as_texts(found["text"], "text", "a.json")


def test_a_column_named_like_a_date_is_text(tmp_path: Path) -> None:
    rows = [{"created_at": "2020-01-01", "label": "1"}]
    found = read(tmp_path / "a.json", json.dumps(rows), "task.text_columns=[created_at]")
    assert found.frame["created_at"].tolist() == ["2020-01-01"]


def test_a_file_that_is_edited_after_it_was_configured_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\ngood,up\n")
    task = task_of(path)
    path.write_text("text,label\nevil,up\n")
    with pytest.raises(InputError, match=r"a\.csv has changed .* was expected, .* was found"):
        rows_of(task)


def test_a_file_that_is_edited_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\ngood,up\n")
    task = task_of(path)
    plain: Callable[[Path], bytes] = Path.read_bytes

    def edited(self: Path) -> bytes:
        content = plain(self)
        path.write_text("text,label\nevil,up\n")
        return content

    monkeypatch.setattr(Path, "read_bytes", edited)
    with pytest.raises(InputError, match="has changed"):
        rows_of(task)


def test_a_setting_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.separator=';': a\.json has no separator"):
        read(tmp_path / "a.json", '[{"text": "a", "label": 1}]', "task.separator=semicolon")


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    found = read(tmp_path / "a.json", r'[{"text": "a\ud800", "label": 1}]').frame
    with pytest.raises(InputError, match="row 1: column 'text' holds half a character"):
        as_texts(found["text"], "text", "a.json")


def test_a_former_index_is_read_as_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}).set_index("text").to_parquet(path)
    assert rows_of(task_of(path)).frame["text"].tolist() == ["a", "b"]


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"tëxt {n}" for n in range(30)], "label": ["a", "b"] * 15})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    generator = random.Random(0)
    task = task_of(tmp_path / "a.parquet")
    for name in ("a.parquet", "a.csv.gz"):
        content = (tmp_path / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(5):
                damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            (tmp_path / name).write_bytes(damaged)
            source = assets.local(str(tmp_path / name))
            try:
                rows_of(dataclasses.replace(task, source=source))
            except InputError as error:
                refused = str(error)
                assert "\n" not in refused
