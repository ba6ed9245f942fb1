"""What adapting a linear map does, tried on small maps with the suite's own `LoraLinear`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank_study.claims.measures.outcome import (
    Measured,
    Observed,
    Outcome,
    computed,
    exactly,
    measure,
)
from lowrank_study.methods.layers.lora import LoraLinear
from lowrank_study.methods.lora import Lora

WIDTH, RANK, BATCH = 64, 8, 16


def _adapted_map(
    generator: torch.Generator, init: str, *, trained: bool, alpha: float = 2.0 * RANK
) -> LoraLinear:
    """Give an adapted map with seeded weights, at its start or with factors as after training."""
    lora = Lora(
        learning_rate=0.0, rank=RANK, alpha=alpha, scaling_rule="alpha_over_rank",
        dropout=0.0, init=init, target=(),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())  # `init` draws A from torch's own generator
        module = LoraLinear(nn.Linear(WIDTH, WIDTH, bias=False), lora, "map")
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


def _train(module: LoraLinear, generator: torch.Generator, steps: int, rate: float) -> None:
    """Train an adapter by gradient descent towards outputs that are noise."""
    x, y = (torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2))
    optimizer = torch.optim.SGD((module.A_RI, module.B_OR), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mse_loss(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(module.B_OR.detach().abs().max()) > 0.0


@measure
def change_of_frozen_weight(steps: int, rate: float, seed: int) -> Outcome:
    """Give the largest change of the frozen weight over some steps of training an adapter."""
    generator = _generator(seed)
    module = _adapted_map(generator, "kaiming", trained=False)
    weight = module.base.weight
    assert isinstance(weight, Tensor)
    before = weight.detach().clone()
    _train(module, generator, steps, rate)
    how = f"largest |W - W0|, steps of training: {steps}"
    return computed(float((weight.detach() - before).abs().max()), how)


@measure
def update_by_alpha(alphas: Sequence[float], steps: int, rate: float, seed: int) -> Outcome:
    """Give the norm of the update trained at the second α over that at the first, all else alike.

    ‖(α/r) B A‖ after some steps of gradient descent on one map, from the same start and texts.
    """
    norms = []
    for alpha in alphas:
        generator = _generator(seed)
        module = _adapted_map(generator, "kaiming", trained=False, alpha=alpha)
        _train(module, generator, steps, rate)
        norms.append(float((module.scaling * module.B_OR @ module.A_RI).detach().norm()))
    named = " over ".join(f"{alpha:g}" for alpha in reversed(alphas))
    how = f"norm of ΔW at α = {named}, r = {RANK}, {steps} steps of gradient descent at {rate:g}"
    return computed(norms[1] / norms[0], how)


@measure
def gradient_through_frozen(seed: int) -> Outcome:
    """Give the largest gradient that reaches the input of an adapted map at its start.

    B is zero there, so that all of it comes through the frozen weight.
    """
    generator = _generator(seed)
    module = _adapted_map(generator, "kaiming", trained=False)
    assert not module.base.weight.requires_grad
    x, y = (torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2))
    loss = functional.mse_loss(module(x.requires_grad_()), y)
    reached = torch.autograd.grad(loss, x)[0]
    return computed(float(reached.abs().max()), "largest |∂L/∂x|, W frozen and B zero, by autograd")


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


@measure
def added_modules() -> Outcome:
    """Count the modules that PEFT's LoRA adds to a network of one linear map."""
    from peft import LoraConfig, inject_adapter_in_model

    network = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    before = len(list(network.modules()))
    adapted = inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["0"]), network)
    after = [type(module).__name__ for module in adapted.modules()]
    how = f"modules of PEFT's adapted network, {before} before: {', '.join(after)}"
    return computed(len(after) - before, how)
