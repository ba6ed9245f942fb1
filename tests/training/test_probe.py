"""The check before training detects every difference beyond rounding, and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank_study.data.splits import Split
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.batches import Batch, extreme_texts
from lowrank_study.training.probe import Findings, difference, findings


def split_of(lengths: list[int]) -> Split:
    total = sum(lengths)
    return Split(
        ids=np.arange(total, dtype=np.int32),
        types=np.zeros(total, dtype=np.int8),
        offsets=np.cumsum([0, *lengths]),
        labels=np.arange(len(lengths)) % 2,
        scored=np.zeros(total, dtype=bool),
        text_bytes=np.zeros(len(lengths), dtype=np.int64),
        is_right=np.ones(len(lengths), dtype=bool),
    )


def test_the_sample_has_the_longest_and_the_shortest_texts_of_all_splits() -> None:
    splits = [split_of([3, 9, 4]), split_of([12, 5]), split_of([1, 7, 6])]
    sample = extreme_texts(splits, 3)
    assert sample.lengths == (12, 1, 9)
    texts = sample.ids_T.split(list(sample.lengths))
    assert texts[0].tolist() == splits[1].tokens(0).tolist()
    assert texts[1].tolist() == splits[2].tokens(0).tolist()
    assert sample.labels_N.tolist() == [0, 0, 1]
    assert sorted(extreme_texts(splits, 99).lengths) == [1, 3, 9, 12]
    assert extreme_texts([split_of([4])], 16).lengths == (4,)


class Averages(nn.Module):
    """A model whose scores are means over words, with strong dropout and layer drop."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, batch: Batch) -> Tensor:
        words = functional.dropout(self.words, 0.9, self.training)
        if self.training and torch.rand([]) < 0.5:
            words = words * 0
        texts = words[batch.ids_T].split(list(batch.lengths))
        return torch.stack([text.mean(0) for text in texts])


def found(model: nn.Module, parts: list[Batch]) -> Findings:
    return findings(
        model, Classification, lambda b: model.eval()(b), lambda b: model.train()(b)[None], parts
    )


def test_nothing_is_random_and_no_gradient_is_left() -> None:
    model, sample = Averages(), extreme_texts([split_of([3, 9, 4, 12, 5])], 5)
    alone, together = found(model, list(sample.parts(1))), found(model, [sample])
    assert difference(together, alone) is None
    assert torch.equal(alone.scores["training"], alone.scores["evaluation"])
    assert set(alone.gradients) == {"words"}
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen = found(model.requires_grad_(False), [sample])
    assert set(frozen.scores) == {"evaluation"}
    assert not frozen.gradients


def test_a_difference_is_named_and_rounding_is_none() -> None:
    score, gradient = torch.tensor([[0.02, -0.01]]), torch.tensor([1.0, 2.0])

    def of(evaluated: Tensor, trained: Tensor, w: Tensor, tiny: float) -> Findings:
        gradients = {"w": w, "tiny": torch.tensor([tiny])}
        return Findings(scores={"evaluation": evaluated, "training": trained}, gradients=gradients)

    alone = of(score, score, gradient, 1e-9)
    assert difference(of(score * (1 + 1e-6), score, gradient, -1e-9), alone) is None
    # Scores are small under a new head: a difference counts by their size.
    assert difference(of(score + 1e-4, score, gradient, 1e-9), alone) == (
        "scores in evaluation change by 0.0001"
    )
    assert "in training" in str(difference(of(score, score * 1.01, gradient, 1e-9), alone))
    assert str(difference(of(score, score, gradient * 1.01, 1e-9), alone)).startswith(
        "the gradient of w changes by 0.022"
    )
    assert "in evaluation" in str(difference(of(score * torch.nan, score, gradient, 0.0), alone))


@pytest.mark.parametrize("lost", ["w", "tiny"])
def test_a_missing_gradient_counts_as_zero(lost: str) -> None:
    gradients = {"w": torch.tensor([1.0]), "tiny": torch.tensor([1e-9])}
    alone = Findings(scores={}, gradients=gradients)
    less = Findings(scores={}, gradients={n: g for n, g in gradients.items() if n != lost})
    assert (difference(less, alone) is None) == (lost == "tiny")
