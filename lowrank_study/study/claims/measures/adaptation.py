"""What adapting a linear map does, tried on small maps with the suite's own `LoraLinear`."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank_study.spec import Lora
from lowrank_study.study.claims.measures.architectures import architecture_of
from lowrank_study.study.claims.measures.outcome import (
    Measured,
    Observed,
    Outcome,
    computed,
    exactly,
    measure,
)
from lowrank_study.training.lora import LoraLinear

WIDTH, RANK, BATCH = 64, 8, 16


def _lora(init: str, rank: int = RANK) -> Lora:
    return Lora(
        learning_rate=0.0, rank=rank, alpha=2.0 * rank, scaling_rule="alpha_over_rank",
        dropout=0.0, init=init, target=(),
    )  # fmt: skip


def _adapted_map(generator: torch.Generator, init: str, *, trained: bool) -> LoraLinear:
    """Give an adapted map with seeded weights, at its start or with factors as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())  # `init` draws A from torch's own generator
        module = LoraLinear(nn.Linear(WIDTH, WIDTH, bias=False), _lora(init), "map")
    with torch.no_grad():
        _fill(module.base.weight, generator, WIDTH**-0.5)
        if trained:
            _fill(module.A_RI, generator, WIDTH**-0.5)
            _fill(module.B_OR, generator, 0.1)
    return module


def _fill(values: object, generator: torch.Generator, std: float) -> None:
    assert isinstance(values, Tensor)
    values.copy_(torch.randn(values.shape, generator=generator) * std)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@measure
def change_at_start(inits: Sequence[str], seed: int) -> Outcome:
    """Give the largest change of a map's output by an adapter that has not been trained."""
    generator, values = _generator(seed), []
    for init in inits:
        module = _adapted_map(generator, init, trained=False)
        x = torch.randn(BATCH, WIDTH, generator=generator)
        change = (module(x) - module.base(x)).abs().max()
        values.append(exactly(float(change.detach()), init))
    how = f"largest |change| of a {WIDTH} × {WIDTH} map's output, A at random and B at zero"
    return Measured(values=tuple(values), how=how)


@measure
def change_of_frozen_weight(steps: int, rate: float, seed: int) -> Outcome:
    """Give the largest change of the frozen weight over some steps of training an adapter."""
    generator = _generator(seed)
    module = _adapted_map(generator, "kaiming", trained=False)
    weight = module.base.weight
    assert isinstance(weight, Tensor)
    before = weight.detach().clone()
    x, y = (torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2))
    optimizer = torch.optim.SGD((module.A_RI, module.B_OR), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mse_loss(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(module.B_OR.detach().abs().max()) > 0.0
    how = f"largest |W - W0|, steps of training: {steps}"
    return computed(float((weight.detach() - before).abs().max()), how)


@measure
def merging_changes_output(seed: int) -> Outcome:
    """Give the largest relative difference between a merged map's output and an unmerged one's."""
    generator = _generator(seed)
    module = _adapted_map(generator, "kaiming", trained=True)
    x = torch.randn(BATCH, WIDTH, generator=generator)
    with torch.no_grad():
        apart = module(x)
        module.merge()
        together = module(x)
    relative = float((together - apart).abs().max() / apart.abs().max())
    return computed(relative, "largest |merged - unmerged| over the largest output, float32")


@measure
def can_be_unmerged(seed: int) -> Outcome:
    """Tell whether subtracting the update gives W0 back, up to the rounding of two sums.

    `reversible` or `one-way`.
    """
    module = _adapted_map(_generator(seed), "kaiming", trained=True)
    weight = module.base.weight
    assert isinstance(weight, Tensor)
    before = weight.detach().clone()
    module.merge()
    merged = weight.detach().clone()
    module.unmerge()
    error = float((weight.detach() - before).abs().max())
    largest = float(torch.maximum(merged.abs(), before.abs()).max())
    bound = torch.finfo(weight.dtype).eps * largest
    moved = float((merged - before).abs().max())
    how = (
        f"merged moves W by up to {moved:.2g}; unmerged it is back to {error:.1g}, and one "
        f"rounding of the largest entry is {bound:.1g}"
    )
    reversible = error <= 2 * bound and moved > 1000 * bound
    return Observed(value="reversible" if reversible else "one-way", how=how)


@measure
def layer_coupling(seed: int) -> Outcome:
    """Give how much one layer's gradient changes when only the other layer's adapter does.

    ‖∇B₁(with B₂) - ∇B₁(with B₂ = 0)‖ / ‖∇B₁(with B₂ = 0)‖ of a net of two adapted maps with
    tanh between them: 0 if the two could be trained apart.
    """
    generator = _generator(seed)
    first = _adapted_map(generator, "kaiming", trained=True)
    second = _adapted_map(generator, "kaiming", trained=True)
    x, y = (torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2))

    def gradient() -> Tensor:
        loss = functional.mse_loss(second(torch.tanh(first(x))), y)
        return torch.autograd.grad(loss, first.B_OR)[0]

    together = gradient()
    with torch.no_grad():
        second.B_OR.zero_()
    alone = gradient()
    how = "relative change of layer 1's gradient when layer 2's B is set to zero, by autograd"
    return computed(float((together - alone).norm() / alone.norm()), how)


@measure
def initial_kurtosis(seed: int, entries: int) -> Outcome:
    """Give the excess kurtosis of A under Kaiming's rule: 0 if Gaussian, -1.2 if uniform."""
    values = torch.empty(RANK, entries // RANK)
    nn.init.kaiming_uniform_(values, generator=_generator(seed))
    scaled = (values - values.mean()) / values.std()
    return computed(float((scaled**4).mean() - 3), f"{entries:,} entries drawn by kaiming_uniform_")


class _Wrapped(nn.Module):
    """An adapter as a listing under test makes it: it freezes the map that it wraps, only."""

    def __init__(self, original: nn.Linear, rank: int) -> None:
        super().__init__()
        self.original = original.requires_grad_(False)
        self.A = nn.Linear(original.in_features, rank, bias=False)
        self.B = nn.Linear(rank, original.out_features, bias=False)


@measure
def trainable_besides_adapter(architecture: str, names: Sequence[str], rank: int) -> Outcome:
    """Give the share of the pretrained parameters that stay trainable if only wrappers freeze.

    The model's maps whose path holds one of `names` are wrapped in place, nothing else is done.
    """
    model = copy.deepcopy(architecture_of(architecture).model)
    pretrained = sum(parameter.numel() for parameter in model.parameters())
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wrapped = {name: m for name, m in linear.items() if any(part in name for part in names)}
    with torch.device("meta"):
        for name, module in wrapped.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Wrapped(module, rank))
    adapter = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, _Wrapped)
        for parameter in (module.A.weight, module.B.weight)
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) - adapter
    how = f"{len(wrapped)} maps of {architecture} wrapped; {trainable:,} other parameters train"
    return computed(trainable / pretrained, how)


@measure
def paired_listing_unpacks() -> Outcome:
    """Tell whether unpacking two zipped `named_parameters()` as (name, (before, after)) works.

    Each zipped item is ((name, before), (name, after)), so that the inner pair is a name and
    a tensor.
    """
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    pairs = zip(before.named_parameters(), after.named_parameters(), strict=True)
    _, (first, second) = next(pairs)
    works = isinstance(first, Tensor) and isinstance(second, Tensor)
    return Observed(value=works, how=f"the inner pair is a {type(first).__name__} and a tensor")


@measure
def batched_listing_computes(batch: int, sequence: int, width: int) -> Outcome:
    """Tell whether `W @ x`, W (width, width), maps a batch of shape (batch, sequence, width)."""
    try:
        torch.zeros(width, width) @ torch.zeros(batch, sequence, width)
    except RuntimeError as error:
        return Observed(value=False, how=str(error).partition("\n")[0].rstrip("."))
    return Observed(value=True, how="the product has a shape")


@measure
def forward_flops(merged: bool, seed: int) -> Outcome:
    """Give the FLOPs of an adapted map's forward pass over those of the map alone, as counted."""
    from torch.utils.flop_counter import FlopCounterMode

    module = _adapted_map(_generator(seed), "kaiming", trained=True)
    if merged:
        module.merge()
    x = torch.zeros(BATCH, WIDTH)
    counts = []
    for forward in (module, module.base):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(x)
        counts.append(counter.get_total_flops())
    state = "merged" if merged else "unmerged"
    how = f"counted by torch, r = {RANK} {state} on a {WIDTH} × {WIDTH} map"
    return computed(counts[0] / counts[1], how)
