"""Check what a sweep's models forgot against the models as a user loads them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowrank_study.answers.forgetting import (
    forgetting_table,
    measure_forgetting,
    read_request,
)
from lowrank_study.config.run import compose, composed
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.reporting.sweep_report import report_sweep
from lowrank_study.results import forgetting_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.sweeps.sweep import sweep

Overrides = Callable[..., list[str]]


def other_texts(path: Path) -> Path:
    """Write documents whose words come in another order than in the task."""
    rows = [{"text": f"word{n} word{n + 7} word{n + 14}"} for n in range(25)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(results: Path, texts: Path, **changes: Any) -> Any:
    config = composed(
        "measure_forgetting",
        *("task=texts", f"task.source={texts}", "task.validation_size=5", "task.test_size=10"),
    )
    wanted = {"sweep": "mine", "results": str(results), "device": "cpu", "launcher": "inline"}
    return read_request(config | wanted | changes)


@pytest.fixture
def runs(causal_overrides: Overrides, tmp_path: Path) -> list[TrainedRun]:
    specs = [
        compose(*causal_overrides(), *method, f"seed={seed}")
        for method in (["method=full"], ["method=lora_all_linear", "method.rank=2"])
        for seed in (0, 1)
    ]
    return sweep(specs, name="mine", results=tmp_path, question="Is anything forgotten?")


def bits_of(model: torch.nn.Module, tokenizer: Any, text: str) -> float:
    """Return the bits of a document, from transformers' own loss."""
    start = tokenizer.bos_token_id or tokenizer.eos_token_id
    ids = [start, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    tokens = torch.tensor([ids])
    with torch.no_grad():
        loss = model.eval()(tokens, labels=tokens).loss
    return float(loss) * (len(ids) - 1) / math.log(2)


def test_losses_are_those_of_the_models_as_a_user_loads_them(
    runs: list[TrainedRun], tmp_path: Path
) -> None:
    texts = other_texts(tmp_path / "others.jsonl")
    measure_forgetting(request(tmp_path, texts))
    folder = model_folder(runs[0].spec.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    test = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    for run in runs:
        if run.spec.method.is_adapter:
            base = AutoModelForCausalLM.from_pretrained(folder)
            model = PeftModel.from_pretrained(base, run.checkpoint)
        else:
            model = AutoModelForCausalLM.from_pretrained(run.checkpoint)
        expected = {round(bits_of(model, tokenizer, text), 3) for text in test}
        stored = pd.read_parquet(forgetting_file(tmp_path, run.spec.run_id))
        found = {round(loss / math.log(2), 3) for loss in stored["loss"]}
        assert len(stored) == 10
        assert found <= expected


def test_changes_are_relative_to_the_base_model_and_to_full_fine_tuning(
    runs: list[TrainedRun], tmp_path: Path
) -> None:
    assert forgetting_table(runs, tmp_path) is None
    measure_forgetting(request(tmp_path, other_texts(tmp_path / "others.jsonl")))
    table = forgetting_table(runs, tmp_path)
    assert table is not None
    of = {name: pd.read_parquet(file) for name, file in files_of(runs, tmp_path).items()}

    def level(*names: str) -> float:
        parts = [of[name]["loss"].sum() / of[name]["bytes"].sum() for name in names]
        return float(np.mean(parts)) / math.log(2)

    ids = {m: [r.spec.run_id for r in runs if r.spec.method.label == m] for m in ("full", "lora")}
    rows = table.set_index("method")
    for method in ("full", "lora"):
        row = rows.loc[method]
        assert row["bits_per_byte"] == pytest.approx(level(*ids[method]))
        assert row["base_bits_per_byte"] == pytest.approx(level("base-tiny"))
        assert row["change"] == pytest.approx(level(*ids[method]) - level("base-tiny"))
        assert row["change_low_95"] < row["change"] < row["change_high_95"]
    assert math.isnan(rows.loc["full", "to_full"])
    difference = level(*ids["lora"]) - level(*ids["full"])
    assert rows.loc["lora", "to_full"] == pytest.approx(difference)
    page, _ = report_sweep("mine", results=tmp_path)
    assert "What was forgotten?" in page.read_text()


def files_of(runs: list[TrainedRun], results: Path) -> dict[str, Path]:
    names = ["base-tiny", *(run.spec.run_id for run in runs)]
    return {name: forgetting_file(results, name) for name in names}


def test_models_are_measured_once_for_each_texts(runs: list[TrainedRun], tmp_path: Path) -> None:
    texts = other_texts(tmp_path / "others.jsonl")
    measure_forgetting(request(tmp_path, texts))
    files = files_of(runs, tmp_path).values()
    before = [file.stat().st_mtime_ns for file in files]
    measure_forgetting(request(tmp_path, texts))
    assert [file.stat().st_mtime_ns for file in files] == before
    further = tmp_path / "further.jsonl"
    further.write_text(texts.read_text().replace("word7 ", "word8 "))
    measure_forgetting(request(tmp_path, further))
    assert all(file.stat().st_mtime_ns > time for file, time in zip(files, before, strict=True))


def test_only_language_models_and_whole_texts_are_measured(
    runs: list[TrainedRun], tmp_path: Path, tiny_overrides: list[str]
) -> None:
    texts = other_texts(tmp_path / "others.jsonl")
    with pytest.raises(InputError, match="forgetting is measured on whole texts"):
        read_request(composed("measure_forgetting", "task=rotten_tomatoes"))
    sweep([compose(*tiny_overrides)], name="classifier", results=tmp_path, question="Which?")
    with pytest.raises(InputError, match="no done run of a language model"):
        measure_forgetting(request(tmp_path, texts, sweep="classifier"))
