"""The questions that classification answers about a model and its predictions."""

import numpy as np
import pandas as pd
import pytest
import torch

from lowrank_study.tasks import Predictions
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.batches import Batch


def batch_of(labels: list[int]) -> Batch:
    return Batch(
        rows=np.arange(len(labels)),
        lengths=(1,) * len(labels),
        ids_T=torch.zeros(len(labels), dtype=torch.long),
        types_T=torch.zeros(len(labels), dtype=torch.long),
        labels_N=torch.tensor(labels),
        scored_T=torch.zeros(len(labels), dtype=torch.bool),
    )


def test_loss_and_answers() -> None:
    scores_NC, batch = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), batch_of([0, 1])
    loss_N = Classification.loss(scores_NC, batch, reduction="none")
    expected = -torch.log_softmax(scores_NC, dim=1)[[0, 1], [0, 1]]
    torch.testing.assert_close(loss_N, expected)
    total = Classification.loss(scores_NC, batch, reduction="sum")
    torch.testing.assert_close(total, expected.sum())
    assert Classification.loss_terms(batch) == 2
    answers = Classification.answers(scores_NC, batch)
    assert answers["predicted"].tolist() == [0, 2]
    torch.testing.assert_close(answers["loss"], expected.double())


def test_metrics_and_scores_agree() -> None:
    predictions = Predictions(
        task=Classification,
        columns={
            "label": np.array([0, 0, 0, 1, 2]),
            "predicted": np.array([0, 0, 1, 1, 1]),
            "loss": np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
        },
    )
    metrics = predictions.metrics()
    assert metrics["accuracy"] == 0.6
    assert metrics["majority_accuracy"] == 0.6
    assert metrics["macro_f1"] == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    assert metrics["loss"] == pytest.approx(0.3)
    assert Classification.scores(pd.DataFrame(predictions.columns)).tolist() == [1, 1, 0, 1, 0]
    assert Classification.metric.baseline_level({"test": metrics}) == 0.6
    assert Classification.baseline_scores(pd.DataFrame(predictions.columns)).tolist() == [0.6] * 5
    assert Classification.weights(pd.DataFrame(predictions.columns)).tolist() == [1] * 5
