"""A run's name changes if its numbers do, and only then."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lowrank_study.config.run import compose
from lowrank_study.methods.lora import Lora
from lowrank_study.methods.peft import PeftMethod
from lowrank_study.spec import LocalPath, RunSpec, from_mapping, path_matches, to_mapping

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


def test_a_record_without_newer_fields_is_the_same_run() -> None:
    spec = compose("method.rank=8")
    mapping = to_mapping(spec)
    del mapping["train"]["head_learning_rate"], mapping["task"]["encoding"]
    del mapping["task"]["separator"], mapping["task"]["test_set_column"]
    for name in ("learning_rate_ratio", "init_batches", "stable_gamma", "names_scaling"):
        del mapping["method"][name]
    del mapping["method"]["rank_pattern"], mapping["method"]["alpha_pattern"]
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


def test_only_a_given_encoding_or_separator_changes_the_run_id(
    tiny_overrides: list[str],
) -> None:
    plain = compose(*tiny_overrides)
    named = [
        compose(*tiny_overrides, override)
        for override in ("task.encoding=cp1252", "task.separator=semicolon")
    ]
    assert len({spec.run_id for spec in [plain, *named]}) == 3
    assert all(from_mapping(to_mapping(spec)) == spec for spec in [plain, *named])


def adapter_of(kind: str, options: dict[str, Any]) -> RunSpec:
    spec = compose("method=peft", f"method.peft_type={kind}", "trainer.precision=fp32")
    assert isinstance(spec.method, PeftMethod)
    return dataclasses.replace(spec, method=dataclasses.replace(spec.method, options=options))


@pytest.mark.parametrize(
    ("kind", "options", "stem", "name", "rank"),
    [
        ("LORA", {"r": 4, "use_dora": True}, "peft_dora_r4", "peft_dora", 4),
        ("LORA", {"init_lora_weights": "pissa"}, "peft_pissa_r8", "peft_pissa", 8),
        (
            "LORA",
            {"use_rslora": True, "use_dora": True},
            "peft_dora_rslora_r8",
            "peft_dora_rslora",
            8,
        ),
        ("LORA", {"r": 2}, "peft_lora_r2", "peft_lora", 2),
        ("LORA", {"bias": "all"}, "peft_lora_r8", 'peft_lora (bias="all")', 8),
        (
            "LORA",
            {"r": 2, "rank_pattern": {"query": 4}},
            "peft_lora",
            'peft_lora (r=2, rank_pattern={"query": 4})',
            None,
        ),
        ("LOHA", {"r": 2, "alpha": 4}, "loha", "loha (alpha=4, r=2)", None),
    ],
)
def test_methods_that_differ_have_names_that_differ(
    kind: str, options: dict[str, Any], stem: str, name: str, rank: int | None
) -> None:
    spec = adapter_of(kind, options)
    assert spec.run_id.startswith(f"rotten_tomatoes-minilm-{stem}_attention_qv-lr0.002-s0-")
    assert spec.method.label == name
    assert spec.method.adapter_rank == rank


def test_scaling_of_a_lora_by_peft() -> None:
    method = adapter_of("LORA", {"r": 4, "lora_alpha": 6, "use_rslora": True}).method
    assert method.lora is not None
    assert method.lora.scaling == 3.0


def test_valid_older_names_of_adapters_stay() -> None:
    names = {kind: adapter_of(kind, {}).run_id for kind in ("IA3", "LOHA")}
    assert names == {
        "IA3": "rotten_tomatoes-minilm-ia3_attention_qv-lr0.002-s0-51b5603f",
        "LOHA": "rotten_tomatoes-minilm-loha_attention_qv-lr0.002-s0-2687b68b",
    }
