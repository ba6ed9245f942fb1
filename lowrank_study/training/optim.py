"""Optimizer and schedule: AdamW, linear warm-up, linear decay to zero."""

from collections import defaultdict
from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from lowrank_study.methods.layers.modules import head_parameters
from lowrank_study.spec import RunSpec, TrainSpec
from lowrank_study.training.adamw import native_adamw


def make_optimizer(model: nn.Module, spec: RunSpec) -> optim.Optimizer:
    """Return AdamW over the trainable parameters.

    Weight decay pulls weights, LoRA's factors and the new head towards zero, as in AdamW. It pulls
    PEFT's adapters towards their initial values instead, because ΔW = 0 there (the scales of IA3
    start at one, PiSSA's factors at those of W0). Without a gradient, no adapter changes ΔW.

    Biases and norms, which have one dimension, are not decayed.
    """
    train, method = spec.train, spec.method
    head_rate = method.head_learning_rate(train)
    separate_head = method.pulls_to_start or head_rate is not None
    head = head_parameters(model) if separate_head else set()
    grouped: dict[tuple[bool, bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_head = parameter in head
            rate = head_rate if in_head and head_rate is not None else method.learning_rate_of(name)
            grouped[in_head, parameter.ndim < 2, rate].append(parameter)
    groups: list[dict[str, Any]] = []
    for (in_head, is_vector, rate), parameters in sorted(grouped.items()):
        decay = 0.0 if is_vector else train.weight_decay
        group = {"params": parameters, "lr": rate, "weight_decay": decay}
        if method.pulls_to_start and not in_head and not is_vector:
            starts = [parameter.detach().clone() for parameter in parameters]
            group |= {"weight_decay": 0.0, "pull": decay, "starts": starts}
        groups.append(group)
    common: dict[str, Any] = {"betas": train.adam_betas, "eps": train.adam_epsilon}
    optimizer = native_adamw(groups, **common) or optim.AdamW(groups, **common, fused=True)
    optimizer.register_step_pre_hook(_pull_to_starts)
    return optimizer


@torch.no_grad()
def _pull_to_starts(optimizer: optim.Optimizer, *_: Any) -> None:
    """Decay parameters towards their initial values: w ← w - rate · decay · (w - start)."""
    for group in optimizer.param_groups:
        for parameter, start in zip(group["params"], group.get("starts", ()), strict=False):
            parameter.lerp_(start, group["lr"] * group["pull"])


def make_schedule(optimizer: optim.Optimizer, steps: int, train: TrainSpec) -> LambdaLR:
    """Return the schedule, to be stepped once after every optimizer step."""
    return LambdaLR(optimizer, lambda step: train.rate_share(step, steps))
