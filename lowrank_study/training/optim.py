"""Optimizer and schedule: AdamW, linear warm-up, linear decay to zero."""

from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from lowrank_study.spec import HeadOnly, PeftMethod, RunSpec, TrainSpec
from lowrank_study.training.models import head_parameters


def make_optimizer(model: nn.Module, spec: RunSpec) -> optim.Optimizer:
    """Return AdamW over the trainable parameters.

    Weight decay pulls weights, LoRA's factors and the new head towards zero, as AdamW does. The
    parameters of PEFT's adapters are pulled towards their start instead: many rest elsewhere (the
    scales of IA3 at one, PiSSA's factors at those of W0), and zero would be another model. So ΔW
    stays as it is without a gradient, for every adapter.

    Biases and norms, the parameters of one dimension, are not decayed. The new head has a rate of
    its own where the spec gives one.
    """
    train, rate = spec.train, spec.method.learning_rate
    by_peft, head_alone = isinstance(spec.method, PeftMethod), isinstance(spec.method, HeadOnly)
    head_rate = None if head_alone else train.head_learning_rate
    head = head_parameters(model) if by_peft or head_rate is not None else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trained if (p in head) == in_head and (p.ndim > 1) == decayed],
            "lr": head_rate if in_head and head_rate is not None else rate,
            "weight_decay": train.weight_decay if decayed else 0.0,
        }
        for in_head in (False, True)
        for decayed in (True, False)
    ]
    if by_peft:
        adapter = groups[0]
        adapter["pull"], adapter["weight_decay"] = adapter["weight_decay"], 0.0
        adapter["starts"] = [p.detach().clone() for p in adapter["params"]]
    optimizer = optim.AdamW(
        [group for group in groups if group["params"]],
        betas=train.adam_betas,
        eps=train.adam_epsilon,
        fused=True,
    )
    optimizer.register_step_pre_hook(_pull_to_starts)
    return optimizer


@torch.no_grad()
def _pull_to_starts(optimizer: optim.Optimizer, *_: Any) -> None:
    """Decay towards the initial values: w ← w − rate · decay · (w − start)."""
    for group in optimizer.param_groups:
        for parameter, start in zip(group["params"], group.get("starts", ()), strict=False):
            parameter.lerp_(start, group["lr"] * group["pull"])


def rate_share(step: int, *, steps: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate at a step, counted from 0: up linearly, then down to 0."""
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def make_schedule(optimizer: optim.Optimizer, steps: int, train: TrainSpec) -> LambdaLR:
    """Return the schedule; step it once after every optimizer step."""
    fraction = train.warmup_fraction
    return LambdaLR(optimizer, lambda s: rate_share(s, steps=steps, warmup_fraction=fraction))
