"""Answer the prompts of a split by greedy decoding, and score the answers.

    >>> predictions = answered(predictions, split, task=task, model=model, ...)
    >>> predictions.columns["answer_score"]
    array([1., 0., 1.])

transformers' `generate` decodes a batch of prompts with the stock forward pass. The prompts are
padded on the left and sorted by length. In fp32, a batch gives the answers of its prompts alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteriaList

from lowrank_study.data.conversations import Turn, last_turn, longest_prompt
from lowrank_study.data.splits import Split, Splits
from lowrank_study.data.tokenizer import end_id
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.evaluate import autocast
from lowrank_study.training.unpadded import stock_forward

_PROMPTS = 32
"""Prompts that are continued together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model generated after a prompt."""

    text: str
    cut_off: bool
    """Whether the answer ended only because it had the most tokens."""


def answered(
    predictions: Predictions,
    split: Split,
    *,
    task: Generation,
    model: nn.Module,
    tokenizer: Any,
    sets: Mapping[str, int],
    device: torch.device,
    precision: str,
) -> Predictions:
    """Return predictions with the columns `answer`, `answer_score` and `answer_cut_off`.

    Rows that are not answered have no text, and NaN as a score.

    Args:
        sets: Name of each test set → its number of rows; empty for one set.
    """
    rows = _chosen_rows(list(sets.values()) or [len(split)], task.generated_examples)
    turns = [last_turn(split, int(row), tokenizer) for row in rows]
    whole = [turn for turn in turns if turn is not None]
    assert len(whole) == len(rows), "the task refuses truncated responses"
    with autocast(device, precision):
        answers = generate(model, whole, task=task, tokenizer=tokenizer, device=device)
    texts = np.full(len(split), None, dtype=object)
    scores = np.full(len(split), np.nan)
    cut_off = np.zeros(len(split), dtype=bool)
    for row, turn, answer in zip(rows, whole, answers, strict=True):
        texts[row], cut_off[row] = answer.text, answer.cut_off
        scores[row] = task.score(answer.text, turn.response)
    more = {"answer": texts, "answer_score": scores, "answer_cut_off": cut_off}
    return Predictions(task=predictions.task, columns={**predictions.columns, **more})


def most_tokens(task: Generation, splits: Splits, *, rows: int | None = None) -> int:
    """Return the most tokens that are read and generated for the answers of one model.

    Args:
        rows: Most answers that are counted; None for all.
    """
    sizes = list(splits.test_sets.values()) or [len(splits.test)]
    answers = len(_chosen_rows(sizes, task.generated_examples))
    return min(answers, answers if rows is None else rows) * (
        longest_prompt(splits.test) + task.max_new_tokens
    )


def cache_bytes(task: Generation, splits: Splits, config: Any) -> int:
    """Return the memory of keys and values, in fp32, while some prompts are answered together."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    features = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    tokens = most_tokens(task, splits, rows=_PROMPTS)
    return 4 * 2 * int(config.num_hidden_layers * heads * features) * tokens


def _chosen_rows(sizes: Sequence[int], most: int | None) -> np.ndarray:
    """Return evenly spaced rows of each set."""
    starts = np.cumsum([0, *sizes])
    counts = [size if most is None else min(size, most) for size in sizes]
    parts = zip(starts, sizes, counts, strict=False)
    return np.concatenate([start + np.arange(n) * size // n for start, size, n in parts])


@torch.inference_mode()
def generate(
    model: nn.Module,
    turns: Sequence[Turn],
    *,
    task: Generation,
    tokenizer: Any,
    device: torch.device,
    prompts: int = _PROMPTS,
) -> list[Answer]:
    """Return the greedy answers to the prompts of some turns, in their order.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Prompts that are continued together.
    """
    ends = {end_id(tokenizer), *(turn.end for turn in turns)}
    order = sorted(range(len(turns)), key=lambda number: len(turns[number].prompt))
    answers: dict[int, Answer] = {}
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=task.max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    with stock_forward(model), _generation_settings(model, settings):
        for start in range(0, len(order), prompts):
            some = order[start : start + prompts]
            inputs = _padded([turns[number].prompt for number in some], tokenizer.pad_token_id)
            inputs = {name: ids.to(device) for name, ids in inputs.items()}
            width = inputs["input_ids"].shape[1]
            stops = _stops(task.stop, tokenizer, width)
            found: Tensor = model.generate(**inputs, stopping_criteria=stops)  # type: ignore[operator]
            for number, ids in zip(some, found[:, width:], strict=True):
                answers[number] = _answer(ids.tolist(), task.stop, tokenizer, ends)
    return [answers[number] for number in range(len(turns))]


def _padded(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Return prompts that are padded on the left, and which of their tokens are not padding."""
    longest = max(map(len, prompts))
    before = [longest - len(prompt) for prompt in prompts]
    ids = [[pad_id] * n + list(prompt) for n, prompt in zip(before, prompts, strict=True)]
    is_token = [[0] * n + [1] * (longest - n) for n in before]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(is_token)}


@contextmanager
def _generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's own settings, which may sample or penalise repetition."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def _stops(stop: Sequence[str], tokenizer: Any, width: int) -> StoppingCriteriaList:
    """Stop an answer that contains one of some texts; those in its prompt don't count.

    Args:
        width: Tokens of the padded prompts.
    """

    def ended(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = tokenizer.batch_decode(input_ids[:, width:], skip_special_tokens=True)
        found = [any(each in text for each in stop) for text in texts]
        return torch.tensor(found, device=input_ids.device)

    return StoppingCriteriaList([ended] if stop else [])


def _answer(ids: list[int], stop: Sequence[str], tokenizer: Any, ends: Collection[int]) -> Answer:
    """Return the text before the end token and before the first stop text."""
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    places = [text.find(each) for each in stop if each in text]
    return Answer(text=text[: min(places)] if places else text, cut_off=end is None and not places)
