"""Compare a training step with its floor, and profile it; also give the floor of whole runs.

The floor is the time of the necessary operations at the speed of a matrix product of the model's
largest shape, which is measured in the same round.
"""

import time
from collections.abc import Sequence
from itertools import islice

import timing
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.loaded import model_folder
from lowrank_study.machine import free_cores
from lowrank_study.methods.layers.linear import merged
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import (
    Batch,
    evaluation_batches,
    extreme_texts,
    training_batches,
)
from lowrank_study.training.fit import backward
from lowrank_study.training.models import build_model
from lowrank_study.training.optim import make_optimizer
from lowrank_study.training.packing import Pack, share_frozen

CPU = torch.device("cpu")
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("scaled_dot_product",),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm",),
    "optimizer": ("_fused_adamw", "_foreach", "clip"),
    "copies": ("copy_", "cat", "index_select", "index_add", "contiguous"),
}


class Step:
    """One training step of some packed runs."""

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self.spec = specs[0]
        folder = model_folder(specs[0].model)
        self.splits = splits = load_splits(specs[0].task, folder)
        models: list[nn.Module] = []
        for spec in specs:
            models.append(build_model(spec, folder, number_of_labels=len(splits.labels)))
            share_frozen(models[0], models[-1])
        self.model = models[0]
        self.pack = Pack(
            models,
            device=CPU,
            pad_id=padding_id(folder),
            sample=extreme_texts((splits.train,), specs[0].train.batch_size),
            reference=False,
        )
        self.optimizers = [
            make_optimizer(model, spec) for model, spec in zip(models, specs, strict=True)
        ]
        batches = training_batches(splits.train, batch_size=16, epochs=1, seed=0)
        self.batches: list[Batch] = list(islice(batches, 12))

    def __call__(self, batch: Batch) -> None:
        """Train on one batch."""
        backward(self.pack, batch, self.spec, CPU)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def operations(self) -> list[int]:
        """Return the necessary multiplications and additions of each batch's step."""
        counted = []
        for batch in self.batches:
            with FlopCounterMode(display=False) as counter:
                self(batch)
            counted.append(counter.get_total_flops())
        return counted

    def operations_a_token(self) -> tuple[float, float]:
        """Return those of training and of evaluation, for a run that is alone."""
        trained = sum(self.operations()) / sum(len(batch.ids_T) for batch in self.batches)
        read = list(islice(evaluation_batches(self.splits.validation), 4))
        with FlopCounterMode(display=False) as counter, merged(self.model), torch.no_grad():
            for batch in read:
                self.pack.scores_of(0, batch)
        return trained, counter.get_total_flops() / sum(len(batch.ids_T) for batch in read)


def least_seconds(specs: Sequence[RunSpec], *, training_alone: bool = False) -> float:
    """Return the floor of the time of training, validation and test of these runs, on all cores."""
    operations = 0.0
    for spec in specs:
        step = Step([spec])
        trained, read = step.operations_a_token()
        splits = step.splits
        operations += spec.train.epochs * int(splits.train.lengths.sum()) * trained
        if not training_alone:
            operations += int(splits.validation.lengths.sum() + splits.test.lengths.sum()) * read
    torch.set_num_threads(len(free_cores()))
    return operations / peak_speed(tokens=4096, width=step.model.config.hidden_size)


def peak_speed(tokens: int, width: int = 384) -> float:
    """Return the best operations per second of a matrix product of the model's width to 1536.

    That is the inner width of MiniLM and of SmolLM2-135M.
    """
    left, right = torch.randn(tokens, width), torch.randn(width, 1536)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2.0 * tokens * width * 1536 / min(seconds)


def steps(rounds: int) -> list[timing.Figure]:
    """Compare a step with its floor, on one core, and profile the rest."""
    torch.set_num_threads(1)
    figures = []
    kinds = {
        "LoRA r=8 on q,v": ([["method.rank=8"]], 0.35),
        "four of them packed": (
            [["method.rank=8", f"seed={s}", "data_seed=0"] for s in range(4)],
            0.35,
        ),
        "full fine-tuning": ([["method=full"]], 0.30),
    }
    for name, (overrides, target) in kinds.items():
        step = Step([compose("model.dropout=0.0", *each) for each in overrides])
        operations = step.operations()
        shares = []
        for _ in range(rounds):
            # The machine's speed drifts, so each batch has its own measured peak.
            for batch, needed in zip(step.batches, operations, strict=True):
                peak = peak_speed(len(batch.ids_T))
                start = time.perf_counter()
                step(batch)
                shares.append(needed / peak / (time.perf_counter() - start))
        figures.append(
            timing.figure(
                f"share of the matrix product's speed, {name}", shares, unit="", at_least=target
            )
        )
        figures += spent(name, step)
    return figures


def spent(name: str, step: Step) -> list[timing.Figure]:
    """Return the shares of a step's time by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in step.batches:
            step(batch)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in events:
        kind = next(
            (k for k, keys in KINDS.items() if any(key in event.key for key in keys)), "the rest"
        )
        shares[kind] += event.self_cpu_time_total / total
    return [
        timing.figure(f"{name}: share of the time, {kind}", [share], unit="")
        for kind, share in shares.items()
    ]
