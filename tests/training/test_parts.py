"""A batch in parts: whole texts, nothing lost, and the same gradients."""

import numpy as np
import pytest
import torch

from lowrank_study.config.run import compose
from lowrank_study.data.splits import Split, load_splits
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.loaded import model_folder
from lowrank_study.training import unpadded
from lowrank_study.training.batches import batch_of
from lowrank_study.training.fit import backward
from lowrank_study.training.models import build_model
from lowrank_study.training.packing import Pack

CPU = torch.device("cpu")


def split_of(lengths: list[int]) -> Split:
    total = sum(lengths)
    return Split(
        ids=np.arange(total, dtype=np.int32),
        types=np.zeros(total, dtype=np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.arange(len(lengths)),
    )


@pytest.mark.parametrize("tokens", [1, 5, 8, 100])
def test_parts_are_whole_texts_and_nothing_is_lost(tokens: int) -> None:
    lengths = [3, 4, 9, 1, 2, 2]
    batch = batch_of(split_of(lengths), np.arange(6))
    parts = list(batch.parts(tokens))
    assert torch.equal(torch.cat([part.ids_T for part in parts]), batch.ids_T)
    assert torch.equal(torch.cat([part.labels_N for part in parts]), batch.labels_N)
    assert sum((part.lengths for part in parts), ()) == batch.lengths
    assert all(len(part.ids_T) <= tokens or len(part.lengths) == 1 for part in parts)
    assert list(np.concatenate([part.rows for part in parts])) == list(range(6))


@pytest.mark.parametrize("method", ["method.rank=2", "method=full"])
def test_parts_add_up_to_the_gradient_of_the_whole(
    method: str, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = compose(*tiny_overrides, method, "model.dropout=0.0")
    folder = model_folder(spec.model)
    splits = load_splits(spec.task, folder)
    batch = batch_of(splits.train, np.arange(12))
    found = []
    for least in (10_000, 20):
        monkeypatch.setattr(unpadded, "_LEAST_TOKENS", least)
        monkeypatch.setattr(unpadded, "_PART_PRODUCT", 0)
        model = build_model(spec, folder, number_of_labels=2).double()
        pad_id = padding_id(folder)
        pack = Pack([model], device=CPU, pad_id=pad_id, sample=batch, reference=False)
        assert (len(list(pack.parts(batch))) > 1) == (least == 20)
        [loss] = backward(pack, batch, spec, CPU)
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        found.append((loss, gradients))
    (whole, expected), (in_parts, gradients) = found
    assert in_parts == pytest.approx(whole, rel=1e-6)
    for mine, other in zip(gradients, expected, strict=True):
        if other is None:
            assert mine is None
            continue
        assert mine is not None
        # Losses are taken in fp32, whatever the weights are.
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)
