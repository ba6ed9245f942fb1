"""Files become splits that are right, paired and cached; bad ones are refused by name."""

import bz2
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.assets import cache_folder
from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.errors import InputError
from lowrank_study.tasks import Task

ROWS = pd.DataFrame(
    {
        "text": [f"word{n % 40} word{n // 40} {'good' if n % 2 else 'bad'}" for n in range(100)],
        "label": ["up" if n % 2 else "down" for n in range(100)],
        "group": [f"g{n // 5}" for n in range(100)],
    }
)


def task_of(source: Path, *overrides: str) -> Task:
    sizes = ["task.validation_size=10", "task.test_size=20"]
    return compose("task=file", f"task.source={source}", *sizes, *overrides).task


def write(path: Path, frame: pd.DataFrame) -> Path:
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".bz2":
            path.write_bytes(bz2.compress(frame.to_csv(index=False).encode()))
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".json":
            frame.to_json(path, orient="records")
        case ".parquet":
            frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.bz2", "a.jsonl", "a.json", "a.parquet"])
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = task_of(write(tmp_path / name, ROWS)).split_rows()
    frames, labels = rows.frames, rows.labels
    assert labels == ("down", "up")
    assert [len(frames[split]) for split in ("train", "validation", "test")] == [70, 10, 20]
    for frame in frames.values():
        assert all(
            ("good" in t) == (n == 1) for t, n in zip(frame["text"], frame["label"], strict=True)
        )


def test_splits_are_disjoint_and_depend_on_the_split_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS.assign(text=[f"t{n}" for n in range(100)]))
    one = task_of(path).split_rows().frames
    again = task_of(path).split_rows().frames
    other = task_of(path, "task.split_seed=1").split_rows().frames
    texts = [set(frame["text"]) for frame in one.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 100
    assert all(one[name].equals(again[name]) for name in one)
    assert set(other["test"]["text"]) != set(one["test"]["text"])


def test_a_group_stays_in_one_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    frames = task_of(path, "task.group_column=group", "task.train_size=30").split_rows().frames
    groups = {name: set(frame["group"]) for name, frame in frames.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    assert [len(frames[name]) for name in ("train", "validation", "test")] == [30, 10, 20]


def test_published_splits_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:60])
    write(tmp_path / "test.csv", ROWS[60:].assign(text=[f"word{n} test" for n in range(40)]))
    frames = task_of(tmp_path, "task.train=train.csv", "task.test=test.csv").split_rows().frames
    assert frames["test"]["text"].str.contains("test").all()
    assert not frames["train"]["text"].str.contains("test").any()
    assert [len(frames[name]) for name in ("train", "validation", "test")] == [50, 10, 20]


def test_rows_with_other_labels_are_dropped(tmp_path: Path) -> None:
    frame = ROWS.assign(label=["plot" if n % 3 == 0 else v for n, v in enumerate(ROWS["label"])])
    path = write(tmp_path / "a.csv", frame)
    rows = task_of(path, "task.labels=[up,down]").split_rows()
    frames, labels = rows.frames, rows.labels
    assert labels == ("up", "down")
    assert sum(len(f) for f in frames.values()) == 66
    assert all(
        ("good" in t) == (n == 0)
        for f in frames.values()
        for t, n in zip(f["text"], f["label"], strict=True)
    )


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = ROWS.copy()
    frame.loc[[3, 5], "text"] = [None, " "]
    frame.loc[4, "label"] = ""
    rows = task_of(write(tmp_path / "a.csv", frame)).split_rows()
    assert sum(len(f) for f in rows.frames.values()) == 97
    assert rows.account.lines[:2] == [
        "left out: 2 of 100 rows of a.csv (2 %): 'text' is empty (first in row 4)",
        "left out: 1 of 100 rows of a.csv (1 %): 'label' is empty (first in row 5)",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task.text_columns=[body]"],
            "'body' is not a column of a.csv. Columns: text, label, group",
        ),
        (
            ["task.label_column=stars"],
            "label_column='stars' is not a column of a.csv. Columns: text, label, group",
        ),
        (["task.labels=[up,sideways]"], "no train row has the label 'sideways'.*down, up"),
        (["task.validation_size=90"], "leave a split with no rows; set smaller sizes, as in task"),
        (["task.train=other.csv"], "no file 'other.csv'"),
    ],
)
def test_bad_tables_are_refused_by_name(
    overrides: list[str], message: str, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    source = tmp_path if "task.train=other.csv" in overrides else path
    with pytest.raises(InputError, match=message):
        load_splits(task_of(source, *overrides), tiny_model("bert"))


def test_a_label_that_only_test_has_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.csv", ROWS[:10].assign(label="sideways"))
    task = task_of(tmp_path, "task.train=train.csv", "task.test=test.csv")
    with pytest.raises(InputError, match=r"label 'sideways' occurs in test but not.* down, up"):
        task.split_rows()


def test_a_task_with_one_label_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS.assign(label="up"))
    with pytest.raises(InputError, match="1 label"):
        task_of(path).split_rows()


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b""), ("a.parquet", b"no"), ("a.jsonl", b"{")]
)
def test_unreadable_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="can't be read as"):
        task_of(tmp_path / name).split_rows()


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"'\.xlsx' is none of \.csv"):
        task_of(tmp_path / "a.xlsx").split_rows()


def test_tokens_are_those_of_the_tokenizer_and_are_cached(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    from transformers import AutoTokenizer

    task = task_of(write(tmp_path / "a.csv", ROWS))
    folder = tiny_model("bert")
    splits = load_splits(task, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    frames = task.split_rows().frames
    for row, text in enumerate(frames["test"]["text"]):
        assert splits.test.tokens(row).tolist() == tokenizer(text)["input_ids"]
    cached = sorted((cache_folder() / "tokens").glob("*.npz"), key=lambda p: p.stat().st_mtime)[-1]
    again = load_splits(task, folder)
    assert again.sha256 == splits.sha256
    cached.write_bytes(cached.read_bytes()[:-200] + b"\0" * 200)
    mended = load_splits(task, folder)
    assert mended.sha256 == splits.sha256
    assert np.array_equal(mended.train.ids, splits.train.ids)


def test_pairs_have_their_segments(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    frame = ROWS.assign(other="word7 word8 fine")
    path = write(tmp_path / "a.csv", frame)
    splits = load_splits(task_of(path, "task.text_columns=[text,other]"), tiny_model("bert"))
    train = splits.train
    types = train.types[train.offsets[0] : train.offsets[1]]
    assert types.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_long_texts_are_truncated(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    frame = ROWS.assign(text=[f"{text} word1" * 15 for text in ROWS["text"]])
    path = write(tmp_path / "a.csv", frame)
    splits = load_splits(task_of(path, "task.max_length=12"), tiny_model("bert"))
    assert set(splits.train.lengths) == {12}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "labels", "sizes"),
    [
        ("rotten_tomatoes", 2, (2000, 250, 1000)),
        ("reuters_r8", 8, (2000, 500, 1000)),
        ("reuters_r52", 52, (2000, 500, 1000)),
        ("newsgroups", 20, (2000, 500, 1000)),
    ],
)
def test_the_pinned_data(
    task: str,
    labels: int,
    sizes: tuple[int, int, int],
    real_cache: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = compose(f"task={task}").task.split_rows()
    frames, names = rows.frames, rows.labels
    assert len(names) == labels
    assert tuple(len(frames[name]) for name in ("train", "validation", "test")) == sizes
    if task == "rotten_tomatoes":
        films = {name: set(frame["group"]) for name, frame in frames.items()}
        assert not films["train"] & films["test"]
        assert len(films["test"]) > 140


def cached_files() -> list[Path]:
    return sorted((cache_folder() / "tokens").glob("*.npz"))


def test_the_cache_keeps_what_was_read_and_left_out(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    frame = ROWS.copy()
    frame.loc[4, "label"] = ""
    task = task_of(write(tmp_path / "a.csv", frame))
    cold, warm = (load_splits(task, tiny_model("bert")).account for _ in range(2))
    assert warm == cold
    assert warm.lines[0].startswith("left out: 1 of 100 rows of a.csv (1 %)")


def test_messages_on_a_renamed_copy_use_its_name(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    first = write(tmp_path / "a.csv", ROWS)
    load_splits(task_of(first), tiny_model("bert"))
    for name in ("b.csv", "a.txt"):
        (tmp_path / name).write_bytes(first.read_bytes())
    account = load_splits(task_of(tmp_path / "b.csv"), tiny_model("bert")).account
    assert account.lines[0].startswith("b.csv: 100 rows read")
    with pytest.raises(InputError, match=r"the suffix '\.txt' is none of"):
        load_splits(task_of(tmp_path / "a.txt"), tiny_model("bert"))


def test_swapped_and_damaged_caches_are_made_again(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWRANK_STUDY_CACHE", str(tmp_path / "cache"))
    tasks = [task_of(write(tmp_path / "a.csv", ROWS), f"task.split_seed={n}") for n in range(2)]
    hashes = [load_splits(task, tiny_model("bert")).sha256 for task in tasks]
    one, two = cached_files()
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    assert [load_splits(task, tiny_model("bert")).sha256 for task in tasks] == hashes
    assert (one.read_bytes(), two.read_bytes()) == contents
    damaged = bytearray(contents[0])
    damaged[-300] ^= 1
    one.write_bytes(damaged)
    assert [load_splits(task, tiny_model("bert")).sha256 for task in tasks] == hashes


def test_an_edited_file_is_refused_even_if_its_tokens_are_cached(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    task = task_of(write(tmp_path / "a.csv", ROWS))
    load_splits(task, tiny_model("bert"))
    write(tmp_path / "a.csv", ROWS[:50])
    with pytest.raises(InputError, match=r"a\.csv has changed since"):
        load_splits(task, tiny_model("bert"))


def test_the_cache_key_covers_the_file(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    first = write(tmp_path / "a.csv", ROWS)
    before = load_splits(task_of(first), tiny_model("bert"))
    changed = ROWS.copy()
    changed.loc[0, "text"] = "word9 word9 word9 bad"
    after = load_splits(task_of(write(tmp_path / "b.csv", changed)), tiny_model("bert"))
    assert before.sha256 != after.sha256
    assert json.dumps(before.labels) == json.dumps(after.labels)
