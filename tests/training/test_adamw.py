"""The native optimizer and its clipping give the numbers of PyTorch's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lowrank_study import native
from lowrank_study.training.adamw import clip_gradients, native_adamw
from lowrank_study.training.embeddings import clear_gradients, keep_gradients

NEEDS_NATIVE = pytest.mark.skipif(native.library("adamw.c") is None, reason="no C compiler")
COMMON: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-6}


class Model(nn.Module):
    """An embedding of more rows than are read, and maps of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(150, 33)
        self.maps = nn.ModuleList([nn.Linear(33, 700), nn.Linear(700, 1)])
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def set_gradients(self, ids: list[int], seed: int) -> None:
        """Set the same gradients whatever the weights are."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(ids), 33, generator=generator, dtype=self.table.weight.dtype)
        (self.table(torch.tensor(ids)) * rows).sum().backward()
        for parameter in self.maps.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "lr": 0.1, "weight_decay": 0.1},
        {"params": vectors, "lr": 0.01, "weight_decay": 0.0},
    ]


def trained(*, is_native: bool, largest: float, decay: float = 0.1) -> tuple[list[Tensor], Any]:
    model = Model()
    keep_gradients(model)
    groups = groups_of(model)
    groups[0]["weight_decay"] = decay
    optimizer = native_adamw(groups, **COMMON) if is_native else optim.AdamW(groups, **COMMON)
    assert optimizer is not None
    parameters, norms = list(model.parameters()), []
    for seed, ids in enumerate([[3, 3, 70], [5], [149, 3]]):
        model.set_gradients(ids, seed)
        norms.append(clip_gradients(optimizer, parameters, largest))
        optimizer.step()
        clear_gradients(parameters)
    return [p.detach() for p in parameters], torch.stack(norms)


@NEEDS_NATIVE
@pytest.mark.parametrize("largest", [0.5, 1e9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("threads", [1, 3])
def test_steps_equal_torchs(largest: float, decay: float, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, norms = trained(is_native=True, largest=largest, decay=decay)
    finally:
        torch.set_num_threads(before)
    expected, exact_norms = trained(is_native=False, largest=largest, decay=decay)
    torch.testing.assert_close(norms, exact_norms)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # steps are 0.1


@NEEDS_NATIVE
def test_the_norm_is_that_of_all_gradients() -> None:
    model = Model()
    keep_gradients(model)
    optimizer = native_adamw(groups_of(model), **COMMON)
    assert optimizer is not None
    model.set_gradients([7, 7, 2], seed=0)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    exact = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(clip_gradients(optimizer, list(model.parameters()), 1.0), exact)


@NEEDS_NATIVE
def test_parameters_without_a_gradient_stay() -> None:
    model = Model()
    optimizer = native_adamw(groups_of(model), **COMMON)
    assert optimizer is not None
    before = model.table.weight.detach().clone()
    model.maps[0].weight.square().sum().backward()
    optimizer.step()
    assert torch.equal(model.table.weight, before)


def test_torch_trains_other_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    assert native_adamw(groups_of(model.double()), **COMMON) is None
    monkeypatch.setattr(native, "wanted", False)
    assert native_adamw(groups_of(model.float()), **COMMON) is None
