"""Concatenated texts give the scores and gradients that padded ones give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_study import native
from lowrank_study.config.run import compose
from lowrank_study.data.splits import Split
from lowrank_study.methods.layers.lora import add_lora
from lowrank_study.methods.lora import Lora
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.batches import Batch, batch_of, padded
from lowrank_study.training.models import load_model
from lowrank_study.training.unpadded import (
    can_unpad,
    padded_scores,
    positions_of,
    unpad,
    unpadded_scores,
)

CPU = torch.device("cpu")
FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama"]
LENGTHS = [5, 9, 1, 3, 9, 2]


def texts() -> Batch:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    generator = np.random.default_rng(0)
    split = Split(
        ids=generator.integers(4, 40, offsets[-1]).astype(np.int32),
        types=generator.integers(0, 2, offsets[-1]).astype(np.int8),
        offsets=offsets.astype(np.int64),
        labels=np.array([0, 1, 2, 0, 1, 2]),
        scored=np.zeros(offsets[-1], dtype=bool),
        text_bytes=np.zeros(len(LENGTHS), dtype=np.int64),
        is_right=np.ones(len(LENGTHS), dtype=bool),
    )
    return batch_of(split, np.arange(len(LENGTHS)))


def model_of(folder: Path) -> nn.Module:
    """A tiny model with large weights, in float64: a wrong position or mask shows."""
    torch.manual_seed(0)
    model = load_model(Classification, folder, number_of_labels=3, dropout=0.0).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return model


def gradients(model: nn.Module, scores_NC: torch.Tensor) -> dict[str, torch.Tensor]:
    nn.functional.cross_entropy(scores_NC, texts().labels_N).backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_padded_texts(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    stock, ours = model_of(tiny_model(family)), model_of(tiny_model(family))
    assert can_unpad(ours)
    unpad(ours)
    expected = padded_scores(stock, texts(), CPU, pad_id=0)[0]
    found = unpadded_scores(ours, texts(), CPU)[0]
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    wanted, got = gradients(stock, expected), gradients(ours, found)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_does_not_see_its_neighbours(family: str, tiny_model: Callable[[str], Path]) -> None:
    model = model_of(tiny_model(family))
    unpad(model)
    together = unpadded_scores(model, texts(), CPU)[0]
    start = 0
    for number, length in enumerate(LENGTHS):
        alone = Batch(
            rows=np.array([number]),
            lengths=(length,),
            ids_T=texts().ids_T[start : start + length],
            types_T=texts().types_T[start : start + length],
            labels_N=texts().labels_N[number : number + 1],
            scored_T=texts().scored_T[start : start + length],
        )
        found = unpadded_scores(model, alone, CPU)[0]
        torch.testing.assert_close(found[0], together[number], rtol=1e-11, atol=1e-11)
        start += length


@pytest.mark.parametrize("family", FAMILIES)
def test_every_run_gets_the_same_texts(family: str, tiny_model: Callable[[str], Path]) -> None:
    model = model_of(tiny_model(family))
    unpad(model)
    three = unpadded_scores(model, texts(), CPU, runs=3)
    assert three.shape == (3, len(LENGTHS), 3)
    for scores in three:
        torch.testing.assert_close(scores, unpadded_scores(model, texts(), CPU)[0])


def test_padding_fills_up_to_the_longest() -> None:
    assert padded(torch.arange(1, 7), (1, 3, 2), fill=9).tolist() == [
        [1, 9, 9],
        [2, 3, 4],
        [5, 6, 9],
    ]


def test_only_needed_tokens_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA on q and v of BERT: the matrix products of a step are those that can't be left out."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertForSequenceClassification

    monkeypatch.setattr(native, "wanted", False)  # PyTorch counts its own operators only
    D, layers, rank = 64, 3, 4
    config = BertConfig(
        vocab_size=40,
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * D,
    )
    model: Any = BertForSequenceClassification(config)
    model.task = Classification
    lora = compose(f"method.rank={rank}").method
    assert isinstance(lora, Lora)
    names = [
        f"bert.encoder.layer.{layer}.attention.self.{name}"
        for layer in range(layers)
        for name in ("query", "value")
    ]
    add_lora(model, dict.fromkeys(names, lora))
    unpad(model)
    with FlopCounterMode(display=False) as counter:
        unpadded_scores(model.train(), texts(), CPU).sum().backward()
    T, N = sum(LENGTHS), len(LENGTHS)
    # Multiplications per token: q, k, v and o cost D² each, the feed-forward part 8 D². In the
    # forward pass, the last layer computes k and v for every token and the rest for the read one.
    # The backward pass has only gradients of activations, and none through q, k and v of the first
    # layer, because nothing below it is trained.
    forward = T * (12 * (layers - 1) + 2) + N * 10
    backward = T * (9 + 12 * (layers - 2) + 2) + N * 10
    # A factor pair costs 2 D·rank in the forward pass and as much for each of its two gradients,
    # and for the gradient of the input, except in the first layer.
    thin = T * (2 * layers - 1) + N
    factors = 2 * (thin + thin + (thin - 2 * T)) * D * rank
    pooler = 2 * N * D * D  # the frozen pooler, forwards and backwards
    needed = 2 * ((forward + backward) * D * D + factors + pooler)
    found = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)
    )
    assert needed <= found <= 1.05 * needed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_number_of_positions_is_that_of_the_stock_model(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    model = model_of(tiny_model(family))
    positions = positions_of(model)
    if family == "llama":
        assert positions is None
        positions = 200
    else:
        assert positions is not None
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, positions + 1), 5))
    model(torch.full((1, positions), 5))
