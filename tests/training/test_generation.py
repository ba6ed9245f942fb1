"""Greedy answers equal those of transformers' `generate`, batched or alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lowrank_study.answers.tables import runs_table
from lowrank_study.config.run import compose
from lowrank_study.data.conversations import Turn, longest_prompt
from lowrank_study.data.tokenizer import load_tokenizer
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.methods.layers.linear import adapted_modules, merged
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.effort import Effort
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.fit import fit
from lowrank_study.training.generation import _chosen_rows, cache_bytes, generate
from lowrank_study.training.memory import predict_peak
from lowrank_study.training.models import build_model, check_fits
from lowrank_study.training.tracking import Tracker
from lowrank_study.training.unpadded import stock_forward, unpad
from tests.conftest import WORDS
from tests.tasks.test_generation import spec_of

Overrides = Callable[..., list[str]]
CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18, 19]]


def turns() -> list[Turn]:
    return [Turn(prompt=prompt, response="", end=3) for prompt in PROMPTS]


def model_of(spec: RunSpec, *, spread: float = 0.6) -> nn.Module:
    """Build a model of a run with an update that is not zero and weights that differ in answers."""
    model = build_model(spec, model_folder(spec.model), number_of_labels=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model


def family_spec(overrides: Overrides, family: str, path: Path, *more: str) -> RunSpec:
    def of_family(*_: Any) -> list[str]:
        return overrides(family)

    return spec_of(of_family, path, "method.rank=2", *more)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_predicted_memory_of_keys_and_values_is_that_of_transformers(
    family: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = family_spec(causal_overrides, family, tmp_path / "rows.jsonl")
    assert isinstance(spec.task, Generation)
    model: Any = build_model(spec, model_folder(spec.model), number_of_labels=0)
    splits, rows = splits_of(spec), 8  # of the test split
    tokens = longest_prompt(splits.test) + spec.task.max_new_tokens
    with torch.no_grad():
        kept = model(torch.ones(rows, tokens, dtype=torch.long)).past_key_values
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert cache_bytes(spec.task, splits, model.config) == found
    few = replace(spec.task, generated_examples=2)
    assert cache_bytes(few, splits, model.config) == found / 4
    predicted, of_texts = predict_peak(spec), predict_peak(compose(*causal_overrides(family)))
    assert predicted
    assert of_texts
    weights = sum(4 * module.weight.numel() for _, module in adapted_modules(model))
    assert (predicted.answered, of_texts.answered) == (found + weights, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_gives_the_answers_of_plain_generate(
    family: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = family_spec(causal_overrides, family, tmp_path / "rows.jsonl")
    assert isinstance(spec.task, Generation)
    model, tokenizer = model_of(spec), load_tokenizer(model_folder(spec.model))
    with merged(model):
        plain: Any = AutoModelForCausalLM.from_pretrained(model_folder(spec.model))
        plain.load_state_dict(
            {name.replace(".base.", "."): value for name, value in _plain_state(model).items()}
        )
        expected = []
        for prompt in PROMPTS:
            found = plain.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=spec.task.max_new_tokens,
                pad_token_id=0,
                eos_token_id=3,
            )[0, len(prompt) :].tolist()
            end = found.index(3) if 3 in found else None
            expected.append(tokenizer.decode(found[:end], skip_special_tokens=True))
        unpad(model)
        stop = expected[0].split()[1]
        stopping = replace(spec.task, stop=("absent", stop))
        stopped = [text.partition(stop)[0] for text in expected]
        for prompts in (1, 2, len(PROMPTS)):
            for task, texts in ((spec.task, expected), (stopping, stopped)):
                answers = generate(
                    model, turns(), task=task, tokenizer=tokenizer, device=CPU, prompts=prompts
                )
                assert [answer.text for answer in answers] == texts
    assert len(set(expected)) > 2, "the answers must depend on the prompts"
    assert stopped != expected


def _plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.endswith(("A_RI", "B_OR"))
    }


def test_training_continues_as_before_generation(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = family_spec(causal_overrides, "llama", tmp_path / "rows.jsonl")
    model: Any = model_of(spec)
    unpad(model)
    backbone = model.get_submodule(model.base_model_prefix)
    before, attention = backbone.forward, model.config._attn_implementation
    with stock_forward(model):
        assert backbone.forward != before
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits
        assert logits.shape[:2] == (1, 3)
    assert backbone.forward == before
    assert model.config._attn_implementation == attention
    assert next(adapted_modules(model))


def test_the_settings_of_the_model_do_not_change_greedy_answers(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = family_spec(causal_overrides, "llama", tmp_path / "rows.jsonl")
    assert isinstance(spec.task, Generation)
    model: Any = model_of(spec)
    given = {
        "task": spec.task,
        "tokenizer": load_tokenizer(model_folder(spec.model)),
        "device": CPU,
    }
    expected = generate(model, turns(), **given)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 9.0, 5.0
    assert generate(model, turns(), **given) == expected
    assert model.generation_config is own


def test_forecasts_count_the_tokens_of_answers(causal_overrides: Overrides, tmp_path: Path) -> None:
    few, many = (
        family_spec(causal_overrides, "llama", tmp_path / "rows.jsonl", f"task.max_new_tokens={n}")
        for n in (10, 30)
    )
    _, operations = Effort().a_token(few)
    assert Effort().of(many) - Effort().of(few) == operations * 8 * 20


def test_answers_that_exceed_the_positions_are_refused(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = family_spec(causal_overrides, "gpt2", tmp_path / "rows.jsonl", "task.max_new_tokens=62")
    with pytest.raises(InputError, match="has positions for 64: set it to at most 60"):
        check_fits(spec)


def test_chosen_rows_are_evenly_spaced_in_each_set() -> None:
    assert _chosen_rows([4, 2], None).tolist() == [0, 1, 2, 3, 4, 5]
    assert _chosen_rows([10, 2], 5).tolist() == [0, 2, 4, 6, 8, 10, 11]
    assert _chosen_rows([7], 3).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "method",
    [
        ("method=lora_all_linear", "method.rank=8", "method.learning_rate=1e-2"),
        ("method=full", "method.learning_rate=1e-2"),
    ],
    ids=["lora", "full"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_memorised_text_is_generated(
    method: tuple[str, ...], precision: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    text = " ".join(WORDS[n] for n in (4, 9, 2, 2, 30, 17))
    spec = spec_of(
        causal_overrides,
        tmp_path / "rows.jsonl",
        *method,
        "trainer.epochs=100",
        "trainer.batch_size=4",
        f"trainer.precision={precision}",
        responses=[text],
    )
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    assert result.test is not None
    assert set(result.test.columns["answer"]) == {text}
    assert result.test.columns["answer_score"].tolist() == [1.0] * 8
    test = result.record["test"]
    assert test["exact_match"] == 1
    assert (test["answers"], test["answers_cut_off"]) == (8, 0)
    if "method=full" in method:
        base = result.record["base"]
        assert base["exact_match"] == 0
        assert base["nats_per_token"] > test["nats_per_token"]


def test_answers_without_an_end_are_counted_and_each_test_set_has_its_own(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    spec_of(causal_overrides, path)
    rows = pd.read_json(path, lines=True).assign(kind=["near", "far", "far"] * 8)
    rows.to_json(path, orient="records", lines=True)
    kept = [text for text in causal_overrides() if not text.startswith("task")]
    spec = compose(
        *kept,
        "task=generation",
        f"task.source={path}",
        "task.prompt_template='{prompt} good '",
        "task.validation_size=4",
        "task.test_size=12",
        "task.test_set_column=kind",
        "task.max_new_tokens=1",
        "task.generated_examples=2",
        "method=full",
        "method.learning_rate=1e-4",
    )
    sweep([spec], name="few", results=tmp_path, device="cpu", launcher="inline")
    run = tmp_path / "runs" / spec.run_id
    record = json.loads((run / "record.json").read_text())
    assert set(record["test_sets"]) == {"near", "far"}
    for of_set in (*record["test_sets"].values(), *record["base_sets"].values()):
        assert of_set["answers"] == 2
        assert of_set["exact_match"] == 0
    assert record["test"]["answers"] == 4
    assert record["test"]["answers_cut_off"] == 4
    [row] = runs_table(RunStore(tmp_path / "runs").ended([spec.run_id])).to_dict("records")
    names = ("test", "base", "test_near", "test_far")
    assert [row[f"answer_score_{name}"] for name in names] == [0.0] * 4
    predictions = pd.read_parquet(run / "predictions.parquet")
    asked = predictions["answer"].notna()
    assert asked.sum() == 4
    assert np.isnan(predictions.loc[~asked, "answer_score"]).all()
    assert predictions.loc[asked, "base_answer_score"].tolist() == [0.0] * 4
