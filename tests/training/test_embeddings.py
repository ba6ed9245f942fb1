"""Embeddings whose gradients stay in memory train as torch's own do."""

import torch
from torch import nn

from lowrank_study.training.embeddings import clear_gradients, keep_gradients


def test_gradients_equal_those_of_torch_over_several_steps() -> None:
    torch.manual_seed(0)
    plain, kept = nn.Embedding(20, 6, padding_idx=3), nn.Embedding(20, 6, padding_idx=3)
    kept.load_state_dict(plain.state_dict())
    keep_gradients(kept)
    buffers = set()
    for _ in range(3):
        for _ in range(2):  # two parts of a batch
            ids = torch.randint(0, 8, (2, 5))
            weights = torch.randn(2, 5, 6)
            assert torch.equal(kept(ids), plain(ids))
            (kept(ids) * weights).sum().backward()
            (plain(ids) * weights).sum().backward()
        assert kept.weight.grad is not None
        torch.testing.assert_close(kept.weight.grad, plain.weight.grad)
        assert not kept.weight.grad[3].any(), "padding has no gradient"
        buffers.add(kept.weight.grad.data_ptr())
        plain.zero_grad()
        clear_gradients(kept.parameters())
        assert not kept.weight.grad.any()
    assert len(buffers) == 1


def test_other_gradients_are_dropped() -> None:
    layer = nn.Linear(3, 2)
    layer(torch.ones(3)).sum().backward()
    clear_gradients(layer.parameters())
    assert layer.weight.grad is None


def test_a_shared_weight_keeps_its_usual_gradient() -> None:
    model = nn.ModuleDict({"in": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False)})
    model["out"].weight = model["in"].weight
    keep_gradients(model)
    model["out"](model["in"](torch.tensor([1, 2]))).sum().backward()
    clear_gradients(model.parameters())
    assert model["in"].weight.grad is None
