"""Effects of adapting a linear map, measured on small maps with the suite's own `LoraLinear`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

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
    generator: torch.Generator, *, trained: bool, init: str = "kaiming", alpha: float = 2.0 * RANK
) -> LoraLinear:
    """Return an adapted map with seeded weights; `trained` also draws factors as after training."""
    lora = Lora(
        learning_rate=0.0, rank=RANK, alpha=alpha, scaling_rule="alpha_over_rank",
        dropout=0.0, init=init, target=(),
        init_batches=None, stable_gamma=None, learning_rate_ratio=None,
        rank_pattern=None, alpha_pattern=None, names_scaling=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())  # `init` draws A from torch's own generator
        module = LoraLinear(nn.Linear(WIDTH, WIDTH, bias=False), lora, "map")
    drawn = [(_base_weight(module), WIDTH**-0.5)]
    if trained:
        drawn += [(module.A_RI, WIDTH**-0.5), (module.B_OR, 0.1)]
    with torch.no_grad():
        for values, std in drawn:
            values.copy_(torch.randn(values.shape, generator=generator) * std)
    return module


def _base_weight(module: LoraLinear) -> Tensor:
    weight = module.base.weight
    assert isinstance(weight, Tensor)
    return weight


def _batch(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=generator)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _train(module: LoraLinear, generator: torch.Generator, steps: int, rate: float) -> None:
    """Train an adapter by gradient descent towards random outputs."""
    x, y = _batch(generator), _batch(generator)
    optimizer = torch.optim.SGD((module.A_RI, module.B_OR), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse_loss(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(module.B_OR.detach().abs().max()) > 0.0


@measure
def change_at_start(inits: Sequence[str], seed: int) -> Outcome:
    """Return the largest change of a map's output by an untrained adapter."""
    generator, values = _generator(seed), []
    for init in inits:
        module = _adapted_map(generator, init=init, trained=False)
        x = _batch(generator)
        values.append(exactly(float((module(x) - module.base(x)).detach().abs().max()), init))
    how = f"largest |change| of a {WIDTH} × {WIDTH} map's output, with a random A and B = 0"
    return Measured(values=tuple(values), how=how)


@measure
def change_of_frozen_weight(steps: int, rate: float, seed: int) -> Outcome:
    """Return the largest change of the frozen weight after training an adapter."""
    generator = _generator(seed)
    module = _adapted_map(generator, trained=False)
    before = _base_weight(module).detach().clone()
    _train(module, generator, steps, rate)
    change = float((_base_weight(module).detach() - before).abs().max())
    return computed(change, f"largest |W - W0| after {steps} step(s) of training")


@measure
def update_by_alpha(alphas: Sequence[float], steps: int, rate: float, seed: int) -> Outcome:
    """Return the norm of ΔW = (α/r) B A trained at the second α over the norm at the first."""
    norms = []
    for alpha in alphas:
        generator = _generator(seed)
        module = _adapted_map(generator, trained=False, alpha=alpha)
        _train(module, generator, steps, rate)
        norms.append(float((module.scaling * module.B_OR @ module.A_RI).detach().norm()))
    how = (
        f"norm of ΔW at α = {alphas[1]:g} over α = {alphas[0]:g}, r = {RANK}, after {steps} steps "
        f"of gradient descent at learning rate {rate:g}"
    )
    return computed(norms[1] / norms[0], how)


@measure
def gradient_through_frozen(seed: int) -> Outcome:
    """Return the largest gradient at the input of an untrained adapted map.

    B is zero at the start, so the whole gradient comes through the frozen weight.
    """
    generator = _generator(seed)
    module = _adapted_map(generator, trained=False)
    assert not module.base.weight.requires_grad
    x, y = _batch(generator), _batch(generator)
    gradient = torch.autograd.grad(mse_loss(module(x.requires_grad_()), y), x)[0]
    return computed(float(gradient.abs().max()), "largest |∂L/∂x| with W frozen and B = 0")


@measure
def merging_changes_output(seed: int) -> Outcome:
    """Return the largest relative difference between merged and unmerged outputs."""
    generator = _generator(seed)
    module = _adapted_map(generator, trained=True)
    x = _batch(generator)
    with torch.no_grad():
        apart = module(x)
        module.merge()
        relative = float((module(x) - apart).abs().max() / apart.abs().max())
    return computed(relative, "largest |merged - unmerged| over the largest output, float32")


@measure
def can_be_unmerged(seed: int) -> Outcome:
    """Tell whether unmerging restores W0 up to rounding: `reversible` or `one-way`."""
    module = _adapted_map(_generator(seed), trained=True)
    weight = _base_weight(module)
    before = weight.detach().clone()
    module.merge()
    merged = weight.detach().clone()
    module.unmerge()
    error = float((weight.detach() - before).abs().max())
    largest = float(torch.maximum(merged.abs(), before.abs()).max())
    bound = torch.finfo(weight.dtype).eps * largest
    moved = float((merged - before).abs().max())
    how = (
        f"merging changes W by up to {moved:.2g}, and unmerging restores W up to {error:.1g}; one "
        f"rounding of the largest entry is {bound:.1g}"
    )
    reversible = error <= 2 * bound and moved > 1000 * bound
    return Observed(value="reversible" if reversible else "one-way", how=how)


@measure
def layer_coupling(seed: int) -> Outcome:
    """Return the relative change of layer 1's gradient if layer 2's adapter is removed.

    ‖∇B₁(with B₂) - ∇B₁(B₂ = 0)‖ / ‖∇B₁(B₂ = 0)‖ for two adapted maps with tanh between them.
    The value is 0 if both can be trained separately.
    """
    generator = _generator(seed)
    first, second = (_adapted_map(generator, trained=True) for _ in range(2))
    x, y = _batch(generator), _batch(generator)

    def gradient() -> Tensor:
        return torch.autograd.grad(mse_loss(second(torch.tanh(first(x))), y), first.B_OR)[0]

    together = gradient()
    with torch.no_grad():
        second.B_OR.zero_()
    alone = gradient()
    how = "relative change of layer 1's gradient if layer 2's B is set to zero"
    return computed(float((together - alone).norm() / alone.norm()), how)


@measure
def initial_kurtosis(seed: int, entries: int) -> Outcome:
    """Return the excess kurtosis of A after Kaiming initialisation: Gaussian 0, uniform -1.2."""
    values = torch.empty(RANK, entries // RANK)
    nn.init.kaiming_uniform_(values, generator=_generator(seed))
    scaled = (values - values.mean()) / values.std()
    how = f"excess kurtosis of {entries:,} entries from kaiming_uniform_"
    return computed(float((scaled**4).mean() - 3), how)


@measure
def forward_flops(merged: bool, seed: int) -> Outcome:
    """Return the counted FLOPs of an adapted map's forward pass over those of the map alone."""
    from torch.utils.flop_counter import FlopCounterMode

    module = _adapted_map(_generator(seed), trained=True)
    if merged:
        module.merge()
    counts = []
    for forward in (module, module.base):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(torch.zeros(BATCH, WIDTH))
        counts.append(counter.get_total_flops())
    state = "merged" if merged else "unmerged"
    how = f"FLOPs counted by torch, {state} adapter (r = {RANK}) on a {WIDTH} × {WIDTH} map"
    return computed(counts[0] / counts[1], how)


@measure
def added_modules() -> Outcome:
    """Count the modules that PEFT's LoRA adds to a network of one linear map."""
    from peft import LoraConfig, inject_adapter_in_model

    network = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    before = len(list(network.modules()))
    adapted = inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["0"]), network)
    after = [type(module).__name__ for module in adapted.modules()]
    how = f"{before} modules before; modules of PEFT's adapted network: {', '.join(after)}"
    return computed(len(after) - before, how)
