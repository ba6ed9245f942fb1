"""Memory that is estimated from a model's configuration alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lowrank_study.config.run import compose, composed
from lowrank_study.errors import InputError
from lowrank_study.reporting.memory_table import memory_table
from lowrank_study.training.estimate import Estimate, Request, estimate, read_request
from lowrank_study.training.memory import predict_peak
from lowrank_study.training.models import model_without_weights

CLASSIFIER = ("kind=classification", "precision=fp32", "method.target=attention_qv")


def request(*overrides: str) -> Request:
    return read_request(composed("estimate_memory", *overrides))


def estimated(*overrides: str) -> Estimate:
    return estimate(request(*overrides))


def test_parts_are_those_of_the_model(
    tiny_model: Callable[[str], Path], tiny_overrides: list[str]
) -> None:
    model = ("model=bert", f"model.source={tiny_model('bert')}")
    found = estimated(*model, *CLASSIFIER, "method.rank=2", "length=16")
    attached = model_without_weights(compose(*tiny_overrides, "method=lora", "method.rank=2"))
    counts = {True: 0, False: 0}
    for parameter in attached.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert found.training["trained weights"] == 4 * counts[True]
    assert found.training["gradients"] == 4 * counts[True]
    assert found.training["Adam's two moments"] == 8 * counts[True]
    assert found.training["frozen weights"] == 4 * counts[False]
    full = estimated(*model, *CLASSIFIER[:2], "method=full", "length=16")
    assert full.training["frozen weights"] == 0
    assert full.training["trained weights"] > 4 * counts[False]


def test_activations_are_those_that_a_run_is_predicted_to_need(
    tiny_model: Callable[[str], Path], tiny_overrides: list[str]
) -> None:
    spec = compose(
        *tiny_overrides, "trainer.precision=fp32", "task.max_length=8", "trainer.batch_size=1"
    )
    predicted = predict_peak(spec)
    assert predicted is not None
    model = ("model=bert", f"model.source={tiny_model('bert')}", "model.dropout=0.0")
    same = [each for each in tiny_overrides if each.startswith(("method", "model.dropout"))]
    found = estimated(*model, *CLASSIFIER, *same, "length=512")
    per_token = found.training["activations"] / 512
    assert per_token == pytest.approx(predicted.activations / 8, rel=0.35)


def test_longer_texts_need_more_and_bf16_needs_less() -> None:
    short = estimated("architecture=gpt2", "length=512", "precision=fp32")
    long = estimated("architecture=gpt2", "length=1024", "precision=fp32")
    half = estimated("architecture=gpt2", "length=512", "precision=bf16")
    assert long.training["activations"] > 1.9 * short.training["activations"]
    assert half.training["frozen weights"] < 0.85 * short.training["frozen weights"]


def test_published_models_are_estimated_without_their_weights() -> None:
    """LoRA on query and value of a 7B model trains 2 · 32 · 2 · 4096 · r weights."""
    found = estimated("architecture=llama_7b", "method=lora", "method.rank=8")
    assert found.training["trained weights"] == 4 * 2 * 32 * 2 * 4096 * 8
    assert 13.4e9 < found.training["frozen weights"] < 14e9
    assert found.check > 27e9


@pytest.mark.parametrize(
    ("memory", "words"),
    [("100", "and fits into 100 GB."), ("24", "not the check before"), ("8", "doesn't fit into")],
)
def test_the_answer_is_in_words(memory: str, words: str) -> None:
    asked = request("architecture=llama_7b", "method.rank=8", f"memory={memory}")
    answer = (
        memory_table(asked, estimate(asked))
        .partition("\n")[0]
        .replace("\N{NARROW NO-BREAK SPACE}", " ")
    )
    assert answer.startswith("llama_7b with lora (r=8) needs ")
    assert words in answer


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["architecture=llama_8b"], ["'llama_8b'", "llama_7b"]),
        (["length=1"], ["length=1", "at least 2"]),
        (["precision=int8"], ["precision='int8'", "fp32, bf16"]),
        (["kind=regression"], ["kind='regression'", "classification"]),
        (["memory=0"], ["memory=0"]),
        (
            ["architecture=llama_7b", "method=peft", "method.peft_type=IA3"],
            ["method=ia3", "weights"],
        ),
        (["architecture=llama_7b", "method=head"], ["method=head", "new head"]),
        (["architecture=llama_7b", "method.rank=9000"], ["method.rank=9000", "4096"]),
    ],
)
def test_bad_input_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        estimated(*overrides)
    for word in words:
        assert word in str(refused.value)
