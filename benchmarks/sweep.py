"""How fast a sweep is: against PEFT in transformers' Trainer, and against the machine's own limit.

    python benchmarks/sweep.py [--only whole,step] [--rounds 3] [--quick]

`whole` times whole processes, from `python` to the last singular value: imports, training,
evaluation, saving and spectra of the same runs, by this suite and by `peft_loop.py`. `step` times
one training step against its floor: the operations that it can't do without, over the speed of a
matrix product of its own shapes measured beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import timing
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lowrank_study.config import compose
from lowrank_study.runs import RunStore
from lowrank_study.spec import RunSpec, to_mapping
from lowrank_study.training.batches import Batch, first_texts, training_batches
from lowrank_study.training.data import load_splits
from lowrank_study.training.models import build_model, load_tokenizer, model_folder
from lowrank_study.training.optim import make_optimizer
from lowrank_study.training.packing import Pack, share_frozen

HERE = Path(__file__).parent
CPU = torch.device("cpu")
OURS = (
    "import json, sys; from pathlib import Path; from lowrank_study.spec import from_mapping;"
    "from lowrank_study.study.sweep import sweep;"
    "specs = [from_mapping(m) for m in json.loads(Path(sys.argv[1]).read_text())];"
    "sweep(specs, name='bench', results=Path(sys.argv[2]))"
)
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("scaled_dot_product",),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm",),
    "optimizer": ("_fused_adamw", "_foreach", "clip"),
    "copies": ("copy_", "cat", "index_select", "index_add", "contiguous"),
}


def specs_of(*, quick: bool) -> list[RunSpec]:
    """A fifth of `make study`: full fine-tuning and four ranks of both targets, one seed."""
    size = ["task.train_size=128", "task.validation_size=64", "task.test_size=64"]
    base = ["model.dropout=0.0", *(size if quick else [])]
    lora = [
        compose(*base, f"method={method}", f"method.rank={rank}")
        for method in ("lora", "lora_all_linear")
        for rank in (1, 4, 16, 64)
    ]
    return [compose(*base, "method=full"), *lora]


def whole(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Time the same runs by the suite and by the Trainer, as processes."""
    specs = specs_of(quick=quick)
    folder = Path(tempfile.mkdtemp())
    runs = folder / "runs.json"
    runs.write_text(json.dumps([to_mapping(spec) for spec in specs]))
    accuracies: dict[str, list[float]] = {}

    def ours() -> None:
        results = Path(tempfile.mkdtemp(dir=folder))
        subprocess.run([sys.executable, "-c", OURS, str(runs), str(results)], check=True)
        ended = RunStore(results / "runs").ended([spec.run_id for spec in specs])
        accuracies["ours"] = [run.record["test"]["accuracy"] for run in ended]

    def trainer(*options: str) -> None:
        out = folder / "out.json"
        command = [sys.executable, str(HERE / "peft_loop.py"), str(runs), str(out), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        name = " ".join(["Trainer", *options])
        accuracies[name] = [run["test_accuracy"] for run in json.loads(out.read_text())]

    times = timing.interleaved(
        {"ours": ours, "Trainer": trainer, "Trainer --tuned": lambda: trainer("--tuned")},
        rounds=rounds,
        warm_up=lambda: None,
    )
    return [
        timing.ratio(
            "whole sweep, against Trainer's defaults", times["Trainer"], times["ours"], at_least=10
        ),
        timing.ratio(
            "whole sweep, against Trainer tuned",
            times["Trainer --tuned"],
            times["ours"],
            at_least=4,
        ),
        *(
            timing.figure(
                f"test accuracy, mean of {len(found)} runs, {name}", [np.mean(found)], unit=""
            )
            for name, found in accuracies.items()
        ),
    ]


class Step:
    """One training step of some packed runs."""

    def __init__(self, overrides: Sequence[Sequence[str]]) -> None:
        specs = [compose("model.dropout=0.0", *each) for each in overrides]
        folder = model_folder(specs[0].model)
        splits = load_splits(specs[0].task, folder)
        models: list[nn.Module] = []
        for spec in specs:
            models.append(build_model(spec, folder, number_of_labels=len(splits.labels)))
            share_frozen(models[0], models[-1])
        self.pack = Pack(
            models,
            device=CPU,
            pad_id=int(load_tokenizer(folder).pad_token_id),
            sample=first_texts(splits.train),
        )
        self.optimizers = [
            make_optimizer(model, spec.method.learning_rate, spec.train)
            for model, spec in zip(models, specs, strict=True)
        ]
        batches = training_batches(splits.train, batch_size=16, epochs=1, seed=0)
        self.batches: list[Batch] = list(islice(batches, 12))

    def __call__(self, batch: Batch) -> None:
        """Train on one batch."""
        scores_RNC = self.pack.scores(batch)
        losses = [nn.functional.cross_entropy(scores, batch.labels_N) for scores in scores_RNC]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def operations(self) -> list[int]:
        """Multiplications and additions of each batch's step that can't be left out."""
        counted = []
        for batch in self.batches:
            with FlopCounterMode(display=False) as counter:
                self(batch)
            counted.append(counter.get_total_flops())
        return counted


def peak_speed(tokens: int) -> float:
    """Best operations per second of a matrix product of the model's largest shape."""
    left, right = torch.randn(tokens, 384), torch.randn(384, 1536)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2.0 * tokens * 384 * 1536 / min(seconds)


def steps(rounds: int) -> list[timing.Figure]:
    """Hold a step against its floor, on one core, and say where the rest goes."""
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
    for name, (overrides, bar) in kinds.items():
        step = Step(overrides)
        operations = step.operations()
        shares = []
        for _ in range(rounds):
            # The machine's speed drifts: each batch is held against a peak measured beside it.
            for batch, needed in zip(step.batches, operations, strict=True):
                peak = peak_speed(len(batch.ids_T))
                start = time.perf_counter()
                step(batch)
                shares.append(needed / peak / (time.perf_counter() - start))
        figures.append(timing.figure(f"share of the floor, {name}", shares, unit="", at_least=bar))
        figures += spent(name, step)
    return figures


def spent(name: str, step: Step) -> list[timing.Figure]:
    """Say which share of a step's time goes where."""
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


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="whole,step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few texts: to see that it runs")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    provenance = timing.facts(dtype="float32", rounds=str(arguments.rounds))
    cases = {}
    if "whole" in chosen:
        cases["whole"] = whole(arguments.rounds, quick=arguments.quick)
    if "step" in chosen:
        cases["step"] = steps(arguments.rounds)
    timing.write_results(arguments.out, "sweep", cases, provenance=provenance)
    for row in timing.table(cases):
        print("  ".join(row))


if __name__ == "__main__":
    main()
