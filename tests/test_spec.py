"""A run's name changes with its numbers, and with nothing else."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from lowrank_study.config import compose
from lowrank_study.spec import LocalPath, Lora, from_mapping, path_matches, to_mapping

NAMES = ["method=full", "method.rank=4", "method=peft method.peft_type=IA3", "task=glue_rte"]


@pytest.mark.parametrize("overrides", NAMES)
def test_round_trip_through_json(overrides: str) -> None:
    spec = compose(*overrides.split())
    again = from_mapping(json.loads(json.dumps(to_mapping(spec))))
    assert again == spec
    assert again.run_id == spec.run_id


def test_run_id_changes_with_what_changes_the_numbers() -> None:
    base = compose("method.rank=8")
    changed = [
        compose("method.rank=4"),
        compose("method.rank=8", "seed=1"),
        compose("method.rank=8", "method.learning_rate=1e-3"),
        compose("method.rank=8", "method.dropout=0.1"),
        compose("method.rank=8", "task.split_seed=1"),
        compose("method.rank=8", "trainer.epochs=2"),
        compose("method.rank=8", "trainer.head_learning_rate=0.1"),
        compose("method.rank=8", "method.target=mlp"),
        compose("method.rank=8", "method.scaling=alpha_over_sqrt_rank"),
        compose("method=full"),
    ]
    assert len({spec.run_id for spec in [base, *changed]}) == len(changed) + 1


def test_run_id_ignores_device_tracker_launcher_and_folders() -> None:
    base = compose("method.rank=8").run_id
    for override in ("device=cpu", "tracker=jsonl", "workers=1", "results=elsewhere", "sweep=x"):
        assert compose("method.rank=8", override).run_id == base


def test_a_record_older_than_some_fields_is_the_same_run() -> None:
    spec = compose("method.rank=8")
    mapping = to_mapping(spec)
    del mapping["train"]["head_learning_rate"], mapping["task"]["encoding"]
    del mapping["task"]["separator"]
    assert from_mapping(mapping) == spec
    canonical = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
    assert spec.run_id.endswith(hashlib.sha256(canonical.encode()).hexdigest()[:8])


def test_run_id_is_a_safe_file_name() -> None:
    spec = compose("method.rank=8", "task.name='../a b'")
    assert spec.run_id == spec.run_id.strip(".")
    assert not set("/ \\") & set(spec.run_id)


def test_a_moved_file_is_the_same_run_and_an_edited_one_another(
    tiny_overrides: list[str], review_file: Path, tmp_path: Path
) -> None:
    here = compose(*tiny_overrides)
    moved = shutil.copy(review_file, tmp_path / "moved.csv")
    there = compose(*tiny_overrides, f"task.source={moved}")
    assert isinstance(there.task.source, LocalPath)
    assert there.task.source != here.task.source
    assert there.run_id == here.run_id
    edited = tmp_path / "edited.csv"
    edited.write_text(review_file.read_text() + "word1 good,up,film0\n")
    assert compose(*tiny_overrides, f"task.source={edited}").run_id != here.run_id


def test_scaling_rules() -> None:
    lora = compose("method.rank=16", "method.alpha=8").method
    assert isinstance(lora, Lora)
    assert lora.scaling == 0.5
    rslora = dataclasses.replace(lora, scaling_rule="alpha_over_sqrt_rank")
    assert rslora.scaling == 2.0


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("bert.encoder.layer.0.output.dense", "*.output.dense", True),
        ("bert.encoder.layer.0.attention.output.dense", "*.output.dense", False),
        ("bert.encoder.layer.11.attention.output.dense", "*.attention.output.dense", True),
        ("model.layers.3.mlp.up_proj", "up_proj", True),
        ("model.layers.3.mlp.up_proj", "p_proj", False),
        ("dense", "output.dense", False),
    ],
)
def test_path_matches(name: str, pattern: str, expected: bool) -> None:
    assert path_matches(name, pattern) is expected


def test_an_encoding_and_a_separator_make_another_run_only_where_they_are_named(
    tiny_overrides: list[str],
) -> None:
    plain = compose(*tiny_overrides)
    named = [
        compose(*tiny_overrides, override)
        for override in ("task.encoding=cp1252", "task.separator=semicolon")
    ]
    assert len({spec.run_id for spec in [plain, *named]}) == 3
    assert all(from_mapping(to_mapping(spec)) == spec for spec in [plain, *named])
