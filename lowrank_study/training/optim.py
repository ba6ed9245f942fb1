"""Optimizer and schedule: AdamW, linear warm-up, linear decay to zero."""

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from lowrank_study.spec import HeadOnly, RunSpec, TrainSpec
from lowrank_study.training.models import head_parameters


def make_optimizer(model: nn.Module, spec: RunSpec) -> optim.Optimizer:
    """Return AdamW over the trainable parameters.

    Biases and norms, the parameters of one dimension, are not decayed. The new head has a rate of
    its own where the spec gives one.
    """
    train, rate = spec.train, spec.method.learning_rate
    head_rate = train.head_learning_rate
    apart = head_rate is not None and not isinstance(spec.method, HeadOnly)
    head = head_parameters(model) if apart else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (p in head) == in_head and (p.ndim > 1) == decayed],
            "lr": head_rate if in_head else rate,
            "weight_decay": train.weight_decay if decayed else 0.0,
        }
        for in_head in (False, True)
        for decayed in (True, False)
    ]
    return optim.AdamW(
        [group for group in groups if group["params"]],
        betas=train.adam_betas,
        eps=train.adam_epsilon,
        fused=True,
    )


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
