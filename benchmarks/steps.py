"""Compare a training step with its floor, and profile it; also give the floor of whole runs.

    python benchmarks/steps.py ROUNDS [--quick]    # print the figures as JSON

The step is the one that training takes (`fit.Session.step`). The floor is the time of the
necessary operations at the speed of a matrix product in the same precision, on the same device, of
the model's largest shape. That speed is measured beside each step.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import timing
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from lowrank_study import native
from lowrank_study.config.run import compose, fast_precision
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.machine import free_cores, processor
from lowrank_study.methods.head import HeadOnly
from lowrank_study.methods.layers.products import linear
from lowrank_study.spec import BaseModel, RunSpec
from lowrank_study.training.batches import Batch
from lowrank_study.training.fit import Job, Session
from lowrank_study.training.tracking import Tracker

CPU = torch.device("cpu")
PRODUCTS = 20
"""Matrix products that are timed for the peak speed."""
SMOLLM2 = ("model=smollm2", "model.dropout=0.0", "method.rank=8")
KINDS = {
    "matrix products": (
        "_linear_pointwise",
        "_Linear",
        "_AddLowRank",
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
    ),
    "attention": ("scaled_dot_product", "_Attention"),
    "GELU": ("gelu", "_Gelu"),
    "LayerNorm": ("layer_norm", "_Norm"),
    "optimizer": ("AdamW", "_fused_adamw", "_foreach", "clip", "vector_norm"),
    "copies": ("copy_", "cat", "index_select", "index_add", "contiguous"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Runs whose step is measured."""

    name: str
    overrides: Sequence[Sequence[str]]
    """Settings of each run of the pack."""
    batches: int
    """Number of steps in a round."""
    at_least: float
    """Target, as a share of the speed of a matrix product."""


LORA = ("model.dropout=0.0", "method.rank=8")
PACKED = [[*LORA, f"seed={seed}", "data_seed=0"] for seed in range(4)]
STEPS = (
    Kind(name="LoRA r=8 on q,v", overrides=[LORA], batches=12, at_least=0.6),
    Kind(name="four of them packed", overrides=PACKED, batches=12, at_least=0.7),
    Kind(
        name="full fine-tuning",
        overrides=[["model.dropout=0.0", "method=full"]],
        batches=12,
        at_least=0.6,
    ),
    Kind(name="SmolLM2-135M, LoRA r=8 on q,v", overrides=[SMOLLM2], batches=3, at_least=0.5),
)


class Steps:
    """The first training steps of some packed runs."""

    def __init__(self, specs: Sequence[RunSpec], *, batches: int, device: torch.device) -> None:
        jobs = [Job(spec=spec, checkpoint_folder=Path(), tracker=Tracker()) for spec in specs]
        self.specs, self.device = specs, device
        self.session = Session(jobs, device)
        self.batches: list[Batch] = list(islice(self.session.batches(), batches))

    def take(self, batch: Batch) -> list[float]:
        """Take one step, wait for the device, and return the runs' losses."""
        losses = self.session.step(batch)
        wait_for(self.device)
        for failed in self.session.outcomes.values():
            assert isinstance(failed, Exception)
            raise failed
        return losses

    def operations(self) -> list[int]:
        """Return the necessary multiplications and additions of each batch's step.

        PyTorch doesn't count those of native code, so the plain path is counted.
        """
        counted = []
        with _plain_path():
            steps = Steps(self.specs, batches=len(self.batches), device=self.device)
            for batch in steps.batches:
                with FlopCounterMode(display=False) as counter:
                    steps.take(batch)
                counted.append(counter.get_total_flops())
        return counted

    def operations_a_token(self) -> float:
        """Return the mean of `operations` over the tokens."""
        return sum(self.operations()) / sum(len(batch.ids_T) for batch in self.batches)

    def shares(self, rounds: int) -> list[float]:
        """Return the share of the peak speed of each step, round after round."""
        operations, shares = self.operations(), []
        self.take(self.batches[0])  # the first step also compiles native code and fills caches
        model, precision = self.specs[0].model, self.specs[0].train.precision
        for _ in range(rounds):
            # The machine's speed drifts, so each batch has its own measured peak.
            for batch, needed in zip(self.batches, operations, strict=True):
                tokens = len(self.specs) * len(batch.ids_T)
                peak = peak_speed(model, tokens, precision=precision, device=self.device)
                start = time.perf_counter()
                self.take(batch)
                shares.append(needed / peak / (time.perf_counter() - start))
        return shares


@contextmanager
def _plain_path() -> Iterator[None]:
    before, native.wanted = native.wanted, False
    try:
        yield
    finally:
        native.wanted = before


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_seconds(specs: Sequence[RunSpec], *, training_alone: bool = False) -> float:
    """Return the floor of the time of training, validation and test of these runs, on all cores.

    An evaluation costs at least the forward pass, which is all that a linear probe computes.
    """
    operations = 0.0
    for spec in specs:
        splits = splits_of(spec)
        tokens = spec.train.epochs * int(splits.train.lengths.sum())
        operations += tokens * Steps([spec], batches=4, device=CPU).operations_a_token()
        if not training_alone:
            probe = replace(spec, method=HeadOnly(learning_rate=spec.method.learning_rate))
            forward = Steps([probe], batches=4, device=CPU).operations_a_token()
            operations += forward * int(splits.validation.lengths.sum() + splits.test.lengths.sum())
    threads = torch.get_num_threads()
    torch.set_num_threads(len(free_cores()))
    peak = peak_speed(specs[0].model, 4096, precision=specs[0].train.precision, device=CPU)
    torch.set_num_threads(threads)
    return operations / peak


def peak_speed(model: BaseModel, tokens: int, *, precision: str, device: torch.device) -> float:
    """Return the best operations per second of the product of the model's largest shape."""
    config = AutoConfig.from_pretrained(model_folder(model))
    width, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    return fastest_product(tokens, width, inner, precision=precision, device=device)


def fastest_product(
    rows: int, inner: int, columns: int, *, precision: str, device: torch.device
) -> float:
    """Return the best operations per second of (rows, inner) times (inner, columns)."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(rows, inner, dtype=dtype, device=device)
    weight = torch.randn(columns, inner, dtype=dtype, device=device)
    seconds = []
    for _ in range(PRODUCTS):
        wait_for(device)
        start = time.perf_counter()
        linear(x, weight, None)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * rows * inner * columns / min(seconds)


def precisions() -> list[str]:
    """Return the precisions that this processor multiplies in hardware."""
    return ["fp32", "bf16"] if fast_precision("cpu") == "bf16" else ["fp32"]


def hardware(precision: str) -> str:
    """Return what decides how fast this processor multiplies in a precision."""
    _, sets = processor()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"} if precision == "bf16" else {}
    names |= {"avx512f": "AVX512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if flag in sets), "no vectors")


def steps(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Compare steps with their floor on one core, in each precision, and profile the rest."""
    torch.set_num_threads(1)
    figures = []
    for precision in precisions():
        for kind in STEPS[:3] if quick else STEPS:
            specs = [compose(*each, f"trainer.precision={precision}") for each in kind.overrides]
            taken = Steps(specs, batches=1 if quick else kind.batches, device=CPU)
            name = f"{precision} ({hardware(precision)}), {kind.name}"
            figures.append(
                timing.figure(
                    f"{name}: share of the matrix product's speed",
                    taken.shares(rounds),
                    unit="",
                    at_least=kind.at_least,
                )
            )
            figures += spent(name, taken)
    return figures


def spent(name: str, taken: Steps) -> list[timing.Figure]:
    """Return the shares of a step's time by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in taken.batches:
            taken.take(batch)
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
        if share > 0.0
    ]


if __name__ == "__main__":
    found = steps(int(sys.argv[1]), quick="--quick" in sys.argv)
    print(json.dumps([asdict(figure) for figure in found]))
